import CLinux
import Firewall
import Model
import Netlink
import TestSupport
import Testing

@testable import Reconcile

extension KernelNamespace {
    /// With another kind of device of the name of Kilo's: what counts is the name.
    struct KiloLeftoversTests {
        private func sh(_ command: String) throws -> String {
            let result = Shell.run(command)
            guard result.status == 0 else { throw Lab.Failure(description: "\(command): \(result.errors)") }
            return result.output
        }

        /// What a Kilo leaves that was killed: its routes over `kilo0` and the IPIP device, table 1107. And what others made.
        private func leave() throws {
            _ = try sh(
                """
                ip link set lo up
                ip link add kilo0 type veth peer name kilopeer && ip link set kilopeer up
                ip addr add 10.4.0.1/16 dev kilo0 && ip link set kilo0 up
                ip link add tunl0 type veth peer name tunlpeer && ip link set tunlpeer up && ip link set tunl0 up
                ip link add eth7 type veth peer name eth8 && ip link set eth8 up && ip link set eth7 up
                ip route add 10.244.3.0/24 via 10.4.0.2 dev kilo0 proto static onlink
                ip route add 10.2.0.13/32 via 10.4.0.2 dev kilo0 proto static onlink
                ip route add 10.244.4.0/24 via 10.244.2.1 dev tunl0 proto static onlink
                ip route add 10.1.0.12/32 via 10.244.2.1 dev tunl0 proto static onlink table 1107
                ip rule add to 10.1.0.12 iif kilo0 table 1107
                ip rule add from 10.244.1.0/24 to 10.1.0.12 table 1107
                ip route add 192.0.2.0/24 dev eth7 proto static
                ip route add 198.51.100.0/24 dev tunl0
                ip rule add from 192.0.2.7 table 1108
                """)
        }
        private func clear() {
            Shell.run("ip link del kilo0; ip link del tunl0; ip link del eth7; ip rule del table 1108")
        }

        @Test func whatKiloHasLeftIsTakenOverAndNothingElse() throws {
            try leave()
            defer { clear() }
            let leftovers = KiloLeftovers(socket: try NetlinkSocket(bus: NETLINK_ROUTE))
            #expect(try leftovers.isUp())
            let done = try leftovers.takeOver()
            #expect(done.count == 3, "\(done)")
            let routes = try sh("ip route show table all proto static")
            #expect(
                routes.contains("192.0.2.0/24") && !routes.contains("kilo0") && !routes.contains("tunl0"), "\(routes)")
            #expect(try sh("ip route show dev tunl0").contains("198.51.100.0/24"), "not of protocol static")
            let rules = try sh("ip rule show")
            #expect(!rules.contains("1107") && rules.contains("1108"), "\(rules)")
            // The device is down, and its port free with it; it is Kilo's to come back to.
            #expect(try sh("ip link show kilo0").contains("state DOWN"))
            #expect(try leftovers.isUp() == false)
            #expect(try leftovers.takeOver() == [])
            #expect(try leftovers.remove() == ["ip link del dev kilo0"])
            #expect(try leftovers.remove() == [])
        }

        @Test(.enabled(if: Shell.run("iptables-nft --version").status == 0, "needs iptables-nft"))
        func theChainsThatKiloHasLeftGoAndNobodyElsesRules() throws {
            defer { Shell.run("nft delete table ip nat; nft delete table ip filter; nft delete table ip6 nat") }
            _ = try sh(
                """
                for i in iptables-nft ip6tables-nft; do $i -t nat -N KILO-NAT; done
                iptables-nft -t nat -A KILO-NAT -d 10.4.0.2/32 -m comment --comment "Kilo: do not NAT packets destined for WireGuared IPs" -j RETURN
                iptables-nft -t nat -A KILO-NAT -m comment --comment "Kilo: NAT remaining packets" -j MASQUERADE
                iptables-nft -t nat -A POSTROUTING -s 10.244.1.0/24 -m comment --comment "Kilo: jump to KILO-NAT chain" -j KILO-NAT
                iptables-nft -t nat -A POSTROUTING -s 10.9.0.0/16 -m comment --comment "mine" -j MASQUERADE
                iptables-nft -N KILO-IPIP
                iptables-nft -A INPUT -p 4 -m comment --comment "Kilo: jump to IPIP chain" -j KILO-IPIP
                iptables-nft -A INPUT -p 4 -m comment --comment "Kilo: reject other IPIP traffic" -j DROP
                """)
            #expect(try KiloChains().remove().count == 5)
            let rules = try sh("iptables-nft -t nat -S; iptables-nft -S; ip6tables-nft -t nat -S")
            #expect(!rules.uppercased().contains("KILO") && rules.contains("10.9.0.0/16"), "\(rules)")
            #expect(try KiloChains().remove() == [])
        }

        /// `tunl0` is anybody's where nothing else says that there was a Kilo.
        @Test func withoutADeviceOfKilosNothingIsKilos() throws {
            try leave()
            defer { clear() }
            _ = try sh("ip rule del table 1107; ip rule del table 1107; ip link del kilo0")
            #expect(try KiloLeftovers(socket: try NetlinkSocket(bus: NETLINK_ROUTE)).takeOver() == [])
            #expect(try sh("ip route show").contains("10.244.4.0/24"))
        }

        /// The firewall and all else is as planned; the route is named with what to do.
        @Test func aRouteOfAnotherProgramIsNamedAndKeepsNothingElse() throws {
            try leave()
            defer {
                _ = try? Reconciler().apply(HostState())
                clear()
            }
            var wanted = HostState()
            wanted.firewall = FirewallTable(chains: [], sets: [])
            wanted.add([
                Route(
                    table: Rule.mainTable, destination: IPNetwork("192.0.2.0/24")!, kind: .device("eth7"), metric: 0,
                    source: nil),
                Route(
                    table: Rule.mainTable, destination: IPNetwork("192.0.3.0/24")!, kind: .device("eth7"), metric: 0,
                    source: nil),
            ])
            let outcome = try Reconciler().apply(wanted)
            #expect(outcome.failures.count == 1)
            #expect(
                outcome.failures.first?.message.contains(
                    "another program has a route to this destination (ip route show 192.0.2.0/24 table 254): remove it")
                    == true)
            #expect(try sh("ip route show proto 110").contains("192.0.3.0/24"))
            #expect(try sh("nft list tables").contains("inet culvert"))
        }
    }
}

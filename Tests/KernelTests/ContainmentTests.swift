import CLinux
import Firewall
import Foundation
import Model
import Netlink
import TestSupport
import Testing

@testable import Planner
@testable import Reconcile

extension KernelNamespace {
    /// What the kernel refuses holds only what depends on it, and is there when its cause is gone.
    struct ContainmentTests {
        static let overlay = IPAddress("10.244.1.1")!

        func link(_ name: String, vni: UInt32, mtu: Int = 1400) -> Link {
            Link(
                name: name,
                kind: .vxlan(
                    local: Self.overlay, vni: vni, port: Ownership.vxlanPort, mac: MACAddress(0x02C7_0AF4_0101)),
                mtu: mtu, address: Self.overlay)
        }

        func state(pods: Int = 1, mtu: Int = 1400) -> HostState {
            var state = HostState()
            state.links = [link("cni-culvert0", vni: 1, mtu: mtu), link("cni-culvert-1", vni: 7, mtu: mtu)]
            for (number, name) in [(0, "cni-culvert0"), (1, "cni-culvert-1")] {
                let id = Ownership.firstNextHop + UInt32(number)
                state.nextHops.append(NextHop(id: id, target: .device(name)))
                let table = Ownership.firstTable + UInt32(number)
                state.routes.append(Route(table: table, destination: .everythingV4, kind: .nextHop(id)))
                state.routes.append(
                    Route(
                        table: table, destination: .everythingV4, kind: .unreachable, metric: Ownership.backstopMetric))
            }
            for number in 0..<pods {
                for priority in [Ownership.podRulePriority, Ownership.secondPodRulePriority] {
                    state.rules.append(
                        Rule(
                            priority: priority,
                            source: IPNetwork(host: IPAddress(v4: 0x0AF4_0100 + UInt32(number) + 2)),
                            table: Ownership.firstTable + UInt32(number % 2)))
                }
            }
            state.routes = Route.inOrder(state.routes)
            state.rules.sort(by: Rule.isBefore)
            return state
        }

        func clean() { _ = try? Reconciler().apply(HostState()) }

        @Test func aLinkBelowTheLeastMTUOfIPv6IsMade() throws {
            defer { clean() }
            let outcome = try Reconciler().apply(state(mtu: 1200))
            #expect(outcome.isComplete, "\(outcome.failures)")
            #expect(Shell.run("ip -o link show cni-culvert0").output.contains("mtu 1200"))
            #expect(try Reconciler().differences(state(mtu: 1200)) == [])
        }

        @Test func aForeignRouteInTheWayHoldsOnlyThePodsOfItsTable() throws {
            defer {
                Shell.run("ip route flush table 47000; ip route flush table 47001")
                clean()
            }
            Shell.run("ip route add unreachable default metric \(Ownership.backstopMetric) table 47001 proto static")
            let reconciler = try Reconciler()
            let wanted = state(pods: 2)
            let outcome = try reconciler.apply(wanted)
            #expect(
                outcome.failures.count == 1 && outcome.failures[0].message.contains("File exists"),
                "\(outcome.failures)")
            func problem(_ number: UInt32) -> String? {
                outcome.problem(
                    of: [IPAddress(v4: 0x0AF4_0102 + number)], table: Ownership.firstTable + number, in: wanted)
            }
            #expect(problem(0) == nil)
            #expect(problem(1)?.contains("File exists") == true)
            let rules = Shell.run("ip rule show priority 106").output
            #expect(rules.contains("10.244.1.2") && !rules.contains("10.244.1.3"))
            Shell.run("ip route del unreachable default metric \(Ownership.backstopMetric) table 47001 proto static")
            #expect(try reconciler.apply(wanted).isComplete)
            #expect(try reconciler.differences(wanted) == [])
        }

        @Test func aLinkThatCannotBeMadeHoldsItsOwnPodsWhichAreUnreachable() throws {
            defer {
                Shell.run("ip link del other")
                clean()
            }
            // Somebody has the VNI of the second tunnel.
            #expect(Shell.run("ip link add other type vxlan id 7 local 10.244.1.1 dstport 8475").status == 0)
            let outcome = try Reconciler().apply(state(pods: 2))
            #expect(!outcome.isComplete && outcome.failures.count == 1, "\(outcome.failures)")
            let routes = Shell.run("ip route show table 47001").output
            #expect(routes.contains("unreachable default") && !routes.contains("nhid"))
            #expect(Shell.run("ip rule show priority 106").output.contains("10.244.1.3"), "held, not open")
            #expect(Shell.run("ip route show table 47000").output.contains("nhid"))
        }

        @Test func aNextHopOfAnotherKindUnderTheSameNumberIsMadeAnew() throws {
            defer { clean() }
            let first = Ownership.firstNextHop
            #expect(
                Shell.run(
                    "ip link add cni-culvert0 type vxlan id 1 local 10.244.1.1 dstport 8475 && ip link set cni-culvert0 up && ip nexthop add id 5 dev cni-culvert0 proto 110 && ip nexthop add id \(first) group 5 proto 110"
                ).status == 0)
            let reconciler = try Reconciler()
            let outcome = try reconciler.apply(state())
            #expect(outcome.isComplete, "\(outcome.failures)")
            #expect(try reconciler.differences(state()) == [])
        }

        @Test func aTableOfThousandsOfElementsIsOneTransaction() throws {
            let firewall = try FirewallSocket()
            defer { try? firewall.apply(.delete, wanted: nil) }
            let elements = (0..<8000 as Range<UInt32>).map {
                FirewallSet.Element(pair: 0x0A00_0000 + $0, first: 0x6400_0000 + $0, last: 0x6400_0000 + $0)
            }
            let table = FirewallTable(
                chains: [], sets: [FirewallSet(name: "many", key: .addressPair, interval: false, elements: elements)])
            try firewall.apply(.replace, wanted: table)
            // While the kernel makes the set's hash table larger, after the transaction, its list may lack elements.
            var operations: [String] = []
            for _ in 0..<30 {
                operations = FirewallChange.between(try firewall.read(), table).operations
                if operations.isEmpty { break }
                usleep(100_000)
            }
            #expect(operations == [])
            let listed = Shell.run("nft list set inet culvert many | grep -o '100[.][0-9.]*' | wc -l").output
            #expect(listed == "8000\n")
        }

        @Test func rulesOfHundredsOfPodsStayWhileOthersInsertTheirs() throws {
            defer { clean() }
            let wanted = state(pods: 400)
            let reconciler = try Reconciler()
            #expect(try reconciler.apply(wanted).isComplete)
            Shell.run("touch /tmp/\(Shell.prefix).noise")
            defer { Shell.run("rm -f /tmp/\(Shell.prefix).noise") }
            Shell.run(
                "(while [ -e /tmp/\(Shell.prefix).noise ]; do ip rule add priority 50 to 192.0.2.1 lookup main; ip rule del priority 50; done) > /dev/null 2>&1 < /dev/null &"
            )
            var deleted: [Step] = []
            reconciler.afterEachStep = { step in if case .deleteRule = step.action { deleted.append(step) } }
            for _ in 0..<40 { #expect(try reconciler.apply(wanted, looking: [.rules]).isComplete) }
            #expect(deleted == [], "\(deleted)")
            Shell.run("rm -f /tmp/\(Shell.prefix).noise; sleep 0.3")
            let there = Shell.run("ip rule show priority 106 | sort -u | wc -l").output
            #expect(there.trimmingCharacters(in: .whitespacesAndNewlines) == "400")
        }

        @Test func whatAPolicyClaimsOfIPv6IsUnreachable() throws {
            var inventory = TestCluster.inventory
            inventory.policies = [TestCluster.policy("both", destinations: ["0.0.0.0/0", "2001:db8::/32"])]
            inventory.nodes["n2"]?.podCIDRs.append(IPNetwork("2001:db8:2::/64")!)
            inventory.pods[0].addresses.append(IPAddress("fd00::10")!)
            let plan = TestCluster.plan(node: "n1", tunnelProtocol: .vxlan, inventory: inventory)
            Shell.run(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=0; ip link set lo up; ip link add six type veth peer name xis; ip addr add fd00::1/64 dev six nodad; ip link set six up; ip link set xis up; ip -6 route add default dev six"
            )
            defer {
                Shell.run("ip link del six")
                clean()
            }
            let reconciler = try Reconciler()
            let outcome = try reconciler.apply(plan.host)
            #expect(outcome.isComplete, "\(outcome.failures)")
            #expect(try reconciler.differences(plan.host) == [])
            #expect(Shell.run("ip -6 rule show priority 106").output.contains("from fd00::10 lookup 47000"))
            let asker = try NetlinkSocket(bus: 0)
            let lo = try #require(try asker.link(named: "six")).index
            func fate(_ text: String) throws -> RouteLookup {
                try asker.lookUp(IPAddress(text)!, from: IPAddress("fd00::10")!, incoming: lo)
            }
            #expect(
                try fate("2001:db8::5") == .refused(101) || fate("2001:db8::5") == .refused(113), "claimed IPv6 is open"
            )
            if case .refused(let code) = try fate("2001:db9::5") { Issue.record("unclaimed IPv6 is refused: \(code)") }
            if case .refused(let code) = try fate("2001:db8:2::5") {
                Issue.record("the cluster's own is refused: \(code)")
            }
        }
    }
}

import Model
import Netlink
import TestSupport
import Testing

@testable import Reconcile

extension KernelNamespace {
    /// What a node reads of its own kernel.
    @Suite(.serialized) struct LocalFactsTests {
        static func facts() throws -> LocalFacts {
            try LocalFactsReader(socket: NetlinkSocket(bus: 0)).read(nodeName: "n1", node: nil)
        }

        /// Of the main table all that leads out; not the hosts' ends of pods, nor Cilium's and Culvert's own.
        @Test func theWaysOutAreThoseOfTheMainTable() throws {
            Shell.run(
                """
                ip link set lo up
                ip link add up0 type veth peer name up1
                ip link add lxcpod type veth peer name lxcpeer
                ip link add cilium_host type veth peer name cilium_net
                for l in up0 up1 lxcpod lxcpeer cilium_host cilium_net; do ip link set $l up; done
                ip addr add 192.0.2.2/24 dev up0
                ip addr add 10.244.1.1/32 dev cilium_host
                ip route add 10.244.1.5 dev lxcpod
                ip route add 10.244.2.0/24 via 10.244.1.1 dev cilium_host onlink
                ip route add 198.51.100.0/24 via 192.0.2.1
                ip route add 203.0.113.0/24 dev lxcpod table 9
                ip route add unreachable 203.0.113.0/25
                ip route add default via 192.0.2.1 table 9
                """)
            defer {
                Shell.run(
                    "ip route del unreachable 203.0.113.0/25; ip route flush table 9; for l in up0 lxcpod cilium_host; do ip link del $l; done"
                )
            }
            let connected = LocalFacts.Way(IPNetwork("192.0.2.0/24")!, isForwarded: false)
            let routed = LocalFacts.Way(IPNetwork("198.51.100.0/24")!, isForwarded: true)
            var facts = try Self.facts()
            #expect(facts.ways == [connected, routed])
            // A default route of any table counts for its interface.
            #expect(facts.interface("up0")?.hasDefaultRoute == true)
            Shell.run("ip route flush table 9; ip route add default via 192.0.2.1")
            facts = try Self.facts()
            #expect(facts.ways == [connected, routed, LocalFacts.Way(.everythingV4, isForwarded: true)])
            Shell.run("ip route del default")
            facts = try Self.facts()
            #expect(facts.ways == [connected, routed])
            #expect(facts.interface("up0")?.hasDefaultRoute == false)
            // Nothing goes by a link without carrier.
            Shell.run("ip link set up1 down; sleep 0.2")
            #expect(try Self.facts().ways == [])
        }
    }
}

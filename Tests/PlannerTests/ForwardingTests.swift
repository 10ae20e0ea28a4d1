import Model
import TestSupport
import Testing

@testable import Planner

/// A gateway that does not forward what comes in from outside: packets may leave it, and no answer comes back.
struct ForwardingTests {
    /// Of n3, which policies choose: a default route by eth0, and another way out by eth1.
    static func facts(_ change: (inout LocalFacts) -> Void) -> LocalFacts {
        func interface(_ name: String, _ address: String, gateway: String?) -> LocalFacts.Interface {
            let address = IPAddress(address)!
            return .init(
                name: name, addresses: [IPNetwork(address, prefixLength: 24)], hostAddresses: [address],
                gateway: gateway.flatMap { IPAddress($0) })
        }
        var facts = LocalFacts(
            nodeName: "n3", overlayAddress: IPAddress("10.244.3.1"), underlayDevice: "eth0",
            interfaces: [
                interface("eth0", "10.0.0.13", gateway: "10.0.0.1"),
                interface("eth1", "198.18.0.3", gateway: "198.18.0.1"),
                interface("dummy0", "192.0.2.31", gateway: nil),
            ], isLive: true)
        facts.localRulePriority = 100
        for place in facts.interfaces.indices { facts.interfaces[place].forwards = true }
        facts.forwarding = 1
        change(&facts)
        return facts
    }
    static func plan(_ egress: EgressPolicy.Egress, _ change: (inout LocalFacts) -> Void) -> Plan {
        var inventory = TestCluster.inventory
        inventory.policies = [TestCluster.policy("shop", egress: egress, source: .culvert)]
        return Planner.plan(
            configuration: Configuration(), localFacts: facts(change), inventory: inventory, attachments: [])
    }
    static let every: [EgressPolicy.Egress] = [
        .defaultAddress, .untranslated, .interface("eth0"), .interface("eth1"), .address(IPAddress("10.0.0.13")!),
        .address(IPAddress("198.18.0.3")!), .address(IPAddress("192.0.2.31")!),
    ]

    @Test(arguments: every) func aGatewayThatForwardsNothingIsNone(_ egress: EgressPolicy.Egress) {
        func isServed(_ plan: Plan) -> Bool { plan.liveness.own.values.map { $0 } == [.up] }
        #expect(isServed(Self.plan(egress) { _ in }))
        let off = Self.plan(egress) { facts in
            facts.forwarding = 0
            for place in facts.interfaces.indices { facts.interfaces[place].forwards = false }
        }
        #expect(off.liveness.own.values.map { $0 } == [.down])
        // It takes nothing from others, echoes included, whatever its own tunnels forward.
        #expect(off.host.firewall?.chains.first { $0.name == "postrouting" }?.rules.isEmpty == true)
        #expect(off.warnings.contains { $0.contains("forwarding is off on eth") }, "\(off.warnings)")
        // Where devices are not asked, the setting for all of them counts; not known is never nothing.
        let unknown = Self.plan(egress) { facts in
            facts.forwarding = 0
            for place in facts.interfaces.indices { facts.interfaces[place].forwards = nil }
        }
        #expect(!isServed(unknown))
        #expect(
            isServed(
                Self.plan(egress) { facts in
                    facts.forwarding = nil
                    for place in facts.interfaces.indices { facts.interfaces[place].forwards = nil }
                }))
    }

    /// The kernel asks the device that a packet comes in by, and no other setting.
    @Test func itIsTheUplinksOwnSettingThatCounts() {
        func states(_ egress: EgressPolicy.Egress, _ change: (inout LocalFacts) -> Void) -> [GatewayHealth.State] {
            Self.plan(egress, change).liveness.own.values.map { $0 }
        }
        for (device, egress) in [
            ("eth0", .defaultAddress), ("eth0", .address(IPAddress("192.0.2.31")!)), ("eth1", .interface("eth1")),
        ] as [(String, EgressPolicy.Egress)] {
            func switchOff(_ name: String) -> (inout LocalFacts) -> Void {
                { facts in
                    for place in facts.interfaces.indices where facts.interfaces[place].name == name {
                        facts.interfaces[place].forwards = false
                    }
                }
            }
            #expect(states(egress, switchOff(device)) == [.down])
            #expect(states(egress, switchOff(device == "eth0" ? "eth1" : "eth0")) == [.up])
        }
        // A node that serves something else drops the echoes of what it does not serve.
        var inventory = TestCluster.inventory
        inventory.policies = [
            TestCluster.policy("one", source: .culvert),
            TestCluster.policy("other", egress: .interface("eth1"), source: .culvert),
        ]
        func dropped(_ change: (inout LocalFacts) -> Void) -> [String] {
            let plan = Planner.plan(
                configuration: Configuration(), localFacts: Self.facts(change), inventory: inventory, attachments: [])
            return (plan.host.firewall?.chains.flatMap(\.rules) ?? []).compactMap(\.comment).filter {
                $0.hasPrefix("echo: not a gateway")
            }
        }
        #expect(dropped { _ in }.isEmpty)
        #expect(
            dropped { $0.interfaces[0].forwards = false }.contains("echo: not a gateway for it, cni-culvert0"))
        #expect(states(.defaultAddress) { $0.forwarding = 0 } == [.up], "forwarding on the uplink itself is enough")
    }
}

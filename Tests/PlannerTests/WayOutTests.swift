import Model
import TestSupport
import Testing

@testable import Planner

/// A gateway from which no route leads to where a policy's packets are to go.
struct WayOutTests {
    /// Of n3, which policies choose.
    static func facts(_ ways: [(String, isForwarded: Bool)]?, _ change: (inout LocalFacts) -> Void = { _ in })
        -> LocalFacts
    {
        var facts = LocalFacts(
            nodeName: "n3", overlayAddress: IPAddress("10.244.3.1"), underlayDevice: "eth0",
            interfaces: [
                .init(
                    name: "eth0", addresses: [IPNetwork("10.0.0.13/32")!, IPNetwork("192.0.2.31/32")!],
                    hostAddresses: [IPAddress("10.0.0.13")!, IPAddress("192.0.2.31")!], gateway: IPAddress("10.0.0.1"))
            ], isLive: true)
        facts.forwarding = 1
        facts.localRulePriority = 100
        facts.ways = ways.map { Set($0.map { LocalFacts.Way(IPNetwork($0.0)!, isForwarded: $0.isForwarded) }) }
        change(&facts)
        return facts
    }

    static func plan(_ facts: LocalFacts, _ policies: [EgressPolicy]) -> Plan {
        var inventory = TestCluster.inventory
        inventory.policies = policies
        return Planner.plan(
            configuration: Configuration(), localFacts: facts, inventory: inventory, attachments: [])
    }
    static func policy(_ destinations: [String] = ["0.0.0.0/0"], _ egress: EgressPolicy.Egress = .defaultAddress)
        -> EgressPolicy
    {
        TestCluster.policy("shop", destinations: destinations, egress: egress, source: .culvert)
    }
    /// Whether n3 serves the policy's identity; one that it does not serve has its echoes dropped.
    static func serves(_ plan: Plan) -> Bool { !plan.liveness.own.isEmpty && !plan.liveness.own.values.contains(.down) }

    static let own = ("10.0.0.0/16", isForwarded: true)
    static let router = ("10.0.0.1/32", isForwarded: false)

    @Test(
        arguments: [
            // A default route, or the halves of one.
            ([("0.0.0.0/0", true), own, router], ["0.0.0.0/0"], true),
            ([("0.0.0.0/1", true), ("128.0.0.0/1", true)], ["0.0.0.0/0"], true),
            // None: the network of the nodes is no way out, nor is the link to the router.
            ([own, router], ["0.0.0.0/0"], false), ([], ["0.0.0.0/0"], false), ([own], ["198.51.100.0/24"], false),
            // A route that covers the destination, connected or not.
            ([own, ("198.51.100.0/24", true)], ["198.51.100.0/25"], true),
            ([("198.51.100.0/24", false)], ["198.51.100.0/25"], true),
            // Of several destinations one is enough.
            ([("198.51.100.0/24", true)], ["203.0.113.0/24", "198.51.100.0/24"], true),
            // A router with many routes and no default; what is only connected inside it is none.
            ([("198.51.100.0/24", true)], ["0.0.0.0/0"], true), ([("198.51.100.0/24", false)], ["0.0.0.0/0"], false),
            // Not known is never nothing.
            (nil, ["0.0.0.0/0"], true),
        ] as [([(String, isForwarded: Bool)]?, [String], Bool)])
    func aGatewayServesWhatItHasAWayTo(
        _ ways: [(String, isForwarded: Bool)]?, _ destinations: [String], _ expected: Bool
    ) {
        let plan = Self.plan(Self.facts(ways), [Self.policy(destinations)])
        #expect(Self.serves(plan) == expected)
        #expect(plan.warnings.contains { $0.contains("no route to") } == !expected, "\(plan.warnings)")
    }

    @Test func untranslatedPacketsAndAnAddressNeedAWayToo() {
        for egress in [EgressPolicy.Egress.untranslated, .address(IPAddress("192.0.2.31")!)] {
            #expect(!Self.serves(Self.plan(Self.facts([Self.own]), [Self.policy(["0.0.0.0/0"], egress)])))
            #expect(Self.serves(Self.plan(Self.facts([("0.0.0.0/0", true)]), [Self.policy(["0.0.0.0/0"], egress)])))
        }
    }

    /// Policies of one identity are served or not served together: one that works keeps it.
    @Test func onePolicyThatHasAWayKeepsTheIdentity() {
        let bank = TestCluster.policy("bank", destinations: ["198.51.100.0/24"], source: .culvert)
        let ways = [("198.51.100.0/24", isForwarded: true)]
        let mixed = TestCluster.policy("shop", destinations: ["203.0.113.0/24"], source: .culvert)
        #expect(Self.serves(Self.plan(Self.facts(ways), [mixed, bank])))
        #expect(!Self.serves(Self.plan(Self.facts(ways), [mixed])))
    }

    @Test func anotherInterfaceNeedsARouteOfItsOwn() {
        func facts(_ gateway: Bool) -> LocalFacts {
            Self.facts([("0.0.0.0/0", true)]) {
                var other = LocalFacts.Interface(
                    name: "eth1", addresses: [IPNetwork("198.51.100.2/24")!],
                    hostAddresses: [IPAddress("198.51.100.2")!], gateway: gateway ? IPAddress("198.51.100.1") : nil)
                other.hasDefaultRoute = gateway
                $0.interfaces.append(other)
            }
        }
        let policy = Self.policy(["0.0.0.0/0"], .interface("eth1"))
        #expect(Self.serves(Self.plan(facts(true), [policy])))
        let without = Self.plan(facts(false), [policy])
        #expect(!Self.serves(without))
        #expect(without.warnings.contains { $0.contains("no route to 0.0.0.0/0 by eth1") }, "\(without.warnings)")
        // What is connected to it is reached all the same.
        #expect(Self.serves(Self.plan(facts(false), [Self.policy(["198.51.100.128/25"], .interface("eth1"))])))
    }

    /// Beside an identity that is served, the one that is not has a rule that drops its echoes, and no address to leave with.
    @Test func theEchoesOfWhatHasNoWayAreDropped() {
        let bank = TestCluster.policy(
            "bank", destinations: ["198.51.100.0/24"], egress: .address(IPAddress("192.0.2.31")!), source: .culvert)
        let plan = Self.plan(
            Self.facts([Self.own, ("198.51.100.0/24", true)]),
            [
                Self.policy(["203.0.113.0/24"]), bank,
            ])
        let rules = plan.host.firewall?.chains.flatMap(\.rules) ?? []
        #expect(rules.count { $0.comment?.hasPrefix("echo: not a gateway for it") == true } > 0)
        #expect(plan.liveness.own.values.sorted { $0.rawValue < $1.rawValue } == [.down, .up])
    }

    /// On a desk nobody knows the routes.
    @Test func aPlanOnADeskDoesNotAsk() {
        #expect(Self.serves(Self.plan(Self.facts([Self.own]) { $0.isLive = false }, [Self.policy()])))
    }
}

import Model
import TestSupport
import Testing

@testable import Planner

/// Not known is never "no policy", and refused is never "open".
struct HoldTests {
    /// One pod, as an attachment that had `before`.
    func plan(
        _ policies: [EgressPolicy], had before: [AssignedPolicy]? = nil, annotation: String? = nil,
        configuration: Configuration = Configuration()
    ) -> (plan: Plan, pod: AttachmentPlan) {
        var inventory = TestCluster.inventory
        inventory.policies = policies
        inventory.pods = []
        var attachment = Model.Attachment(
            containerID: "c", interfaceName: "eth0", podNamespace: "default", podName: "a",
            addresses: [IPNetwork("10.244.1.10/32")!], labels: ["app": "shop"])
        attachment.assignment = before
        if let annotation { attachment.annotations = [Planner.policyAnnotation: annotation] }
        let plan = Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: [attachment])
        return (plan, plan.attachments[0])
    }

    func refused(_ name: String, destinations: [String] = ["203.0.113.0/24"]) -> EgressPolicy {
        var policy = TestCluster.policy(name, destinations: destinations, gateway: "z2")
        policy.refusal = "spec.later is not supported by this release"
        return policy
    }

    /// Prefixes of the pod's table that have a way out, and those that are only unreachable.
    func ways(_ plan: Plan, _ pod: AttachmentPlan) -> (open: [String], held: [String]) {
        let routes = plan.host.routes.filter { $0.table == pod.table }
        let open = routes.filter { if case .nextHop = $0.kind { true } else { false } }.map { "\($0.destination)" }
        let all = routes.filter { $0.kind == .unreachable }.map { "\($0.destination)" }
        return (open, all.filter { !open.contains($0) })
    }

    @Test func aPodThatARefusedPolicySelectsAnewIsHeldForThatAndKeepsItsGoodPolicy() {
        let (plan, pod) = plan([TestCluster.policy("shop"), refused("bad")])
        #expect(pod.refusal.contains("policy bad is refused: spec.later"))
        #expect(pod.isHeld && pod.holds == ["policy bad is refused: spec.later is not supported by this release"])
        let (open, held) = ways(plan, pod)
        #expect(open == ["0.0.0.0/0"] && held == ["203.0.113.0/24"])
        #expect(!plan.host.rules.isEmpty)
    }

    @Test func aRefusedPolicyOfTheSameDestinationsDoesNotCutThePodOffFromItsGoodOne() {
        let (plan, pod) = plan([TestCluster.policy("shop"), refused("bad", destinations: ["0.0.0.0/0"])])
        let (open, held) = ways(plan, pod)
        #expect(open == ["0.0.0.0/0"] && held == [])
    }

    @Test func ofARefusedPolicyAPodKeepsWhatItHad() {
        let had = AssignedPolicy(
            source: .cilium, name: "bad", destinations: [IPNetwork("198.51.100.0/24")!], candidates: [.init(node: "n3")]
        )
        let (plan, pod) = plan([refused("bad")], had: [had])
        #expect(!pod.isHeld && pod.holds.count == 1 && pod.policies.map(\.gateway) == ["n3"])
        #expect(ways(plan, pod).open == ["198.51.100.0/24"])
        // The same numbers as before: nothing changes in the kernel.
        #expect(pod.assigned[0].slot == had.slot && pod.assigned[0].content == had.content)
        #expect(!pod.refusal.isEmpty, "an ADD is refused all the same")
    }

    @Test func whatWasHeldBeforeIsNothingToKeep() {
        let had = AssignedPolicy(
            source: .cilium, name: "bad", destinations: [.everythingV4], standing: .held("earlier"))
        #expect(plan([refused("bad")], had: [had]).pod.isHeld)
    }

    @Test func whereDestinationsCannotBeReadAPodIsHeldForAllButKeptNetworks() {
        var policy = refused("bad")
        policy.hasUnknownDestinations = true
        let (plan, pod) = plan([policy])
        #expect(ways(plan, pod) == ([], ["0.0.0.0/0"]))
        let thrown = plan.host.routes.filter { $0.table == pod.table && $0.kind == .throwOn }
        #expect(thrown.contains { $0.destination.contains(IPAddress("10.244.2.5")!) })
    }

    @Test func selectorsThatCannotBeReadSelectWhomTheyHad() {
        var policy = refused("bad")
        policy.hasUnknownSelectors = true
        // One of two can be read: whom it selects is selected for certain.
        #expect(plan([policy]).pod.isHeld)
        policy.selectors = []
        #expect(plan([policy]).pod.assigned == [] && plan([policy]).pod.refusal == "")
        let had = AssignedPolicy(
            source: .cilium, name: "bad", destinations: [IPNetwork("198.51.100.0/24")!], candidates: [.init(node: "n3")]
        )
        #expect(plan([policy], had: [had]).pod.assigned.map(\.name) == ["bad"])
    }

    @Test func aLivePodWhoseNamedPolicyIsGoneIsHeldOrKeepsIt() {
        let (none, held) = plan([], annotation: "nowhere")
        #expect(held.isHeld && held.refusal.contains("nowhere") && ways(none, held).held == ["0.0.0.0/0"])
        let had = AssignedPolicy(
            source: .culvert, name: "nowhere", destinations: [.everythingV4], candidates: [.init(node: "n3")])
        #expect(plan([], had: [had], annotation: "nowhere").pod.policies.map(\.gateway) == ["n3"])
    }

    @Test func aPolicyThatIsGoneLetsItsPodsGo() {
        let had = AssignedPolicy(
            source: .cilium, name: "shop", destinations: [.everythingV4], candidates: [.init(node: "n3")])
        let (plan, pod) = plan([], had: [had])
        #expect(pod.assigned == [] && plan.host.rules.allSatisfy { $0.source == nil })
    }

    @Test func aGatewayGoesOnServingAPolicyThatIsRefused() {
        var inventory = TestCluster.inventory
        let before = TestCluster.plan(node: "n3", inventory: inventory)
        #expect(before.served.map(\.name) == ["shop", "shop-bank"])
        for index in inventory.policies.indices { inventory.policies[index].refusal = "later" }
        func translations(_ plan: Plan) -> Int {
            plan.host.firewall?.chains.first { $0.name == "postrouting" }?.rules.count ?? 0
        }
        let after = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n3"), inventory: inventory,
            attachments: [], previousIDs: before.ids, previouslyServed: before.served)
        #expect(after.served == before.served && translations(after) > 0)
        // Of a policy that is gone nothing is served.
        inventory.policies = []
        let gone = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n3"), inventory: inventory,
            attachments: [], previousIDs: after.ids, previouslyServed: after.served)
        #expect(gone.served == [] && translations(gone) == 0)
    }

    @Test func anOverlayAddressThatIsNotKnownAtTheMomentIsTheLastOne() {
        var inventory = TestCluster.inventory
        inventory.nodes["n1"]?.overlayAddresses = []
        func plan(_ last: String?) -> Plan {
            var facts = LocalFacts(nodeName: "n1")
            facts.lastOverlayAddress = last.flatMap { IPAddress($0) }
            return Planner.plan(
                configuration: Configuration(), localFacts: facts, inventory: inventory,
                attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: []))
        }
        #expect(plan("10.244.1.1").host.links.count > 1)
        // And where none was ever known, what is claimed is unreachable.
        let without = plan(nil)
        #expect(without.host.links == [] && without.host.nextHops == [] && !without.host.rules.isEmpty)
        #expect(without.host.routes.contains { $0.kind == .unreachable && $0.destination == .everythingV4 })
    }

    @Test func aNumberThatOneChangeFreesIsGivenToNothingElseInIt() {
        var inventory = TestCluster.inventory
        var ids = AssignedIDs()
        var random = SeededGenerator(seed: 3)
        for _ in 0..<200 {
            inventory.policies = (0..<4).filter { _ in Bool.random(using: &random) }.map {
                TestCluster.policy(
                    "p\($0)", destinations: [["0.0.0.0/0"], ["203.0.113.0/24"]].randomElement(using: &random)!,
                    gateway: "z\(Int.random(in: 2...3, using: &random))")
            }
            let next = TestCluster.plan(node: "n1", inventory: inventory, previousIDs: ids).ids
            for (key, number) in next.tables {
                #expect(ids.tables[key] == number || !ids.tables.values.contains(number))
            }
            for (key, number) in next.nextHops {
                #expect(ids.nextHops[key] == number || !ids.nextHops.values.contains(number))
            }
            for (key, number) in next.tunnels {
                #expect(ids.tunnels[key] == number || !ids.tunnels.values.contains(number))
            }
            // Until the kernel is seen to be as planned, numbers that were freed earlier stay unused too.
            #expect(next.retired.tables.isDisjoint(with: next.tables.values))
            ids = next
            if Bool.random(using: &random) { ids.retired = .init() }
        }
    }

    @Test func everyTunnelNumberHasANameOfItsOwnOfAtMostFifteenCharacters() {
        var names: Set<String> = []
        for number in 1...Ownership.mostTunnels {
            let name = Ownership.tunnelName(number)
            #expect(name.utf8.count <= 15 && Ownership.tunnelNumber(name) == number)
            names.insert(name)
        }
        #expect(names.count == Int(Ownership.mostTunnels) && !names.contains(Ownership.wireGuardDevice))
        #expect(Ownership.tunnelNumber("cni-culvert-wg") == nil && Ownership.tunnelNumber("cni-culvert0") == nil)
    }

    @Test func onlyAddressesInsideTheNodesNetworksAreKept() {
        var inventory = TestCluster.inventory
        inventory.nodes["n2"]?.externalIPs = [IPAddress("203.0.113.10")!]
        inventory.policies = [TestCluster.policy("shop", destinations: ["203.0.113.0/24", "10.0.0.0/8"])]
        func thrown(_ configuration: Configuration) -> (Set<String>, [String]) {
            let plan = Planner.plan(
                configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: []))
            return (
                Set(
                    plan.host.routes.filter { $0.kind == .throwOn && $0.table >= Ownership.firstTable }.map {
                        "\($0.destination)"
                    }),
                plan.warnings.filter { $0.contains("cluster.nodeCIDRs") }
            )
        }
        let (all, warnings) = thrown(Configuration())
        #expect(
            all.contains("203.0.113.10/32") && warnings.contains { $0.contains("203.0.113.10, an address of a node") })
        var configuration = Configuration()
        configuration.nodeCIDRs = [IPNetwork("10.0.0.0/24")!]
        let (inside, none) = thrown(configuration)
        #expect(!inside.contains("203.0.113.10/32") && inside.contains("10.0.0.12/31") && none == [])
    }
}

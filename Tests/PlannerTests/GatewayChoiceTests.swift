import Model
import TestSupport
import Testing

@testable import Liveness
@testable import Planner

/// Which gateways a pod may use, in which order, and which of them it uses.
struct GatewayChoiceTests {
    static func inventory(_ policy: EgressPolicy, pods: Int = 0) -> Inventory {
        var inventory = TestCluster.inventory
        for number in 2...4 {
            inventory.nodes["n\(number)"] = TestCluster.node(number)
            inventory.nodes["n\(number)"]?.labels["role"] = "gateway"
        }
        inventory.policies = [policy]
        inventory.pods = (0..<pods).map {
            TestCluster.pod("p\($0)", node: "n1", address: "10.244.1.\($0 % 250 + 2)", labels: ["app": "shop"])
        }
        return inventory
    }

    static func policy(
        _ source: EgressPolicy.Source = .culvert, mode: EgressPolicy.Mode = .activeStandby,
        _ change: (inout EgressPolicy) -> Void = { _ in }
    ) -> EgressPolicy {
        var policy = TestCluster.policy("shop", source: source)
        policy.gatewaySelector = LabelSelector(matchLabels: ["role": "gateway"])
        policy.mode = mode
        change(&policy)
        return policy
    }

    /// A pod with this UID on n1.
    static func pod(_ uid: String = "u") -> Model.Attachment {
        Attachment(
            containerID: "c-\(uid)", interfaceName: "eth0", podNamespace: "default", podName: uid, podUID: uid,
            addresses: [IPNetwork("10.244.1.10/32")!], labels: ["app": "shop"])
    }

    static func assigned(
        _ policy: EgressPolicy, pod: Model.Attachment = pod(), node: String = "n1",
        change: (inout Inventory) -> Void = { _ in }
    ) -> AssignedPolicy? {
        var inventory = inventory(policy)
        change(&inventory)
        return Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: node), inventory: inventory,
            attachments: [pod]
        ).attachments.first?.assigned.first
    }

    @Test func allNodesThatMatchAreCandidatesByPriorityAndThenByName() {
        #expect(Self.assigned(Self.policy())?.gateways == ["n2", "n3", "n4"])
        let ranked = Self.assigned(Self.policy()) { $0.nodes["n4"]?.annotations["culvert.dev/gateway-priority"] = "10" }
        #expect(ranked?.gateways == ["n4", "n2", "n3"])
        let last = Self.assigned(Self.policy()) { $0.nodes["n2"]?.annotations["culvert.dev/gateway-priority"] = "-1" }
        #expect(last?.gateways == ["n3", "n4", "n2"])
        // An annotation that is no number says nothing.
        let strange = Self.assigned(Self.policy()) { $0.nodes["n4"]?.annotations["culvert.dev/gateway-priority"] = "x" }
        #expect(strange?.gateways == ["n2", "n3", "n4"])
        // Another order is no other slot: live pods stay where they are.
        #expect(ranked?.slot == Self.assigned(Self.policy())?.slot)
    }

    @Test func localityPutsTheOwnLocationFirstOrAlone() {
        func locations(_ inventory: inout Inventory) {
            for (node, place) in [("n1", "east"), ("n2", "west"), ("n3", "east"), ("n4", "west")] {
                inventory.nodes[node]?.labels["topology.kubernetes.io/region"] = place
            }
        }
        func gateways(_ locality: EgressPolicy.Locality) -> [String]? {
            Self.assigned(Self.policy { $0.locality = locality }, change: locations)?.gateways
        }
        #expect(gateways(.none) == ["n2", "n3", "n4"])
        #expect(gateways(.prefer) == ["n3", "n2", "n4"])
        #expect(gateways(.only) == ["n3"])
    }

    @Test func aListOfEntriesHasAnAddressForEach() {
        let policy = Self.policy {
            $0.gatewayEntries = [
                .init(LabelSelector(matchLabels: ["zone": "z3"]), egress: .address(IPAddress("192.0.2.31")!)),
                .init(LabelSelector(matchLabels: ["zone": "z2"]), egress: .address(IPAddress("192.0.2.21")!)),
            ]
        }
        let candidates = Self.assigned(policy)?.candidates ?? []
        #expect(candidates.map(\.node) == ["n3", "n2"])
        #expect(candidates.map(\.egress.text) == ["address 192.0.2.31", "address 192.0.2.21"])
    }

    /// Cilium: of one selector the first node by name; of a list one entry for each pod.
    @Test func ciliumsObjectsMeanWhatItsDocumentationSays() {
        #expect(Self.assigned(Self.policy(.cilium))?.candidates.first?.node == "n2")
        let list = Self.policy(.cilium) {
            $0.gatewayEntries = [
                .init(LabelSelector(matchLabels: ["role": "gateway"])),
                .init(LabelSelector(matchLabels: ["zone": "z4"])),
            ]
            $0.hasGatewayList = true
        }
        var firsts: Set<String> = []
        for number in 0..<40 { firsts.insert(Self.assigned(list, pod: Self.pod("u\(number)"))?.gateways.first ?? "") }
        // Of the first entry the first node; n4 is a candidate of both.
        #expect(firsts == ["n2"] || firsts == ["n2", "n4"])
    }

    @Test func atMostSoManyCandidatesAreUsed() {
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: {
                var inventory = Self.inventory(Self.policy())
                for number in 5..<100 {
                    inventory.nodes["n\(number)"] = TestCluster.node(number)
                    inventory.nodes["n\(number)"]?.labels["role"] = "gateway"
                }
                return inventory
            }(), attachments: [Self.pod()])
        #expect(plan.attachments[0].assigned[0].candidates.count == 64)
        #expect(plan.warnings.contains { $0.contains("more than 64 nodes") }, "\(plan.warnings)")
    }

    // MARK: spread

    /// The plan for 300 pods of fixed UIDs, with this health.
    static func spread(_ health: GatewayHealth, previous: GatewayActivation.Previous = .init()) -> (Plan, FailOverBoard)
    {
        let policy = policy(mode: .spread)
        let pods = (0..<300).map { number in
            Attachment(
                containerID: "c\(number)", interfaceName: "eth0", podNamespace: "default", podName: "p\(number)",
                podUID: "8f14e45f-ceea-467f-9575-\(100_000_000_000 + number * 7919)",
                addresses: [IPNetwork(host: IPAddress(v4: 0x0AF4_0100 + UInt32(number)))], labels: ["app": "shop"])
        }
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory(policy),
            attachments: pods, gatewayHealth: health, previous: previous)
        var board = FailOverBoard()
        board.echoes = health
        board.prepare(plan.liveness)
        return (plan, board)
    }
    static func gateways(_ plan: Plan, _ board: FailOverBoard) -> [String: String] {
        Dictionary(
            uniqueKeysWithValues: plan.attachments.map {
                ($0.attachment.id, board.choices[$0.assigned[0].slot]?.candidate?.node ?? "none")
            })
    }
    static func end(_ node: String) -> GatewayEnd { GatewayEnd(node: node, identity: .defaultAddress) }

    /// Two entries, so that the order of the policy is not that of locations.
    @Test func podsAreSpreadOverTheirOwnLocationFirst() {
        func orders(_ locality: EgressPolicy.Locality, own: [String]) -> Set<[String]> {
            let policy = Self.policy(mode: .spread) {
                $0.locality = locality
                $0.gatewayEntries = [
                    .init(LabelSelector(matchLabels: ["zone": "z4"])),
                    .init(LabelSelector(matchLabels: ["role": "gateway"])),
                ]
            }
            var orders: Set<[String]> = []
            for number in 0..<60 {
                let assigned = Self.assigned(policy, pod: Self.pod("pod-\(number)")) { inventory in
                    inventory.nodes["n5"] = TestCluster.node(5)
                    inventory.nodes["n5"]?.labels["role"] = "gateway"
                    for node in inventory.nodes.keys {
                        inventory.nodes[node]?.labels["topology.kubernetes.io/region"] =
                            node == "n1" || own.contains(node) ? "east" : "west"
                    }
                }
                orders.insert(assigned?.gateways ?? [])
            }
            return orders
        }
        #expect(Set(orders(.none, own: ["n3"]).map { $0[0] }) == ["n2", "n3", "n4", "n5"])
        #expect(Set(orders(.only, own: ["n2", "n3"]).map { $0.sorted() }) == [["n2", "n3"]])
        // One alone is the first of all pods, and the second is spread.
        let one = orders(.prefer, own: ["n3"])
        #expect(Set(one.map { $0[0] }) == ["n3"] && Set(one.map { $0[1] }) == ["n2", "n4", "n5"])
        // Two share the pods, and stand in for each other.
        let two = orders(.prefer, own: ["n2", "n3"])
        #expect(Set(two.map { Array($0[0...1]) }) == [["n2", "n3"], ["n3", "n2"]])
        // The third of the own location goes before the first entry of the policy, which is elsewhere.
        let three = orders(.prefer, own: ["n2", "n3", "n5"])
        #expect(three.allSatisfy { $0[3] == "n4" } && Set(three.map { $0[0] }) == ["n2", "n3", "n5"])
        #expect(Set(orders(.prefer, own: []).map { $0[0] }) == ["n2", "n3", "n4", "n5"])
    }

    @Test func podsAreSpreadAndALostGatewayMovesItsOwnOnly() {
        var health = GatewayHealth()
        for node in ["n2", "n3", "n4"] { health.states[Self.end(node)] = .up }
        var (plan, board) = Self.spread(health)
        let before = Self.gateways(plan, board)
        func counts(_ gateways: [String: String]) -> [String: Int] {
            gateways.values.reduce(into: [:]) { $0[$1, default: 0] += 1 }
        }
        for (node, count) in counts(before) { #expect((80...120).contains(count), "\(node) \(count)") }

        board.echoes.states[Self.end("n3")] = .down
        let moves = board.decide()
        // As many messages as there are slots of the lost gateway, whatever the number of pods.
        #expect(moves.count == 2)
        let without = Self.gateways(plan, board)
        for (pod, gateway) in before where gateway != "n3" { #expect(without[pod] == gateway) }
        let moved = counts(without.filter { before[$0.key] == "n3" })
        #expect(moved["n3"] == nil && (moved["n2"] ?? 0) > 30 && (moved["n4"] ?? 0) > 30, "\(moved)")

        // Back, but not for long enough.
        board.echoes.states[Self.end("n3")] = .up
        #expect(board.decide().isEmpty)
        board.echoes.steady = [Self.end("n3"), Self.end("n2"), Self.end("n4")]
        _ = board.decide()
        #expect(Self.gateways(plan, board) == before)
        plan = Self.spread(board.health, previous: board.previous).0
        #expect(Self.gateways(plan, board) == before)
    }

    /// One pod and one route, or 200 pods and 2,000 destinations: one next hop is switched.
    @Test func aFailOverIsOneMessageWhateverUsesIt() {
        for (pods, destinations) in [(1, 1), (200, 2000)] {
            var policy = Self.policy()
            policy.destinations = (0..<destinations).map {
                IPNetwork(host: IPAddress(v4: 0xC633_0000 + UInt32($0)))
            }
            let attachments = (0..<pods).map { number in
                Attachment(
                    containerID: "c\(number)", interfaceName: "eth0", podUID: "u\(number)",
                    addresses: [IPNetwork(host: IPAddress(v4: 0x0AF4_0102 + UInt32(number)))], labels: ["app": "shop"])
            }
            let plan = Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
                inventory: Self.inventory(policy),
                attachments: attachments)
            var board = FailOverBoard()
            board.prepare(plan.liveness)
            #expect(plan.liveness.sessions.map(\.end.node) == ["n2", "n3", "n4"])
            board.echoes.states[Self.end("n2")] = .down
            board.echoes.states[Self.end("n3")] = .up
            #expect(board.decide().map(\.to.candidate?.node) == ["n3"])
        }
    }

    /// The shortest detection time of all policies that use a gateway, in whatever order pods have them.
    @Test(
        arguments: [
            // Policies as (interval, multiplier), and what is done.
            ([(100, 3)], (100, 3)), ([(100, 3), (100, 10)], (100, 3)), ([(20, 50), (100, 3)], (20, 15)),
            ([(1000, 2), (20, 50), (100, 3)], (20, 15)), ([(10_000, 50), (30, 2)], (30, 2)),
            // Rounded down, so that no policy waits longer than it says.
            ([(1000, 50), (900, 2)], (900, 2)), ([(100, 50), (150, 2)], (100, 3)), ([(190, 50), (100, 2)], (100, 2)),
            ([(110, 50), (120, 2)], (110, 2)),
        ] as [([(Int, Int)], (Int, Int))])
    func theShortestDetectionTimeCounts(_ policies: [(Int, Int)], _ expected: (Int, Int)) {
        for order in [policies, policies.reversed()] {
            var inventory = Self.inventory(Self.policy())
            inventory.policies = order.enumerated().map { place, checks in
                var policy = EgressPolicy(name: "p\(place)", source: .culvert)
                policy.selectors = [.init(pod: LabelSelector(matchLabels: ["app": "shop"]))]
                policy.destinations = [IPNetwork(host: IPAddress(v4: 0xC633_0000 + UInt32(place)))]
                policy.gatewaySelector = LabelSelector(matchLabels: ["role": "gateway"])
                policy.healthChecks.interval = checks.0
                policy.healthChecks.multiplier = checks.1
                return policy
            }
            let plan = Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: [Self.pod()])
            #expect(plan.liveness.sessions.count == 3)
            for session in plan.liveness.sessions {
                #expect(session.interval == expected.0 && session.multiplier == expected.1, "\(order)")
            }
        }
    }

    /// A Node that was made anew under another name while the old object is still there.
    @Test func nodesWithOneAddressAreWatchedTogether() {
        var inventory = Self.inventory(Self.policy())
        inventory.nodes["n3"]?.overlayAddresses = TestCluster.node(2).overlayAddresses
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: [Self.pod()])
        #expect(plan.liveness.sessions.map(\.ends) == [[Self.end("n2"), Self.end("n3")], [Self.end("n4")]])
        #expect(Set(plan.liveness.slots[0].candidates.map(\.end)) == Set(plan.liveness.sessions.flatMap(\.ends)))
        let numbers = plan.host.nextHops.map(\.id)
        #expect(Set(numbers).count == numbers.count)
    }

    // MARK: the decision

    static func candidates(_ names: [String]) -> [GatewayCandidate] { names.map { GatewayCandidate(node: $0) } }
    static func health(_ states: [String: GatewayHealth.State], steady: [String] = [], doubtful: Set<String> = [])
        -> GatewayHealth
    {
        var health = GatewayHealth()
        for (node, state) in states { health.states[end(node)] = state }
        health.steady = Set(steady.map(end))
        health.doubtful = doubtful
        return health
    }

    @Test(
        arguments: [
            // Nothing is known: the first.
            ([:], [], [], false, nil, "n1"), ([:], [], [], false, "n2", "n2"),
            // What is up goes before what is not known.
            (["n2": .up], [], [], false, nil, "n2"),
            // Sticky, also to one of which nothing was heard yet.
            (["n1": .up, "n2": .up], [], [], false, "n2", "n2"), (["n1": .up], [], [], false, "n2", "n2"),
            // Down: the first that is up, else the first that is not known.
            (["n1": .down, "n3": .up], [], [], false, "n1", "n3"), (["n1": .down], [], [], false, "n1", "n2"),
            (["n1": .down, "n2": .down, "n3": .down], [], [], false, "n1", "none"),
            // Taken back only where asked, and only by one that has been up for a while.
            (["n1": .up, "n2": .up], ["n1"], [], true, "n2", "n1"), (["n1": .up, "n2": .up], [], [], true, "n2", "n2"),
            (["n1": .up, "n2": .up], ["n1"], [], false, "n2", "n2"),
            (["n2": .up, "n3": .up], ["n3"], [], true, "n2", "n2"),
            // Kubernetes has given a node up: it ranks lower, unless its echoes come back.
            ([:], [], ["n1"], false, nil, "n2"), ([:], [], ["n1"], false, "n1", "n2"),
            (["n1": .up], [], ["n1"], false, "n1", "n1"), (["n1": .up], [], ["n1"], false, nil, "n1"),
        ] as [([String: GatewayHealth.State], [String], Set<String>, Bool, String?, String)])
    func theDecision(
        _ states: [String: GatewayHealth.State], _ steady: [String], _ doubtful: Set<String>, _ takesBack: Bool,
        _ previous: String?, _ expected: String
    ) {
        let choice = GatewayActivation.choose(
            Self.candidates(["n1", "n2", "n3"]), takesBack: takesBack,
            health: Self.health(states, steady: steady, doubtful: doubtful),
            previous: previous.map { GatewayCandidate(node: $0) })
        #expect((choice.candidate?.node ?? "none") == expected)
    }

    @Test(arguments: 0..<200 as Range<UInt64>) func theDecisionByProperty(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let names = (1...5).map { "n\($0)" }
        var previous: GatewayCandidate?
        for _ in 0..<50 {
            let states = Dictionary(
                uniqueKeysWithValues: names.map {
                    ($0, [GatewayHealth.State.unknown, .up, .down].randomElement(using: &random)!)
                })
            let steady = names.filter { states[$0] == .up && Bool.random(using: &random) }
            let takesBack = Bool.random(using: &random)
            let candidates = Self.candidates(names.shuffled(using: &random))
            let choice = GatewayActivation.choose(
                candidates, takesBack: takesBack, health: Self.health(states, steady: steady), previous: previous)
            guard let chosen = choice.candidate else {
                #expect(states.values.allSatisfy { $0 == .down })
                previous = nil
                continue
            }
            #expect(states[chosen.node] != .down)
            if let previous, previous != chosen, states[previous.node] != .down {
                // Left alive only for a preferred one that has been up for a while.
                #expect(takesBack && steady.contains(chosen.node))
                #expect(candidates.firstIndex(of: chosen)! < candidates.firstIndex(of: previous)!)
            }
            if states.values.contains(.up), previous.map({ states[$0.node] == .down }) ?? true {
                #expect(states[chosen.node] == .up)
            }
            previous = chosen
        }
    }

    /// Another address or other targets of a policy are another identity, of which nothing is known. The gateway stays, which
    /// may be the only one that lives.
    @Test func aPolicyThatIsEditedStaysWhereItIs() {
        func plan(_ policy: EgressPolicy, _ previous: GatewayActivation.Previous = .init()) -> Plan {
            Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
                inventory: Self.inventory(policy), attachments: [Self.pod()], previous: previous)
        }
        var board = FailOverBoard()
        board.echoes.states = [Self.end("n2"): .down, Self.end("n3"): .up, Self.end("n4"): .up]
        board.prepare(plan(Self.policy()).liveness)
        let edited = plan(
            Self.policy { $0.healthChecks.targets = [HealthTarget("203.0.113.10:443")!] }, board.previous)
        #expect(edited.liveness.slots[0].planned.candidate?.node == "n3")
        let isAhead = board.prepare(edited.liveness)
        #expect(!isAhead && board.choices[edited.liveness.slots[0].key]?.candidate?.node == "n3")
        // Where the exact one is there and down, its node's other address has no precedence.
        let other = GatewayCandidate(node: "n3", egress: EgressSpecification(.untranslated))
        var health = Self.health(["n3": .down, "n2": .up])
        health.states[GatewayEnd(other)] = .up
        let choice = GatewayActivation.choose(
            Self.candidates(["n2", "n3"]) + [other], takesBack: false, health: health,
            previous: GatewayCandidate(node: "n3"))
        #expect(choice.candidate?.node == "n2")
    }

    /// A node's own way out needs no echo, and takes back what it had like every other one.
    @Test(arguments: [true, false]) func theOwnNodeTakesBackWhatItHad(_ takesBack: Bool) {
        let second: Int64 = 1_000_000_000
        var plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n2"),
            inventory: Self.inventory(Self.policy { $0.failBack = takesBack }),
            attachments: [Self.pod()]
        ).liveness
        #expect(plan.own == [Self.end("n2"): .up])
        let slot = plan.slots[0]
        var board = FailOverBoard()
        board.echoes.states = [Self.end("n3"): .up, Self.end("n4"): .up]
        board.prepare(plan, now: 5 * second)
        #expect(board.choices[slot.key]?.candidate?.node == "n2")
        #expect(board.nextChange == 15 * second)
        plan.own = [Self.end("n2"): .down]
        board.prepare(plan, now: 100 * second)
        #expect(board.decide(now: 100 * second).map(\.to.candidate?.node) == ["n3"])
        #expect(board.nextChange == nil)
        plan.own = [Self.end("n2"): .up]
        board.prepare(plan, now: 200 * second)
        // Another plan is no other beginning.
        board.prepare(plan, now: 205 * second)
        #expect(board.nextChange == 210 * second)
        #expect(board.decide(now: 210 * second - 1).isEmpty)
        #expect(board.decide(now: 210 * second).map(\.to.candidate?.node) == (takesBack ? ["n2"] : []))
        #expect(board.nextChange == nil && board.health.steady == [Self.end("n2")])
    }

    // MARK: a plan and the thread that fails over

    @Test func anOlderPlanNeverOverwritesWhatWasDecided() {
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()])
        var board = FailOverBoard()
        board.prepare(plan.liveness)
        let group = plan.host.nextHops.first { $0.id == plan.liveness.slots[0].id }!
        board.echoes.states[Self.end("n2")] = .down
        let move = board.decide()[0]
        #expect(move.hop != group && board.current(group) == move.hop)
        // The plan is prepared once more, as it was made.
        board.prepare(plan.liveness)
        #expect(board.current(group) == move.hop)
        // The next plan agrees.
        let next = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()], gatewayHealth: board.health,
            previous: board.previous, previousIDs: plan.ids)
        #expect(next.host.nextHops.contains(move.hop))
        #expect(next.host.routes == plan.host.routes)
    }

    /// A plan is older than what the echoes say meanwhile: what is new in it does not start on a gateway that is down.
    @Test func aNewSlotDoesNotStartOnADeadGateway() {
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()])
        let slot = plan.liveness.slots[0]
        #expect(slot.planned.candidate?.node == "n2")
        var board = FailOverBoard()
        board.echoes.states[Self.end("n2")] = .down
        var isAhead = board.prepare(plan.liveness)
        #expect(isAhead && board.choices[slot.key]?.candidate?.node == "n3")
        board = FailOverBoard()
        for node in ["n2", "n3", "n4"] { board.echoes.states[Self.end(node)] = .down }
        board.prepare(plan.liveness)
        #expect(board.choices[slot.key] == .allDown)
        // What the plan says counts where nothing speaks against it.
        board = FailOverBoard()
        board.echoes.states[Self.end("n3")] = .up
        isAhead = board.prepare(plan.liveness)
        #expect(!isAhead && board.choices[slot.key]?.candidate?.node == "n2")
    }

    /// Where something is refused for good, slots come and go all the same.
    @Test func whatIsGoneFromTheKernelIsForgottenAlthoughSomethingIsRefused() {
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()])
        let slot = plan.liveness.slots[0]
        var board = FailOverBoard()
        board.prepare(plan.liveness)
        board.settle(LivenessPlan(), inKernel: [slot.id])
        // Still there, so it is switched still.
        board.echoes.states[Self.end("n2")] = .down
        #expect(board.decide().map(\.to.candidate?.node) == ["n3"])
        board.settle(LivenessPlan(), inKernel: [slot.id + 1])
        #expect(board.slots.isEmpty && board.choices.isEmpty && board.previous.places.isEmpty)
        var retired = AssignedIDs.Retired()
        retired.nextHops = [1, 2]
        retired.tables = [3]
        retired.tunnels = [4]
        var used = AssignedIDs.Retired()
        used.nextHops = [2]
        used.tunnels = [4, 5]
        retired.formIntersection(used)
        #expect(retired.nextHops == [2] && retired.tables.isEmpty && retired.tunnels == [4])
    }

    @Test func aGatewayThatCannotBeWatchedIsNamed() {
        func plan(used count: UInt32) -> Plan {
            var ids = AssignedIDs()
            ids.retired.nextHops = Set(Ownership.firstNextHop..<Ownership.firstNextHop + count)
            return Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
                inventory: Self.inventory(Self.policy()), attachments: [Self.pod()], previousIDs: ids)
        }
        let some = plan(used: 4000)
        #expect(some.liveness.sessions.count == 3)
        #expect(!some.warnings.contains { $0.contains("is alive") })
        let many = plan(used: 4095)
        #expect(many.liveness.sessions.isEmpty)
        #expect(many.warnings.contains { $0.contains("whether gateway n2 (and 2 more) is alive") }, "\(many.warnings)")
    }

    @Test func whatTheKernelHadIsActiveAfterARestart() {
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()])
        let slot = plan.liveness.slots[0]
        var previous = GatewayActivation.Previous()
        previous.ways = [slot.key: slot.candidates[2].wayKey]
        let after = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()], previous: previous,
            previousIDs: plan.ids)
        #expect(after.attachments[0].policies[0].gateway == "n4")
    }

    @Test func allDownIsABlackhole() {
        var health = GatewayHealth()
        for node in ["n2", "n3", "n4"] { health.states[Self.end(node)] = .down }
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()], gatewayHealth: health)
        let group = plan.host.nextHops.first { $0.id == plan.liveness.slots[0].id }!
        let member = plan.host.nextHops.first { [$0.id] == group.target.members }
        #expect(member?.target == .blackhole)
        #expect(plan.attachments[0].policies[0].isDown)
        #expect(plan.policies[0].problem.contains("all its gateways are down"))
    }

    /// A policy with targets is another identity: its gateway may be down where the same address without them is not.
    @Test func targetsMakeAnIdentityOfTheirOwn() {
        let plain = EgressSpecification()
        let checked = EgressSpecification(targets: [HealthTarget("203.0.113.10:443")!])
        #expect(EgressIdentity(plain) == .defaultAddress)
        #expect(EgressIdentity(checked) != .defaultAddress)
        let policy = Self.policy { $0.healthChecks.targets = checked.targets }
        let gateway = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n2"), inventory: Self.inventory(policy),
            attachments: [])
        #expect(gateway.liveness.targetChecks.map(\.egress) == [checked])
        #expect(gateway.host.firewall?.chains.first { $0.name == "postrouting" }?.rules.isEmpty == false)
        let silent = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n2"), inventory: Self.inventory(policy),
            attachments: [],
            unreachable: {
                var verdicts = TargetVerdicts(answering: [checked])
                for _ in 0..<3 { verdicts.took(checked, answers: false) }
                return verdicts
            }())
        #expect(silent.host.firewall?.chains.first { $0.name == "postrouting" }?.rules.isEmpty == true)
        #expect(silent.warnings.contains { $0.contains("no answer") })
    }

    /// A gateway may ask for fewer echoes, and never for more than a policy says.
    @Test(
        arguments: [
            (nil, 100, 100), ("400", 100, 400), ("400", 1000, 1000), ("10000", 100, 10_000), ("10", 100, 100),
            ("20000", 100, 100), ("-5", 100, 100), ("often", 100, 100),
        ] as [(String?, Int, Int)])
    func aGatewayCanAskForLongerIntervals(_ annotation: String?, _ own: Int, _ expected: Int) {
        var inventory = Self.inventory(Self.policy { $0.healthChecks.interval = own })
        inventory.nodes["n3"]?.annotations[EchoPace.annotation] = annotation
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: [Self.pod()])
        let session = plan.liveness.sessions.first { $0.end.node == "n3" }
        #expect(session?.interval == expected && session?.multiplier == 3)
        #expect(session?.asked == (expected == own ? nil : expected))
        #expect(plan.liveness.sessions.filter { $0.end.node != "n3" }.allSatisfy { $0.interval == own })
        #expect(
            plan.warnings.contains { $0.contains("noticed after \(expected * 3) ms") } == (expected != own),
            "\(plan.warnings)")
    }

    @Test(
        arguments: [
            // Few: each policy's own interval. Two policies with one identity each are twice as many echoes.
            ([100], 3, nil, nil), ([100], 2000, nil, nil), ([100], 2001, nil, 150), ([100], 5000, nil, 350),
            ([100, 100], 1001, nil, 150), ([100, 1000], 1900, nil, 150), ([1000], 5000, nil, nil),
            ([20], 400, nil, nil), ([20], 401, nil, 50), ([100], 1_000_000, nil, 10_000), ([], 5000, nil, nil),
            // Some nodes more or fewer change nothing.
            ([100], 2500, 200, 200), ([100], 3000, 200, 200), ([100], 3900, 200, 200), ([100], 2300, 200, 200),
            // Many more or fewer do.
            ([100], 4100, 200, 300), ([100], 2200, 200, 150), ([100], 1501, 150, 150), ([100], 1500, 150, nil),
            // What somebody else has written is corrected.
            ([100], 3, 10_000, nil), ([100], 5000, -7, 350),
        ] as [([Int], Int, Int?, Int?)])
    func whatAGatewayAsksFor(_ intervals: [Int], _ senders: Int, _ before: Int?, _ expected: Int?) {
        #expect(EchoPace.asked(intervals, senders: senders, before: before) == expected)
        // Asked once more, it asks for the same.
        #expect(EchoPace.asked(intervals, senders: senders, before: expected) == expected)
    }

    /// A node that comes and goes never makes a gateway change its mind twice.
    @Test(arguments: 0..<50 as Range<UInt64>) func whatAGatewayAsksForDoesNotFlap(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let intervals = (0..<Int.random(in: 1...5, using: &random)).map { _ in
            [20, 50, 100, 200, 1000].randomElement(using: &random)!
        }
        let senders = Int.random(in: 100...20_000, using: &random)
        var before = EchoPace.asked(intervals, senders: senders, before: nil)
        var raises = 0
        for _ in 0..<100 {
            let around = senders + Int.random(in: -senders / 20...senders / 20, using: &random)
            let now = EchoPace.asked(intervals, senders: around, before: before)
            if now ?? 0 > before ?? 0 { raises += 1 }
            before = now
        }
        // It may find that less is enough, and does not take that back.
        #expect(raises <= 1, "\(intervals) \(senders)")
    }

    /// As a gateway a node knows how often each of its identities is asked for; its own pods' policies do not count.
    @Test func aGatewayKnowsWhatIsSentToIt() {
        var inventory = Self.inventory(Self.policy())
        var other = Self.policy { $0.healthChecks.interval = 50 }
        other.name = "other"
        var bank = Self.policy { $0.healthChecks.interval = 500 }
        bank.name = "bank"
        bank.egress = .untranslated
        inventory.policies += [other, bank]
        func intervals(_ node: String) -> [Int] {
            Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: node), inventory: inventory,
                attachments: []
            ).liveness.servedIntervals
        }
        #expect(intervals("n2") == [50, 500] && intervals("n1") == [])
    }

    /// A helper that starts does not put an identity into service whose targets nobody has asked yet.
    @Test func targetsThatWereNeverAskedAreNoTargetsThatAnswer() {
        let checked = EgressSpecification(targets: [HealthTarget("203.0.113.10:443")!])
        let policy = Self.policy { $0.healthChecks.targets = checked.targets }
        func plan(_ verdicts: TargetVerdicts, carrier: Bool = true) -> Plan {
            var facts = LocalFacts(
                nodeName: "n2", underlayDevice: "eth0",
                interfaces: [
                    .init(
                        name: "eth0", addresses: [IPNetwork("10.0.0.12/24")!], hostAddresses: [IPAddress("10.0.0.12")!])
                ], isLive: true)
            facts.interfaces[0].hasCarrier = carrier
            return Planner.plan(
                configuration: Configuration(), localFacts: facts, inventory: Self.inventory(policy), attachments: [],
                unreachable: verdicts)
        }
        let end = GatewayEnd(node: "n2", identity: EgressIdentity(checked))
        let fresh = plan(TargetVerdicts(answering: []))
        // It takes nothing from others, echoes included; and pods here do not leave it before somebody knows better.
        #expect(fresh.liveness.own == [end: .unknown])
        #expect(fresh.host.firewall?.chains.first { $0.name == "postrouting" }?.rules.isEmpty == true)
        #expect(fresh.warnings.contains { $0.contains("no answer yet from 203.0.113.10:443") }, "\(fresh.warnings)")
        // It is asked, nevertheless.
        #expect(fresh.liveness.targetChecks.map(\.egress) == [checked])
        var verdicts = TargetVerdicts(answering: [])
        for _ in 0..<3 { verdicts.took(checked, answers: false) }
        #expect(plan(verdicts).liveness.own == [end: .down])
        verdicts.took(checked, answers: true)
        #expect(plan(verdicts).liveness.own == [end: .up])
        // What was served before a restart is served after it, and nobody asks on a desk.
        #expect(plan(TargetVerdicts(answering: [checked])).liveness.own == [end: .up])
        #expect(plan(TargetVerdicts()).liveness.own == [end: .up])
        // While it cannot be asked, what is known stays.
        let cut = plan(verdicts, carrier: false)
        #expect(cut.liveness.targetChecks.isEmpty && cut.liveness.checkedEgresses == [checked])
        #expect(cut.liveness.own == [end: .down])
    }

    @Test func threeMissesInARowTakeAnIdentityOutOfServiceAndOneAnswerPutsItBack() {
        let one = EgressSpecification(targets: [HealthTarget("203.0.113.10:443")!])
        let other = EgressSpecification(.untranslated, targets: [HealthTarget("203.0.113.11:443")!])
        var verdicts = TargetVerdicts(answering: [one])
        for answers in [false, false, true, false, false] { verdicts.took(one, answers: answers) }
        #expect(verdicts[one] == nil && verdicts.silent.isEmpty)
        verdicts.took(one, answers: false)
        #expect(verdicts[one] == "no answer from 203.0.113.10:443" && verdicts.silent.count == 1)
        // Never served: not served after one miss either.
        verdicts.took(other, answers: false)
        #expect(verdicts[other] == "no answer yet from 203.0.113.11:443")
        // The old verdict stays while nobody can ask.
        verdicts.keep([one])
        #expect(verdicts[one] == "no answer from 203.0.113.10:443")
        verdicts.took(one, answers: true)
        #expect(verdicts[one] == nil && verdicts.silent.isEmpty)
        verdicts.keep([])
        #expect(verdicts.answering == [])
    }

    @Test func whereTheLocalRuleIsFirstStatusSaysSo() {
        var facts = LocalFacts(nodeName: "n1")
        facts.localRulePriority = 0
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: facts, inventory: Self.inventory(Self.policy()),
            attachments: [Self.pod()])
        #expect(plan.liveness.obstacle.contains("ip rule add pref 100 lookup local"))
        facts.localRulePriority = 100
        let moved = Planner.plan(
            configuration: Configuration(), localFacts: facts, inventory: Self.inventory(Self.policy()),
            attachments: [Self.pod()])
        #expect(moved.liveness.obstacle.isEmpty)
    }

    @Test func theSmallestMTUOfAllCandidatesCounts() {
        // All tunnels of a node have one MTU today; a candidate without a tunnel does not count.
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"),
            inventory: Self.inventory(Self.policy()), attachments: [Self.pod()])
        #expect(plan.attachments[0].mtu == plan.host.links.map(\.mtu).min().map { $0 - 10 })
    }
}

import Model
import TestSupport
import Testing

@testable import Planner

struct PlanTests {
    func entry(_ plan: Plan, _ pod: String) throws -> AttachmentPlan {
        try #require(plan.attachments.first { $0.attachment.podName == pod })
    }

    @Test func aSelectedPodHasARuleATableAndABackstop() throws {
        let plan = TestCluster.plan(node: "n1")
        let pod = try entry(plan, "a")
        let table = try #require(pod.table)
        #expect(table >= 47000)
        #expect(pod.policies.map(\.name) == ["shop", "shop-bank"])
        #expect(pod.policies.map(\.gateway) == ["n3", "n3"])
        let rules = plan.host.rules.filter { $0.priority == 106 }
        #expect(rules == [Rule(priority: 106, source: IPNetwork("10.244.1.10/32"), table: table)])
        // And once more, for whoever deletes it.
        #expect(plan.host.rules.contains(Rule(priority: 107, source: IPNetwork("10.244.1.10/32"), table: table)))
        for route in plan.host.routes {
            guard case .nextHop = route.kind else { continue }
            #expect(
                plan.host.routes.contains(
                    Route(table: table, destination: route.destination, kind: .unreachable, metric: 4_278_198_272)))
        }
        #expect(try entry(plan, "b").table == nil)
    }

    @Test func clusterAddressesAreAlwaysThrownAndNoOthers() throws {
        let plan = TestCluster.plan(node: "n1")
        let table = try #require(try entry(plan, "a").table)
        let thrown = plan.host.routes.filter { $0.table == table && $0.kind == .throwOn }.map(\.destination)
        let kept = [
            "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24", "10.0.0.11/32", "10.0.0.12/32", "10.0.0.13/32",
            "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "203.0.113.99/32",
        ].compactMap { IPNetwork($0) }
        for network in kept { #expect(thrown.contains { $0.contains(network) }, "\(network)") }
        // Networks side by side are one; there are exactly as many addresses as were to be kept.
        func size(_ networks: [IPNetwork]) -> UInt64 { networks.reduce(0) { $0 + (1 << UInt64(32 - $1.prefixLength)) } }
        #expect(size(thrown) == size(kept))
    }

    @Test(arguments: [(Configuration.TunnelProtocol.ipip, 1420, 1412), (.fou, 1412, 1404), (.vxlan, 1400, 1400)])
    func mtusAreWorkedOutPerPath(_ tunnelProtocol: Configuration.TunnelProtocol, _ plain: Int, _ keyed: Int) throws {
        let plan = TestCluster.plan(node: "n1", tunnelProtocol: tunnelProtocol)
        let routes = try entry(plan, "a").podRoutes
        #expect(routes.first { $0.destination.prefixLength == 0 }?.mtu == plain)
        #expect(routes.first { $0.destination.prefixLength == 24 }?.mtu == keyed)
    }

    @Test func theSameInventoryInAnyOrderGivesTheSamePlan() {
        var shuffled = TestCluster.inventory
        shuffled.policies.reverse()
        shuffled.pods.reverse()
        for node in ["n1", "n2", "n3"] {
            #expect(TestCluster.plan(node: node, inventory: shuffled) == TestCluster.plan(node: node))
        }
    }

    @Test func aNewPolicyNeverRenumbersALiveOne() throws {
        let before = TestCluster.plan(node: "n1")
        var inventory = TestCluster.inventory
        inventory.policies.append(TestCluster.policy("aaa", app: "other", egress: .address(IPAddress(v4: 0xC000_0220))))
        let after = TestCluster.plan(node: "n1", inventory: inventory, previousIDs: before.ids)
        for (key, number) in before.ids.nextHops { #expect(after.ids.nextHops[key] == number) }
        for (key, number) in before.ids.tunnels { #expect(after.ids.tunnels[key] == number) }
        for (key, number) in before.ids.tables { #expect(after.ids.tables[key] == number) }
    }

    @Test func theFirstNodeByNameIsTheGateway() throws {
        var inventory = TestCluster.inventory
        inventory.nodes["n2"]?.labels = ["zone": "z3"]
        #expect(try entry(TestCluster.plan(node: "n1", inventory: inventory), "a").policies.first?.gateway == "n2")
        inventory.nodes["n2"]?.overlayAddresses = []
        #expect(try entry(TestCluster.plan(node: "n1", inventory: inventory), "a").policies.first?.gateway == "n3")
    }

    @Test func withoutAGatewayOnlyTheBackstopIsLeft() throws {
        var inventory = TestCluster.inventory
        inventory.policies = [TestCluster.policy("lost", gateway: "nowhere")]
        let plan = TestCluster.plan(node: "n1", inventory: inventory)
        let kinds = plan.host.routes.filter {
            $0.destination.prefixLength == 0 && $0.table >= Ownership.firstTable
        }.map(\.kind)
        #expect(kinds == [.unreachable])
        #expect(plan.policies.first?.problem.isEmpty == false)
    }

    @Test(arguments: [
        (["enable-bpf-masquerade": "true", "kube-proxy-replacement": "true", "devices": "eth0"], true),
        (["enable-bpf-masquerade": "true", "kube-proxy-replacement": "true", "devices": "eth0 eth1"], false),
        (
            [
                "enable-bpf-masquerade": "true", "kube-proxy-replacement": "true", "devices": "eth0",
                "enable-endpoint-routes": "true",
            ], false
        ),
        (
            [
                "enable-bpf-masquerade": "true", "kube-proxy-replacement": "true", "devices": "eth0",
                "enable-host-legacy-routing": "true",
            ], false
        ),
        (["kube-proxy-replacement": "false"], false),
    ])
    func aNodeThatSkipsTheLookupRefusesPoliciesAndSaysWhy(_ settings: [String: String], _ refuses: Bool) throws {
        var inventory = TestCluster.inventory
        inventory.cilium = CiliumSettings(data: settings)
        for node in ["n1", "n3"] {
            let plan = TestCluster.plan(node: node, inventory: inventory)
            let pod = try entry(plan, node == "n1" ? "a" : "c")
            #expect(pod.refusal.contains("endpointRoutes.enabled=true") == refuses, "\(pod.refusal)")
            // An ADD is refused; these are live pods, and of what the policy claims nothing leaves.
            #expect(pod.holds.isEmpty != refuses)
            // A gateway does its work, also for its own pods.
            guard node == "n1" else { continue }
            #expect(pod.isHeld == refuses)
            let ways = plan.host.routes.filter { route in
                if route.table == pod.table, case .nextHop = route.kind { true } else { false }
            }
            #expect(ways.isEmpty == refuses)
        }
    }

    @Test func annotationsComeBeforeSelectorsAndDefaults() throws {
        var inventory = TestCluster.inventory
        inventory.pods[0].annotations = ["culvert.dev/egress-policy": "shop-bank"]
        #expect(
            try entry(TestCluster.plan(node: "n1", inventory: inventory), "a").policies.map(\.name) == ["shop-bank"])
        inventory.pods[0].annotations = ["culvert.dev/egress-policy": "none"]
        var configuration = Configuration()
        configuration.allowNone = try NamespaceList(["default"])
        let free = Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: []))
        #expect(try entry(free, "a").policies.isEmpty && entry(free, "a").refusal == "")
        inventory.pods[0].annotations = ["culvert.dev/egress-policy": "unknown"]
        #expect(try entry(TestCluster.plan(node: "n1", inventory: inventory), "a").refusal.contains("unknown"))
    }

    @Test func aCollidingKeyRefusesTheLaterPolicy() throws {
        var inventory = TestCluster.inventory
        // Two addresses whose FNV-1a keys fold to one VNI are rare; the same key is what counts, so it is made.
        let first = EgressPolicy.Egress.interface("eth1")
        inventory.policies = [
            TestCluster.policy("one", egress: first), TestCluster.policy("two", egress: first),
        ]
        #expect(TestCluster.plan(node: "n1", inventory: inventory).policies.allSatisfy { $0.problem.isEmpty })
    }

    @Test func fnvIsTheStandards() {
        // Test vectors of draft-eastlake-fnv, section 7.
        #expect(EgressIdentity.fnv1a("") == 0x811C_9DC5)
        #expect(EgressIdentity.fnv1a("a") == 0xE40C_292C)
        #expect(EgressIdentity.fnv1a("foobar") == 0xBF9C_F968)
    }
}

/// A generator that gives the same numbers in every run.
struct FixedGenerator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ (state >> 29)
    }
}

struct EgressPolicyRoutesTests {
    /// What the rules say about one address, without any table.
    func expected(_ address: IPAddress, _ policies: [EgressPolicy], kept: [IPNetwork]) -> Int? {
        if kept.contains(where: { $0.contains(address) }) { return nil }
        var best: (length: Int, index: Int)?
        for (index, policy) in policies.enumerated() where !policy.exclusions.contains(where: { $0.contains(address) })
        {
            let longest = policy.destinations.filter { $0.contains(address) }.map(\.prefixLength).max()
            if let longest, longest > best?.length ?? -1 { best = (longest, index) }
        }
        return best?.index
    }

    @Test func longestPrefixMatchInTheTableIsTheRulesVerdictForEveryAddress() {
        var random = FixedGenerator(state: 7)
        func network() -> IPNetwork {
            // A small space, so that prefixes meet.
            IPNetwork(
                IPAddress(v4: UInt32.random(in: 0...255, using: &random) << 24),
                prefixLength: Int.random(in: 0...8, using: &random))
        }
        for _ in 0..<2000 {
            let policies = (0..<Int.random(in: 1...4, using: &random)).map { index in
                var policy = TestCluster.policy("p\(index)")
                policy.destinations = (0..<Int.random(in: 1...4, using: &random)).map { _ in network() }
                policy.exclusions = (0..<Int.random(in: 0...3, using: &random)).map { _ in network() }
                return policy
            }
            let kept = (0..<Int.random(in: 0...2, using: &random)).map { _ in network() }
            let verdicts = EgressPolicyRoutes.verdicts(
                policies: policies.map {
                    AssignedPolicy(
                        source: $0.source, name: $0.name, destinations: $0.destinations, exclusions: $0.exclusions)
                }, kept: KeptNetworks(v4: kept).v4, family: .v4)
            let ranges = EgressPolicyRoutes.claimedRanges(verdicts)
            for block: UInt32 in 0...255 {
                let address = IPAddress(v4: block << 24 | 5)
                let match = verdicts.filter { $0.prefix.contains(address) }.max {
                    $0.prefix.prefixLength < $1.prefix.prefixLength
                }
                var actual: Int?
                if case .claimed(let index)? = match?.verdict { actual = index }
                #expect(actual == expected(address, policies, kept: kept))
                #expect(ranges.contains { $0.contains(address.v4Value) } == (actual != nil))
            }
        }
    }

    @Test(arguments: ["enable-egress-gateway", "enable-ipv4-egress-gateway"])
    func anActiveEgressGatewayOfCiliumIsReported(_ key: String) throws {
        var inventory = TestCluster.inventory
        #expect(
            !TestCluster.plan(node: "n1", inventory: inventory).warnings.contains { $0.contains("own egress gateway") })
        inventory.cilium?.data[key] = "true"
        var ours = TestCluster.policy("ours", app: "other")
        ours.source = .culvert
        inventory.policies.append(ours)
        let plan = TestCluster.plan(node: "n1", inventory: inventory)
        #expect(plan.warnings.contains { $0.contains("egressGateway.enabled=false") })
        let problems = Dictionary(uniqueKeysWithValues: plan.policies.map { ($0.name, $0.problem) })
        #expect(problems["shop"]?.contains("acts on this policy too") == true && problems["ours"] == "")
        var configuration = Configuration()
        configuration.honorCiliumPolicies = false
        let without = Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory, attachments: [])
        #expect(without.warnings.contains { $0.contains("before any route is looked up") })
    }
}

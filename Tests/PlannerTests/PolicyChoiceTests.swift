import Model
import TestSupport
import Testing

@testable import Planner

/// What a pod's annotation and `defaultPolicy` may choose, and what becomes of a choice that is not to be had.
struct PolicyChoiceTests {
    /// One pod of `default` with the label `app: shop` on n1, as an attachment that had `before`.
    func plan(
        _ policies: [EgressPolicy], annotation: String? = nil, defaultPolicy: String = "",
        had before: [AssignedPolicy]? = nil, namespace: String = "default", labels: [String: String] = ["app": "shop"],
        configuration: Configuration = Configuration(), change: (inout Model.Attachment) -> Void = { _ in }
    ) -> AttachmentPlan {
        var inventory = TestCluster.inventory
        inventory.policies = policies
        inventory.pods = []
        var attachment = Model.Attachment(
            containerID: "c", interfaceName: "eth0", podNamespace: namespace, podName: "a",
            addresses: [IPNetwork("10.244.1.10/32")!], labels: labels, defaultPolicy: defaultPolicy)
        attachment.assignment = before
        if let annotation { attachment.annotations = [Planner.policyAnnotation: annotation] }
        change(&attachment)
        return Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: [attachment]
        ).attachments[0]
    }

    func had(_ name: String, _ destination: String = "0.0.0.0/0") -> AssignedPolicy {
        AssignedPolicy(
            source: .culvert, name: name, destinations: [IPNetwork(destination)!], candidates: [.init(node: "n3")])
    }

    /// An EgressPolicy whose only selector is for nodes of this zone.
    func policy(_ name: String, nodesOf zone: String, app: String = "shop") -> EgressPolicy {
        var policy = TestCluster.policy(name, app: app, source: .culvert)
        policy.selectors[0].node = LabelSelector(matchLabels: ["zone": zone])
        return policy
    }

    /// A runtime always names a UID; a pod that somebody wrote into a file by hand has none. Another UID is another pod.
    @Test(arguments: [("", true), ("u-1", true), ("u-2", false)])
    func aPodOfAnInventoryByHandNeedsNoUID(_ uid: String, _ isMeant: Bool) {
        var inventory = TestCluster.inventory
        inventory.policies = [TestCluster.policy("p", app: "shop", source: .culvert)]
        var pod = TestCluster.pod("a", node: "n1", address: "", labels: ["app": "shop"])
        (pod.uid, pod.addresses) = (uid, [])
        inventory.pods = [pod]
        let attachment = Model.Attachment(
            containerID: "c", interfaceName: "eth0", podNamespace: "default", podName: "a", podUID: "u-1",
            addresses: [IPNetwork("10.244.1.10/32")!])
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: [attachment])
        #expect(plan.attachments[0].assigned.map(\.name) == (isMeant ? ["p"] : []))
    }

    // MARK: a nodeSelector that excludes this node

    @Test(arguments: [true, false])
    func aNamedPolicyThatIsForOtherNodesIsRefused(_ byAnnotation: Bool) {
        func plan(_ zone: String, had: [AssignedPolicy]? = nil) -> AttachmentPlan {
            self.plan(
                [policy("far", nodesOf: zone)], annotation: byAnnotation ? "far" : nil,
                defaultPolicy: byAnnotation ? "" : "far", had: had, labels: byAnnotation ? ["app": "shop"] : [:])
        }
        #expect(plan("z1").refusal == "" && plan("z1").assigned.map(\.name) == ["far"])
        let refused = plan("z2")
        #expect(
            refused.refusal
                == (byAnnotation ? "the annotation culvert.dev/egress-policy" : "defaultPolicy")
                + " names the policy \"far\", whose nodeSelector (zone=z2) does not match this node")
        // A live pod is held for what the policy claims, or keeps what it had of it.
        #expect(refused.isHeld && refused.holds == [refused.refusal])
        let live = plan("z2", had: [had("far")])
        #expect(!live.isHeld && live.holds == [live.refusal] && live.policies.map(\.gateway) == ["n3"])
    }

    @Test func aSelectorWithoutANodeSelectorIsForEveryNode() {
        var policy = policy("far", nodesOf: "z2")
        policy.selectors.append(.init(pod: LabelSelector(matchLabels: ["app": "shop"])))
        #expect(plan([policy], annotation: "far").refusal == "")
        // The pod's own selector must match here, not only somewhere.
        policy.selectors[1].pod = LabelSelector(matchLabels: ["app": "bank"])
        #expect(plan([policy], annotation: "far").refusal.contains("allowAnnotation"))
    }

    // MARK: containers that nobody told anything of

    @Test func aContainerWithoutIdentityAndLabelsIsSaidToBeSelectedByNobody() {
        func warnings(
            _ policies: [EgressPolicy], namespace: String = "", labels: [String: String] = [:],
            defaultPolicy: String = ""
        ) -> [String] {
            var inventory = TestCluster.inventory
            inventory.policies = policies
            let attachment = Model.Attachment(
                containerID: "c", interfaceName: "eth0", podNamespace: namespace, podName: "web",
                addresses: [IPNetwork("10.244.1.10/32")!], labels: labels, defaultPolicy: defaultPolicy)
            return Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: [attachment]
            ).warnings.filter { $0.contains("no policy can select it") }
        }
        let shop = TestCluster.policy("shop")
        #expect(
            warnings([shop]) == [
                "1 container came without a Kubernetes identity and without labels, so no policy can select it: web; "
                    + Planner.labelsRemedy
            ])
        #expect(warnings([]) == [] && warnings([shop], namespace: "default") == [])
        #expect(warnings([shop], labels: ["a": "b"]) == [] && warnings([shop], defaultPolicy: "shop") == [])
        var everybody = shop
        everybody.selectors = [.init(pod: LabelSelector())]
        #expect(warnings([everybody]) == [])
    }

    // MARK: permission for the annotation

    static let other = "the annotation culvert.dev/egress-policy names the policy \"bank\", which"

    @Test func aPodMayNameOnlyPoliciesThatSelectItOrPermitItsNamespace() throws {
        let selecting = TestCluster.policy("bank", source: .culvert)
        #expect(plan([selecting], annotation: "bank").assigned.map(\.name) == ["bank"])
        var bank = TestCluster.policy("bank", app: "bank", source: .culvert)
        #expect(
            plan([bank], annotation: "bank").refusal
                == Self.other
                + " does not permit it for pods of the namespace default: add the namespace to the policy's allowAnnotation"
        )
        for (allowed, permits) in [(["default"], true), (["other"], false), (["other", "*"], true), ([], false)] {
            bank.allowAnnotation = try NamespaceList(allowed)
            #expect(plan([bank], annotation: "bank").refusal.isEmpty == permits, "\(allowed)")
        }
        bank.allowAnnotation = try NamespaceList(["default"])
        #expect(plan([bank], annotation: "bank", namespace: "").refusal.contains("containers without a namespace"))
        // Cilium's object has no such field.
        let cilium = TestCluster.policy("bank", app: "bank")
        #expect(plan([cilium], annotation: "bank").refusal.contains("only an EgressPolicy can permit others"))
        // The node's administrator needs no permission.
        #expect(plan([cilium], defaultPolicy: "bank").assigned.map(\.name) == ["bank"])
    }

    @Test func noPolicyAtAllIsForNamespacesThatMayChooseIt() throws {
        let shop = TestCluster.policy("shop")
        let refused = plan([shop], annotation: "none")
        #expect(
            refused.refusal
                == "the annotation culvert.dev/egress-policy: none is not permitted for pods of the namespace default: add the namespace to egress.allowNone in the helper's configuration"
        )
        #expect(refused.isHeld && refused.assigned.map(\.name) == ["shop"], "what selects it holds it")
        var configuration = Configuration()
        configuration.allowNone = try NamespaceList(["default"])
        let free = plan([shop], annotation: "none", configuration: configuration)
        #expect(free.refusal == "" && free.assigned == [] && free.grantedAnnotation == "none")
        #expect(!plan([shop], annotation: "none", namespace: "other", configuration: configuration).refusal.isEmpty)
    }

    @Test(arguments: ["bank", "none", "bad", "far"])
    func aLivePodGainsNothingByAnAnnotationThatItMayNotHave(_ wanted: String) {
        var bad = TestCluster.policy("bad", app: "x", destinations: ["198.51.100.0/24"], source: .culvert)
        bad.refusal = "spec.later is not supported by this release"
        let policies = [
            TestCluster.policy("shop"), TestCluster.policy("bank", app: "bank", destinations: ["198.51.100.0/24"]),
            bad, policy("far", nodesOf: "z2", app: "x"),
        ]
        let shop = AssignedPolicy(
            source: .cilium, name: "shop", destinations: [.everythingV4], candidates: [.init(node: "n3")])
        let pod = plan(policies, annotation: wanted, had: [shop])
        #expect(pod.assigned.map(\.name) == ["shop"] && !pod.isHeld && pod.holds == [pod.refusal])
        #expect(
            pod.policies.map(\.gateway) == ["n3"] && pod.assigned[0].slot == shop.slot, "it goes on with what it had")
        // Where it had nothing, what it names and what selects it is held.
        let new = plan(policies, annotation: wanted, had: [])
        #expect(new.assigned.map(\.name) == ["shop"] && new.isHeld)
        let unselected = plan(policies, annotation: wanted, had: [], labels: [:])
        #expect(unselected.assigned.map(\.name) == (wanted == "none" ? [] : [wanted]))
        #expect(!unselected.refusal.isEmpty && unselected.isHeld == (wanted != "none"))
        // It is let go of what is gone.
        #expect(plan([policies[1]], annotation: "bank", had: [shop]).assigned.map(\.name) == ["bank"])
    }

    /// An adopted pod had no ADD that could have been refused: it does not get rid of its default policy by an annotation.
    @Test(arguments: ["none", "bank", "nothing"])
    func anAnnotationThatIsNotPermittedFreesNobodyFromTheDefaultPolicy(_ wanted: String) {
        let policies = [
            TestCluster.policy("calm", app: "x"),
            TestCluster.policy("bank", app: "bank", destinations: ["198.51.100.0/24"]),
        ]
        for before in [nil, []] as [[AssignedPolicy]?] {
            let pod = plan(policies, annotation: wanted, defaultPolicy: "calm", had: before, labels: [:])
            #expect(pod.isHeld && !pod.refusal.isEmpty)
            if wanted != "nothing" { #expect(pod.assigned.map(\.name) == ["calm"]) }
        }
    }

    @Test func whatAnAnnotationWasPermittedOnceALivePodGoesOnWith() {
        let shop = [TestCluster.policy("shop")]
        let pod = plan(shop, annotation: "none", had: []) { $0.grantedAnnotation = "none" }
        #expect(pod.assigned == [] && !pod.refusal.isEmpty && pod.grantedAnnotation == "none")
        // So it was given by the release before, which permitted all.
        let old = plan(shop, annotation: "none", had: []) { $0.grantedAnnotation = nil }
        #expect(old.assigned == [] && !old.refusal.isEmpty && old.grantedAnnotation == "none")
        // A new pod has been given nothing yet.
        let new = plan(shop, annotation: "none") { $0.grantedAnnotation = nil }
        #expect(new.isHeld && new.grantedAnnotation == "")
        // And so of a policy that its annotation was permitted to name: it replaces selectors.
        let policies = shop + [TestCluster.policy("bank", app: "bank"), TestCluster.policy("quiet", app: "x")]
        let quiet = AssignedPolicy(
            source: .cilium, name: "quiet", destinations: [.everythingV4], candidates: [.init(node: "n3")])
        let kept = plan(policies, annotation: "bank", had: [quiet]) { $0.grantedAnnotation = "quiet" }
        #expect(kept.assigned.map(\.name) == ["quiet"] && !kept.isHeld && kept.holds == [kept.refusal])
        // Without the annotation it is a pod like any other.
        let like = plan(shop, had: []) { $0.grantedAnnotation = "none" }
        #expect(like.assigned.map(\.name) == ["shop"] && like.refusal == "" && like.grantedAnnotation == "")
    }

    @Test func anAnnotationDecidesAloneWhereTheNamespaceIsPermitted() throws {
        var inventory = TestCluster.inventory
        var bank = TestCluster.policy("bank", app: "bank", source: .culvert)
        bank.allowAnnotation = try NamespaceList(["default"])
        inventory.policies = [bank, TestCluster.policy("shop")]
        var configuration = Configuration()
        configuration.allowNone = try NamespaceList(["free"])
        func isDecided(_ annotation: String, _ namespace: String) -> Bool {
            Planner.isDecided(
                annotation: annotation, namespace: namespace, configuration: configuration, inventory: inventory)
        }
        #expect(isDecided("bank", "default") && !isDecided("bank", "free"))
        #expect(isDecided("none", "free") && !isDecided("none", "default"))
        #expect(!isDecided("shop", "default"), "it takes the pod's labels")
        #expect(isDecided("nowhere", "default"), "refused whatever the pod is")
    }

    // MARK: labels that nobody may give himself

    @Test(arguments: [
        ("io.cilium.k8s.policy.serviceaccount", "teller"), ("io.kubernetes.pod.namespace", "payments"),
        ("io.cilium.k8s.namespace.labels.team", "payments"), ("io.cilium.k8s.policy.cluster", "other"),
    ])
    func labelsThatCiliumDerivesAreNotThePodsToGive(_ key: String, _ value: String) {
        var bank = TestCluster.policy("bank")
        bank.selectors = [.init(pod: LabelSelector(matchLabels: [key: value]))]
        #expect(plan([bank], namespace: "", labels: [key: value]).assigned == [])
        #expect(plan([bank], labels: [key: value]).assigned == [])
        // Only who has it has it.
        let owner = plan([bank], namespace: "payments", labels: [:]) { $0.serviceAccount = "teller" }
        #expect(owner.assigned.isEmpty == (key.contains("labels") || key.contains("cluster")))
    }
}

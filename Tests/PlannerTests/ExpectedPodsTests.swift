import Model
import TestSupport
import Testing

@testable import Planner
@testable import Reconcile

/// What is made for pods before their ADD, and what is left for it.
struct ExpectedPodsTests {
    static func pod(_ name: String, app: String, uid: String? = nil) -> Pod {
        var pod = TestCluster.pod(name, node: "n1", address: "", labels: ["app": app])
        pod.addresses = []
        if let uid { pod.uid = uid }
        return pod
    }
    static func expected(
        _ pods: [Pod], attached: [Model.Attachment] = [], ended: [String: Set<IPAddress>] = [:]
    ) -> [String] {
        var inventory = TestCluster.inventory
        inventory.pods = pods
        return Planner.expectedAttachments(inventory: inventory, nodeName: "n1", attached: attached, ended: ended)
            .map(\.podName)
    }

    @Test func podsOfThisNodeWithoutAnAddressAreExpected() {
        let pod = Self.pod("a", app: "shop")
        #expect(Self.expected([pod]) == ["a"])
        var elsewhere = pod
        elsewhere.nodeName = "n2"
        var unbound = pod
        unbound.nodeName = ""
        var host = pod
        host.hostNetwork = true
        var finished = pod
        finished.phase = "Failed"
        var running = pod
        running.addresses = [IPAddress("10.244.1.10")!]
        #expect(Self.expected([elsewhere, unbound, host, finished, running]) == [])
        #expect(Self.expected([pod], ended: [pod.uid: []]) == [], "its attachment has ended here")
        var pending = pod
        pending.phase = "Pending"
        #expect(Self.expected([pending], ended: [pod.uid: []]) == ["a"], "another sandbox of it will come")
        var mirror = pod
        mirror.annotations["kubernetes.io/config.hash"] = "hash"
        #expect(Self.expected([mirror], ended: ["hash": []]) == [])
    }

    @Test func aPodWithAnAttachmentIsNoLongerExpected() {
        let pod = Self.pod("a", app: "shop", uid: "u-1")
        func attached(_ uid: String) -> [Model.Attachment] {
            [
                Model.Attachment(
                    containerID: "c", interfaceName: "eth0", podNamespace: pod.namespace, podName: "a", podUID: uid,
                    addresses: [IPNetwork("10.244.1.10/32")!])
            ]
        }
        #expect(Self.expected([pod], attached: attached("u-1")) == [])
        #expect(Self.expected([pod], attached: attached("u-0")) == ["a"], "the pod of that name before it")
    }

    static func plan(
        _ inventory: Inventory, attachments: [Model.Attachment], before: Plan? = nil
    ) -> Plan {
        Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: attachments,
            expected: Planner.expectedAttachments(inventory: inventory, nodeName: "n1", attached: attachments),
            previousIDs: before?.ids ?? AssignedIDs())
    }

    @Test func theADDOfAnExpectedPodNeedsOnlyRulesAndElementsOfSets() {
        var inventory = TestCluster.inventory
        let pod = Self.pod("new", app: "shop")
        inventory.pods = [pod]
        let before = Self.plan(inventory, attachments: [])
        #expect(before.attachments.isEmpty && before.policies.allSatisfy { $0.attachments == 0 })
        #expect(!before.host.rules.contains { $0.priority == Ownership.podRulePriority }, "nothing leads there yet")
        let attachment = Model.Attachment(
            containerID: "c", interfaceName: "eth0", podNamespace: pod.namespace, podName: "new", podUID: pod.uid,
            addresses: [IPNetwork("10.244.1.10/32")!])
        let after = Self.plan(inventory, attachments: [attachment], before: before)
        #expect(after.attachments.map { $0.assigned.map(\.name) } == [["shop", "shop-bank"]])
        #expect(!after.host.routes.isEmpty)
        #expect(after.host.routes == before.host.routes && after.host.nextHops == before.host.nextHops)
        #expect(after.host.links == before.host.links && after.ids == before.ids)
        // Gateways are watched for pods that are there.
        #expect(before.liveness.sessions.isEmpty && !after.liveness.sessions.isEmpty)
        #expect(before.liveness.slots.allSatisfy { !$0.isInUse } && after.liveness.slots.allSatisfy(\.isInUse))
        let steps = Steps(from: Observed(host: before.host), to: after.host).list
        for step in steps {
            switch step.action {
            case .addRule: break
            case .changeFirewall(.edit): break
            default: Issue.record("\(step.operations)")
            }
        }
        #expect(steps.contains { if case .addRule = $0.action { true } else { false } })
        // Without it, the ADD makes all of that.
        let surprise = Steps(from: Observed(host: Self.plan(TestCluster.nobody, attachments: []).host), to: after.host)
            .list
        #expect(surprise.contains { if case .addRoute = $0.action { true } else { false } })
    }

    /// A policy with impatient echoes that only an expected pod has says nothing of how the gateway of live pods is judged.
    @Test func whatIsExpectedChangesNothingForLivePods() {
        var inventory = TestCluster.nobody
        var fast = TestCluster.policy("fast", app: "fast", gateway: "z3", source: .culvert)
        fast.healthChecks.interval = 20
        fast.healthChecks.multiplier = 2
        inventory.policies.append(fast)
        let live = Model.Attachment(
            containerID: "live", interfaceName: "eth0", addresses: [IPNetwork("10.244.1.10/32")!],
            labels: ["app": "shop"])
        let before = Self.plan(inventory, attachments: [live])
        inventory.pods = [Self.pod("new", app: "fast")]
        let after = Self.plan(inventory, attachments: [live], before: before)
        #expect(after.host.routes.count > before.host.routes.count)
        #expect(after.liveness.sessions == before.liveness.sessions && !after.liveness.sessions.isEmpty)
        #expect(after.liveness.slots.filter(\.isInUse) == before.liveness.slots)
        #expect(after.attachments == before.attachments && after.warnings == before.warnings)
        #expect(Set(before.host.routes).isSubset(of: after.host.routes))
        #expect(
            after.host.rules.filter { $0.priority != Ownership.echoRulePriority }
                == before.host.rules.filter { $0.priority != Ownership.echoRulePriority })
    }

    @Test func nothingIsMadeForAPodThatMayNotStart() {
        var inventory = TestCluster.inventory
        var pod = Self.pod("new", app: "nobody")
        pod.annotations[Planner.policyAnnotation] = "no-such-policy"
        inventory.pods = [pod]
        let plan = Self.plan(inventory, attachments: [])
        #expect(plan.ids.tables.isEmpty && plan.host.routes.allSatisfy { $0.table < Ownership.firstTable })
    }

    @Test func whatWasMadeForAPodThatNeverCameGoes() {
        var inventory = TestCluster.inventory
        inventory.pods = [Self.pod("new", app: "shop")]
        let before = Self.plan(inventory, attachments: [])
        inventory.pods = []
        let after = Self.plan(inventory, attachments: [], before: before)
        #expect(after.host == Self.plan(TestCluster.nobody, attachments: []).host)
    }
}

extension TestCluster {
    /// Without pods.
    static var nobody: Inventory {
        var inventory = TestCluster.inventory
        inventory.pods = []
        return inventory
    }
}

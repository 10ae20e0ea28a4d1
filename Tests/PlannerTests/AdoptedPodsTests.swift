import Model
import TestSupport
import Testing

@testable import Planner

/// Pods that never had an ADD, and attachments that such a pod has outlived.
struct AdoptedPodsTests {
    func pod(_ name: String, _ addresses: [String], uid: String? = nil) -> Pod {
        var pod = TestCluster.pod(name, node: "n1", address: "", labels: [:])
        if let uid { pod.uid = uid }
        pod.addresses = addresses.compactMap { IPAddress($0) }
        return pod
    }
    func attachment(_ pod: String, uid: String, _ address: String, former: Set<String>? = []) -> Model.Attachment {
        var attachment = Model.Attachment(
            containerID: "c-\(uid)", interfaceName: "eth0", podNamespace: pod.isEmpty ? "" : "default", podName: pod,
            podUID: uid, addresses: [IPNetwork(host: IPAddress(address)!)])
        attachment.formerOwners = former
        return attachment
    }
    /// Which attachment is outlived, and by whom.
    func outlived(
        _ attachment: Model.Attachment, _ pods: [Pod], ended: [String: Set<IPAddress>] = [:]
    ) -> String? {
        var inventory = TestCluster.inventory
        inventory.pods = pods
        return Planner.outlivedAttachments([attachment], inventory: inventory, nodeName: "n1", ended: ended)[
            attachment.id]?.name
    }

    static let address = "10.244.1.10"

    @Test func anAttachmentWhoseAddressIsAnotherPodsByNowIsOutlived() {
        let old = attachment("a", uid: "u-a", Self.address)
        let new = pod("b", [Self.address])
        #expect(outlived(old, [new]) == "b")
        #expect(outlived(attachment("", uid: "", Self.address), [new]) == "b", "a container that is no pod")
        // Its own pod is there, with another address by now, or is finished.
        #expect(outlived(old, [pod("a", ["10.244.1.11"], uid: "u-a"), new]) == "b")
        var finished = pod("a", [Self.address], uid: "u-a")
        finished.phase = "Succeeded"
        #expect(outlived(old, [finished, new]) == "b")
        // Another pod of the same name is another pod.
        #expect(outlived(old, [pod("a", [Self.address], uid: "u-a2")]) == "a")
    }

    @Test func anAttachmentIsNotTakenForOutlivedBecauseTheInventoryIsBehind() {
        let own = attachment("a", uid: "u-a", Self.address)
        let other = pod("b", [Self.address])
        #expect(outlived(own, []) == nil && outlived(own, [pod("a", [Self.address], uid: "u-a")]) == nil)
        // Its own pod has no address yet, or has that one: it is the newer one.
        #expect(outlived(own, [pod("a", [], uid: "u-a"), other]) == nil)
        #expect(outlived(own, [pod("a", [Self.address], uid: "u-a"), other]) == nil)
        // The other one had the address before the ADD, or has ended here.
        #expect(outlived(attachment("a", uid: "u-a", Self.address, former: ["uid-b"]), [other]) == nil)
        #expect(outlived(own, [other], ended: ["uid-b": [IPAddress(Self.address)!]]) == nil)
        // A record of the release before does not say who had it before.
        #expect(outlived(attachment("a", uid: "u-a", Self.address, former: nil), [other]) == nil)
        // Pods of other nodes, of the host, and finished ones have no address here.
        var elsewhere = other
        elsewhere.nodeName = "n2"
        var host = other
        host.hostNetwork = true
        var finished = other
        finished.phase = "Failed"
        #expect(outlived(own, [elsewhere, host, finished]) == nil)
    }

    @Test func atAnADDOthersWithTheAddressHadItBefore() {
        var inventory = TestCluster.inventory
        inventory.pods = [pod("a", [Self.address]), pod("b", [Self.address]), pod("c", ["10.244.1.11"])]
        let former = Planner.formerOwners(of: [IPNetwork(host: IPAddress(Self.address)!)], inventory: inventory) {
            $0.name == "a"
        }
        #expect(former == ["uid-b"])
    }

    @Test func aPodOfTheSameNameAsAnAttachedOneIsAdopted() {
        var inventory = TestCluster.inventory
        inventory.pods = [pod("web-0", ["10.244.1.11"], uid: "u-2")]
        func adopted(_ uid: String) -> [String] {
            Planner.adoptedAttachments(
                inventory: inventory, nodeName: "n1", attached: [attachment("web-0", uid: uid, Self.address)]
            ).map(\.podUID)
        }
        #expect(adopted("u-1") == ["u-2"])
        #expect(adopted("u-2") == [] && adopted("") == [], "it has its attachment")
    }

    @Test func adoptedPodsHaveTheDefaultPolicy() {
        var inventory = TestCluster.inventory
        inventory.policies.append(TestCluster.policy("calm", app: "nobody"))
        let attachments = Planner.adoptedAttachments(
            inventory: inventory, nodeName: "n1", attached: [], defaultPolicy: "calm")
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
            attachments: attachments)
        let policies = Dictionary(
            uniqueKeysWithValues: plan.attachments.map { ($0.attachment.podName, $0.assigned.map(\.name)) })
        #expect(policies == ["a": ["shop", "shop-bank"], "b": ["calm"]])
    }
}

import Jansson
import Model
import Testing

@testable import Agent

/// What is on disk of an attachment, which the release before reads too.
struct AttachmentRecordTests {
    var attachment: Model.Attachment {
        var attachment = Model.Attachment(
            containerID: "c", interfaceName: "eth0", network: "net", podNamespace: "default", podName: "a", podUID: "u",
            addresses: [IPNetwork("10.244.1.10/32")!], labels: ["app": "shop"], defaultPolicy: "p", hostIndex: 7,
            hostName: "lxc")
        attachment.podRoutes = [.everythingV4: 1400]
        attachment.assignment = [
            AssignedPolicy(
                source: .cilium, name: "a", destinations: [.everythingV4], exclusions: [IPNetwork("10.0.0.0/8")!],
                egress: .address(IPAddress("192.0.2.1")!), gateways: ["n2", "n3"]),
            AssignedPolicy(
                source: .culvert, name: "b", destinations: [IPNetwork("2001:db8::/32")!], egress: .interface("eth1"),
                gateways: ["n1"], standing: .kept("refused: later")),
            AssignedPolicy(
                source: .culvert, name: "c", destinations: [], egress: .untranslated, standing: .held("why")),
        ]
        return attachment
    }

    @Test func anAttachmentIsReadAsItWasWritten() throws {
        let text = AttachmentRecord.json(attachment).text(indent: 2)
        #expect(AttachmentRecord.attachment(try JSON.parse(Array(text.utf8))) == attachment)
    }

    @Test func theReleaseBeforeFindsAllThatItNeeds() throws {
        let record = AttachmentRecord.json(attachment)
        for key in [
            "containerID", "ifname", "network", "namespace", "name", "uid", "addresses", "labels", "annotations",
            "defaultPolicy", "podRoutes", "hostIndex", "hostName",
        ] { #expect(record[key] != nil, "\(key)") }
        #expect(record["version"]?.integer == 2)
    }

    @Test func aRecordOfTheReleaseBeforeHasNoAssignmentYet() throws {
        let members = (AttachmentRecord.json(attachment).members ?? []).filter {
            $0.key != "assignment" && $0.key != "version"
        }
        let read = try #require(AttachmentRecord.attachment(.object(members)))
        #expect(read.assignment == nil && read.id == attachment.id)
    }

    @Test(arguments: [
        #"[{"name":"a"}]"#, #"[{"source":"EgressPolicy","name":"a","egress":{"kind":"other"}}]"#, #"{"a":1}"#,
        #"[{"source":"EgressPolicy","name":"a","egress":{"kind":"address","value":"x"}}]"#, "[null]",
    ])
    func anAssignmentThatMakesNoSenseIsNone(_ text: String) throws {
        #expect(AttachmentRecord.assignment(try JSON.parse(Array(text.utf8))) == nil)
    }
}

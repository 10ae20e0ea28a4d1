import Foundation
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
        attachment.serviceAccount = "teller"
        attachment.grantedAnnotation = "none"
        attachment.isAnnotatedByPod = true
        attachment.formerOwners = ["u-9", "default/b"]
        attachment.assignment = [
            AssignedPolicy(
                source: .cilium, name: "a", destinations: [.everythingV4], exclusions: [IPNetwork("10.0.0.0/8")!],
                candidates: [
                    .init(node: "n2", egress: .init(.address(IPAddress("192.0.2.1")!))),
                    .init(
                        node: "n3",
                        egress: .init(
                            .address(IPAddress("192.0.2.2")!), targets: [HealthTarget("198.51.100.1:443")!])),
                ], spread: "n2>n3", takesBack: true, interval: 50, multiplier: 5),
            AssignedPolicy(
                source: .culvert, name: "b", destinations: [IPNetwork("2001:db8::/32")!],
                candidates: [.init(node: "n1", egress: .init(.interface("eth1")))], standing: .kept("refused: later")),
            AssignedPolicy(
                source: .culvert, name: "c", destinations: [],
                candidates: [.init(node: "n1", egress: .init(.untranslated))], standing: .held("why")),
        ]
        return attachment
    }

    @Test func anAttachmentIsReadAsItWasWritten() throws {
        let text = AttachmentRecord.json(attachment).text(indent: 2)
        #expect(AttachmentRecord.attachment(try JSON.parse(Array(text.utf8))) == attachment)
    }

    /// One after the other, with the same policies, with others and with none.
    @Test func attachmentsAreLoadedAsTheyWereSaved() throws {
        let directory = "/tmp/culvert-store-\(UInt32.random(in: 0 ... .max))"
        let store = AttachmentStore(runDirectory: directory)
        try store.prepare()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let all = (0..<60).map { number in
            var other = attachment
            other.containerID = "c\(number)"
            switch number % 3 {
            case 0: other.assignment = nil
            case 1: other.assignment = Array((attachment.assignment ?? []).prefix(number % 4))
            default: other.assignment?.swapAt(0, number % 3)
            }
            return other
        }
        for attachment in all { try store.save(attachment) }
        let (loaded, damaged) = try store.load()
        #expect(damaged.isEmpty)
        #expect(loaded.sorted { $0.id < $1.id } == all.sorted { $0.id < $1.id })
    }

    @Test func whatAnswersIsReadAsItWasWritten() throws {
        let directory = "/tmp/culvert-store-\(UInt32.random(in: 0 ... .max))"
        let store = AttachmentStore(runDirectory: directory)
        try store.prepare()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        #expect(store.loadAnswering().isEmpty)
        let answering: Set<EgressSpecification> = [
            .init(.address(IPAddress("192.0.2.2")!), targets: [HealthTarget("198.51.100.1:443")!]),
            .init(.interface("eth1"), targets: [HealthTarget("198.51.100.1:443")!, HealthTarget("198.51.100.2:80")!]),
        ]
        let policies = attachment.assignment ?? []
        try store.saveServed(policies, answering: answering)
        #expect(store.loadAnswering() == answering && store.loadServed() == policies)
    }

    /// A number of no sense in a file is no crash of a helper that reads the file at each start.
    @Test(arguments: [
        ("0", "0", 20, 2), ("-1", "-9223372036854775808", 20, 2),
        ("9223372036854775807", "9223372036854775807", 10_000, 50), ("100", "3", 100, 3),
    ]) func intervalsHaveBounds(_ interval: String, _ multiplier: String, _ read: Int, _ many: Int) throws {
        let record = try JSON.parse(
            Array(
                #"[{"source": "EgressPolicy", "name": "a", "egress": {"kind": "default"}, "interval": \#(interval), "multiplier": \#(multiplier)}]"#
                    .utf8))
        let assigned = AttachmentRecord.assignment(record)
        #expect(assigned?.first?.interval == read && assigned?.first?.multiplier == many)
    }

    @Test func theReleaseBeforeFindsAllThatItNeeds() throws {
        let record = AttachmentRecord.json(attachment)
        for key in [
            "containerID", "ifname", "network", "namespace", "name", "uid", "addresses", "labels", "annotations",
            "defaultPolicy", "podRoutes", "hostIndex", "hostName",
        ] { #expect(record[key] != nil, "\(key)") }
        #expect(record["version"]?.integer == 3)
        #expect(record["labels"]?["io.cilium.k8s.policy.serviceaccount"]?.string == "teller")
        let first = record["assignment"]?.elements?.first
        #expect(first?["gateways"]?.elements?.compactMap(\.string) == ["n2", "n3"])
        #expect(first?["egress"]?["value"]?.string == "192.0.2.1")
    }

    @Test func theReleaseBeforeKeptTheServiceAccountAmongTheLabels() throws {
        let members = (AttachmentRecord.json(attachment).members ?? []).filter {
            !["serviceAccount", "grantedAnnotation", "formerOwners"].contains($0.key)
        }
        let read = try #require(AttachmentRecord.attachment(.object(members)))
        #expect(read.serviceAccount == "teller" && read.labels == ["app": "shop"])
        #expect(read.grantedAnnotation == nil, "it permitted all")
        #expect(read.formerOwners == nil, "not known is not nobody")
    }

    @Test func aRecordOfTheReleaseBeforeHasNoAssignmentYet() throws {
        let members = (AttachmentRecord.json(attachment).members ?? []).filter {
            $0.key != "assignment" && $0.key != "version"
        }
        let read = try #require(AttachmentRecord.attachment(.object(members)))
        #expect(read.assignment == nil && read.id == attachment.id)
    }

    @Test func anAssignmentOfTheReleaseBeforeHasOneEgress() throws {
        let text = #"""
            [{"source":"EgressPolicy","name":"a","destinations":["0.0.0.0/0"],"exclusions":[],
              "egress":{"kind":"address","value":"192.0.2.1"},"gateways":["n2","n3"],"standing":"inForce","reason":""}]
            """#
        let read = try #require(AttachmentRecord.assignment(try JSON.parse(Array(text.utf8)))?.first)
        let egress = EgressSpecification(.address(IPAddress("192.0.2.1")!))
        #expect(read.candidates == [.init(node: "n2", egress: egress), .init(node: "n3", egress: egress)])
        #expect(read.interval == 100 && read.multiplier == 3 && !read.takesBack && read.spread.isEmpty)
    }

    @Test(arguments: [
        #"[{"name":"a"}]"#, #"[{"source":"EgressPolicy","name":"a","egress":{"kind":"other"}}]"#, #"{"a":1}"#,
        #"[{"source":"EgressPolicy","name":"a","egress":{"kind":"address","value":"x"}}]"#, "[null]",
    ])
    func anAssignmentThatMakesNoSenseIsNone(_ text: String) throws {
        #expect(AttachmentRecord.assignment(try JSON.parse(Array(text.utf8))) == nil)
    }
}

import Foundation
import Model
import Testing

@testable import Agent

/// Pure values; in this target because it is the one that has the Agent.
struct EndedPodsTests {
    static let now = Date(timeIntervalSince1970: 1_800_000_000)
    static func attachment(_ uid: String, _ addresses: IPAddress...) -> Model.Attachment {
        Model.Attachment(
            containerID: "c", interfaceName: "eth0", podUID: uid, addresses: addresses.map { IPNetwork(host: $0) })
    }
    static func pod(_ uid: String) -> Pod { Pod(namespace: "default", name: uid, uid: uid) }
    static let (first, second) = (IPAddress("10.0.0.1")!, IPAddress("10.0.0.2")!)

    /// Its ADD and its DEL have come before the watch shows the pod.
    @Test func aPodThatIsNotKnownYetIsRemembered() {
        var ended = EndedPods()
        ended.note(Self.attachment("u1", Self.first), now: Self.now)
        var hasForgotten = ended.forgetOld(pods: [], now: Self.now.addingTimeInterval(600))
        #expect(!hasForgotten)
        #expect(ended.addresses == ["u1": [Self.first]])
        hasForgotten = ended.forgetOld(pods: [Self.pod("u1")], now: Self.now.addingTimeInterval(100_000))
        #expect(!hasForgotten)
        hasForgotten = ended.forgetOld(pods: [], now: Self.now.addingTimeInterval(100_000))
        #expect(hasForgotten)
        #expect(ended.addresses.isEmpty)
    }

    /// The API may still show the address of the sandbox before.
    @Test func aNewSandboxTakesBackItsOwnAddressOnly() {
        var ended = EndedPods()
        ended.note(Self.attachment("u1", Self.first), now: Self.now)
        ended.takeBack(Self.attachment("u1", Self.second))
        #expect(ended.addresses == ["u1": [Self.first]])
        ended.note(Self.attachment("u1", Self.second), now: Self.now)
        ended.takeBack(Self.attachment("u1", Self.first))
        #expect(ended.addresses == ["u1": [Self.second]])
        ended.takeBack(Self.attachment("u1", Self.second))
        #expect(ended.addresses.isEmpty)
    }

    /// The helper may end before it has forgotten the connections of a pod that is gone.
    @Test func addressesWithConnectionsAreKnownUntilTheyAreForgotten() {
        var ended = EndedPods()
        ended.note(Self.attachment("u1", Self.first), now: Self.now)
        ended.note(Self.attachment("u2", Self.second), now: Self.now)
        #expect(ended.addresses.keys.sorted() == ["u1", "u2"])
        #expect(ended.addressesWithConnections == [Self.first, Self.second])
        ended.noteForgotten([Self.first])
        #expect(ended.addressesWithConnections == [Self.second])
        // It has ended again.
        ended.note(Self.attachment("u1", Self.first), now: Self.now)
        #expect(ended.addressesWithConnections == [Self.first, Self.second])
        ended.noteForgotten([Self.first, Self.second])
        #expect(ended.addressesWithConnections.isEmpty && ended.pods.count == 2)
    }

    @Test func itIsOnDiskAsItWas() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
            "culvert-ended-\(ProcessInfo.processInfo.processIdentifier)"
        ).path
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let store = AttachmentStore(runDirectory: directory)
        #expect(store.loadEnded() == EndedPods())
        var ended = EndedPods()
        ended.note(Self.attachment("u1", Self.first, Self.second), now: Self.now)
        ended.note(Self.attachment("u2", Self.first), now: Self.now)
        ended.noteForgotten([Self.first])
        try store.saveEnded(ended)
        #expect(store.loadEnded() == ended)
        // Those that end one by one are added; the last word on each counts, and a line that was cut off does not.
        for (uid, address) in [("u3", Self.second), ("u1", Self.first)] {
            ended.note(Self.attachment(uid, address), now: Self.now.addingTimeInterval(5))
            try store.addEnded(uid, ended.pods[uid]!)
        }
        #expect(store.loadEnded() == ended)
        let lines = directory + "/ended.jsonl"
        let text = try String(contentsOfFile: lines, encoding: .utf8)
        try (text + #"{"u4":{"addr"#).write(toFile: lines, atomically: true, encoding: .utf8)
        #expect(store.loadEnded() == ended)
        // All of it at once takes the place of both.
        ended.takeBack(Self.attachment("u3", Self.second))
        try store.saveEnded(ended)
        #expect(store.loadEnded() == ended && !FileManager.default.fileExists(atPath: lines))
        try "{".write(toFile: directory + "/ended.json", atomically: true, encoding: .utf8)
        #expect(store.loadEnded() == EndedPods())
    }
}

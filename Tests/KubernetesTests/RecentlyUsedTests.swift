import Foundation
import Inventory
import Jansson
import Logging
import Synchronization
import TestSupport
import Testing

@testable import Kubernetes

@Suite(.serialized) struct RecentlyUsedTests {
    @Test func theOneThatWasNotUsedForTheLongestTimeMakesRoom() {
        var recent = RecentlyUsed<Int>(room: 3)
        #expect([1, 2, 3].map { recent.insert($0) } == [true, true, true])
        let again = recent.insert(1)
        #expect(!again)
        let fourth = recent.insert(4)
        #expect(fourth && recent.count == 3)
        let known = [1, 3, 4].map { recent.insert($0) }
        #expect(known == [false, false, false])
        let second = recent.insert(2)
        #expect(second, "it was forgotten")
        recent.remove(2)
        let removed = recent.insert(2)
        #expect(removed)
    }

    @Test func itHoldsWhatAListOfTheLastOnesHolds() {
        var random = SeededGenerator(seed: 3)
        var recent = RecentlyUsed<Int>(room: 20)
        var list: [Int] = []
        for _ in 0..<20_000 {
            let value = Int.random(in: 0..<60, using: &random)
            let isNew = recent.insert(value)
            #expect(isNew == !list.contains(value))
            list.removeAll { $0 == value }
            list.append(value)
            if list.count > 20 { list.removeFirst() }
            #expect(recent.count == list.count)
        }
    }

    /// The API server deletes an Event after an hour.
    @Test func whatStillHoldsIsToldOnceMoreAfterAnHour() async throws {
        let cluster = try KubernetesInventoryTests.Cluster("hourly")
        let client = try KubernetesClient(
            access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
            userAgent: "events")
        let now = Mutex(Date(timeIntervalSince1970: 1_700_000_000))
        let recorder = EventRecorder(client: client, nodeName: "n0", clock: { now.withLock { $0 } }, logger: .quiet)
        let event = ObjectEvent(.policy(name: "p", source: .culvert), reason: "NoGateway", message: "none")
        func tries() -> Int { cluster.server.counters().requests["create events"] ?? 0 }
        await recorder.record(event)
        await recorder.record(event)
        for _ in 0..<100 where tries() < 1 { try await Task.sleep(for: .milliseconds(50)) }
        #expect(tries() == 1)
        now.withLock { $0 += 3600 }
        await recorder.record(event)
        for _ in 0..<100 where tries() < 2 { try await Task.sleep(for: .milliseconds(50)) }
        #expect(tries() == 2)
        await client.shutdown()
    }

    /// A node that runs for months has more to tell than there is room for.
    @Test func eventsDoNotStopAfterTheFirstThousands() async throws {
        let cluster = try KubernetesInventoryTests.Cluster("manyevents")
        let client = try KubernetesClient(
            access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
            userAgent: "events")
        let recorder = EventRecorder(client: client, nodeName: "n0", room: 5, logger: .quiet)
        func count() -> Int {
            cluster.server.get("/api/v1/namespaces/default/events")?["items"]?.elements?.count ?? 0
        }
        for number in 0..<12 {
            await recorder.record(
                ObjectEvent(.policy(name: "p\(number)", source: .culvert), reason: "NoGateway", message: "none"))
        }
        for _ in 0..<100 where count() < 12 { try await Task.sleep(for: .milliseconds(50)) }
        #expect(count() == 12)
        // The first one was forgotten: it is written once more, and is there already.
        await recorder.record(ObjectEvent(.policy(name: "p0", source: .culvert), reason: "NoGateway", message: "none"))
        try await Task.sleep(for: .milliseconds(500))
        #expect(count() == 12)
        await client.shutdown()
        await cluster.inventory.stop()
    }
}

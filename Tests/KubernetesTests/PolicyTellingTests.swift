import Foundation
import Inventory
import Jansson
import Model
import TestSupport
import Testing

@testable import Kubernetes

/// What people see of a policy in the API server: its status and its Events. Against the stand-in.
@Suite(.serialized) struct PolicyTellingTests {
    typealias Cluster = KubernetesInventoryTests.Cluster
    static let path = "/apis/culvert.dev/v1alpha1/egresspolicies/e"

    /// A cluster with the policy `e` and this node's publisher; time passes 20 times as fast.
    static func cluster(_ name: String) async throws -> Cluster {
        let cluster = try Cluster(name, clock: ScaledClock(factor: 20))
        cluster.fill()
        KubernetesInventoryTests.setPolicy(cluster)
        await cluster.publisher.start()
        await cluster.inventory.start()
        return cluster
    }
    static func stop(_ cluster: Cluster) async {
        await cluster.publisher.stop()
        await cluster.inventory.stop()
    }
    static func status(_ cluster: Cluster) -> JSON? { cluster.server.get(path)?["status"] }
    static func active(_ cluster: Cluster) -> [String] {
        status(cluster)?["activeGateways"]?.elements?.compactMap(\.string) ?? []
    }
    static func eventually(_ condition: () async -> Bool) async throws {
        let end = Date().addingTimeInterval(60)
        while await !condition() && Date() < end { try await Task.sleep(for: .milliseconds(100)) }
        #expect(await condition())
    }
    /// A write of somebody else.
    static func patch(_ cluster: Cluster, _ status: String) {
        let answer = Shell.run(
            "curl -sf -X PATCH --unix-socket \(cluster.server.directory)/api.unix -H 'Authorization: Bearer ADMIN' -H 'Content-Type: application/merge-patch+json' --data-binary @- 'http://localhost\(path)/status?fieldManager=somebody'",
            input: "{\"status\":\(status)}")
        #expect(answer.status == 0, "\(answer.output)")
    }

    @Test(arguments: [401, 403, 422]) func aStatusThatWasRefusedIsWrittenOnceItMayBe(_ code: Int) async throws {
        let cluster = try await Self.cluster("refused\(code)")
        // (What is wrong with the status itself is not mended in a minute.)
        cluster.server.fault("{\"status\":{\"code\":\(code),\"count\":\(code == 422 ? 1 : 4),\"match\":\"/e/status\"}}")
        await cluster.publisher.report([PolicyReport(name: "e", activeGateways: ["n0"], reason: "")])
        try await Self.eventually { Self.active(cluster) == ["n0"] }
        await Self.stop(cluster)
    }

    /// A Kilo takes a node for gone that does not check in for a minute.
    @Test func aSignOfLifeDoesNotWaitForTheStatusOfAPolicy() async throws {
        let cluster = try await Self.cluster("checkin")
        cluster.server.fault("{\"slow\":{\"secondsPerByte\":1,\"count\":1,\"match\":\"/e/status\"}}")
        await cluster.publisher.report([PolicyReport(name: "e", activeGateways: ["n0"], reason: "")])
        try await Task.sleep(for: .milliseconds(500))
        await cluster.publisher.publish(annotations: ["kilo.squat.ai/last-seen": "1700000000"])
        func lastSeen() -> String? {
            cluster.server.get("/api/v1/nodes/n0")?["metadata"]?["annotations"]?["kilo.squat.ai/last-seen"]?.string
        }
        for _ in 0..<50 where lastSeen() == nil { try await Task.sleep(for: .milliseconds(100)) }
        #expect(lastSeen() == "1700000000")
        cluster.server.fault("{\"disconnect\":true}")
        await Self.stop(cluster)
    }

    /// Nobody is kept from telling of a policy because another one's status is refused.
    @Test func aStatusThatIsRefusedForeverHoldsUpNoOther() async throws {
        let cluster = try await Self.cluster("refusedone")
        cluster.server.apply([ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "a", 2)])
        cluster.server.fault("{\"status\":{\"code\":403,\"count\":100000,\"match\":\"/a/status\"}}")
        await cluster.publisher.report(["a", "e"].map { PolicyReport(name: $0, activeGateways: ["n0"], reason: "") })
        try await Self.eventually { Self.active(cluster) == ["n0"] }
        #expect(
            await cluster.publisher.problems().contains { $0.contains("EgressPolicy a") && $0.contains("rbac.yaml") })
        let tries = cluster.server.counters().requests["patch egresspolicies.culvert.dev/status"] ?? 0
        try await Task.sleep(for: .seconds(3))
        let more = (cluster.server.counters().requests["patch egresspolicies.culvert.dev/status"] ?? 0) - tries
        #expect(more <= 12, "\(more) tries in a minute of the clock")
        cluster.server.fault("{\"status\":null}")
        await Self.stop(cluster)
    }

    @Test(arguments: [
        "{\"activeGateways\":[\"n3\"],\"reason\":\"nonsense\",\"candidates\":\"9 of 9\"}", "null",
        "{\"activeGateways\":[],\"reason\":\"nonsense\"}",
    ]) func aStatusThatSomebodyElseHasOverwrittenIsRepaired(_ theirs: String) async throws {
        let cluster = try await Self.cluster("overwritten\(theirs.utf8.count)")
        let report = PolicyReport(
            name: "e", activeGateways: ["n0"], reason: "", standing: .user, candidates: ["n0", "n3"], up: ["n0", "n3"])
        await cluster.publisher.report([report])
        func isRight() -> Bool {
            let status = Self.status(cluster)
            return Self.active(cluster) == ["n0"] && status?["reason"]?.string == ""
                && status?["candidates"]?.string == "2 of 2"
        }
        try await Self.eventually { isRight() }
        Self.patch(cluster, theirs)
        #expect(!isRight())
        try await Self.eventually { isRight() }
        await Self.stop(cluster)
    }

    /// `kubectl describe` asks for the Events of an object by its name, kind, namespace and UID.
    @Test func describeFindsAnEventOnAPolicy() async throws {
        let cluster = try await Self.cluster("describe")
        let uid = cluster.server.get(Self.path)?["metadata"]?["uid"]?.string ?? ""
        #expect(!uid.isEmpty)
        await cluster.publisher.record(
            ObjectEvent(.policy(name: "e", source: .culvert), reason: "NoGateway", message: "none fits"))
        let selector =
            "involvedObject.name%3De%2CinvolvedObject.namespace%3D%2CinvolvedObject.kind%3DEgressPolicy%2CinvolvedObject.uid%3D\(uid)"
        try await Self.eventually {
            cluster.server.get("/api/v1/events?fieldSelector=\(selector)")?["items"]?.elements?.first?["reason"]?.string
                == "NoGateway"
        }
        await Self.stop(cluster)
    }

    @Test func kubectlGetShowsGatewaysAsAText() async throws {
        let cluster = try await Self.cluster("text")
        await cluster.publisher.report([
            PolicyReport(
                name: "e", activeGateways: ["n3", "n0"], reason: "", standing: .user, candidates: ["n0", "n3"])
        ])
        try await Self.eventually { Self.status(cluster)?["gateways"]?.string == "n0,n3" }
        await Self.stop(cluster)
    }

    /// Nothing tells the gateway of pods elsewhere.
    @Test func theNumberOfPodsFollowsSoon() async throws {
        let cluster = try await Self.cluster("pods")
        func count() -> Int64? { Self.status(cluster)?["selectedPods"]?.integer }
        await cluster.publisher.report([PolicyReport(name: "e", activeGateways: ["n0"], reason: "")])
        try await Self.eventually { count() == 0 }
        cluster.server.apply([ClusterContent.pod(8, node: "n2", label: "v1")])
        let start = ContinuousClock.now
        try await Self.eventually { count() == 1 }
        // Ten minutes of the clock are 30 s.
        #expect(ContinuousClock.now - start < .seconds(15))
        // A number that stays is not written.
        let writes = cluster.server.counters().requests["patch egresspolicies.culvert.dev/status"]
        try await Task.sleep(for: .seconds(2))
        #expect(cluster.server.counters().requests["patch egresspolicies.culvert.dev/status"] == writes)
        #expect(cluster.server.counters().denials.isEmpty)
        await Self.stop(cluster)
    }
}

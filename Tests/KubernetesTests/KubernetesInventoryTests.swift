import Foundation
import Inventory
import Jansson
import Logging
import Model
import TestSupport
import Testing

@testable import Kubernetes

/// Against the stand-in API server.
@Suite(.serialized) struct KubernetesInventoryTests {
    /// A server, and the inventory of node n0 that follows it.
    final class Cluster {
        let server: APIServer
        let inventory: KubernetesInventory
        let publisher: KubernetesPublisher
        let tokenFile: String
        var content = ClusterContent()
        var tokens = 1

        init(
            _ name: String, cache: Bool = false, idleSeconds: Int64 = 2, url: String? = nil, options: String = "",
            ceiling: Double = 1, clock: any Clock<Duration> = ContinuousClock()
        ) throws {
            let directory = "/run/culvert-\(Shell.prefix)-api-\(name)"
            Shell.run(
                "mkdir -p \(directory) && printf 'T1 system:serviceaccount:culvert:culvertd\nADMIN admin system:masters\n' > \(directory)/tokens && printf T1 > \(directory)/token"
            )
            server = try APIServer(
                name,
                arguments:
                    "--token-file \(directory)/tokens --rbac \(Shell.packageRoot)/install/kubernetes/base/rbac.yaml --bookmark-seconds 0.5 \(options)"
            )
            tokenFile = "\(directory)/token"
            let client = try KubernetesClient(
                access: ClusterAccess(server: url ?? server.url, credential: .tokenFile(tokenFile)),
                userAgent: "test", idleSeconds: idleSeconds)
            inventory = KubernetesInventory(
                client: client, nodeName: "n0", cachePath: cache ? "\(directory)/inventory.json" : nil,
                nodes: .whole, ceiling: ceiling, clock: clock, logger: .quiet)
            publisher = KubernetesPublisher(
                client: client, nodeName: "n0", inventory: inventory, clock: clock, logger: .quiet)
        }

        func make(_ steps: [ClusterContent.Step]) {
            for step in steps {
                switch step {
                case .set(let manifest): server.apply([manifest])
                case .delete(let manifest): server.delete([manifest])
                }
            }
        }
        func fill() {
            for n in 0..<4 {
                server.apply([
                    content.set("Node", "n\(n)", ClusterContent.node(n, 1)),
                    content.set("CiliumNode", "n\(n)", ClusterContent.ciliumNode(n, 1)),
                    content.set("Namespace", "ns\(n % 3)", ClusterContent.namespace(n % 3, "a")),
                    content.set("Pod", "p\(n)", namespace: "ns\(n % 3)", ClusterContent.pod(n, node: "n0", label: "a")),
                ])
            }
        }
        /// The inventory of a helper that starts with what the first one has kept on disk.
        func second() throws -> KubernetesInventory {
            KubernetesInventory(
                client: try KubernetesClient(
                    access: ClusterAccess(server: server.url, credential: .tokenFile(tokenFile)), userAgent: "second"),
                nodeName: "n0", cachePath: "\(server.directory)/inventory.json", nodes: .whole, ceiling: 1,
                logger: .quiet)
        }
        func renewToken() {
            tokens += 1
            server.fault(
                "{\"addToken\":{\"token\":\"T\(tokens)\",\"user\":\"system:serviceaccount:culvert:culvertd\",\"groups\":[]}}"
            )
            try? "T\(tokens)".write(toFile: tokenFile, atomically: true, encoding: .utf8)
            server.fault("{\"expireToken\":\"T\(tokens - 1)\"}")
        }

        /// Whether the inventory comes to what the server holds.
        func converges(seconds: Double = 15) async -> Bool {
            let expected = content.expected(on: "n0")
            let end = Date().addingTimeInterval(seconds)
            while Date() < end {
                if same(await inventory.inventory(), expected) { return true }
                try? await Task.sleep(for: .milliseconds(50))
            }
            Issue.record("\(differences(await inventory.inventory(), expected))")
            return false
        }
        /// The server has namespaces of its own.
        func same(_ a: Inventory, _ b: Inventory) -> Bool { differences(a, b).isEmpty }
        func differences(_ a: Inventory, _ b: Inventory) -> String {
            var text = ""
            for name in Set(a.nodes.keys).union(b.nodes.keys) where a.nodes[name] != b.nodes[name] {
                text += "node \(name): \(describe(a.nodes[name])) instead of \(describe(b.nodes[name]))\n"
            }
            // The server gives UIDs.
            func anonymous(_ pods: [Pod]) -> [Pod] {
                pods.map {
                    var pod = $0
                    (pod.uid, pod.startTime) = ("", nil)
                    return pod
                }
            }
            if anonymous(a.pods) != anonymous(b.pods) { text += "pods \(a.pods) instead of \(b.pods)\n" }
            for name in ["ns0", "ns1", "ns2"] where a.namespaces[name] != b.namespaces[name] {
                text += "\(name): \(a.namespaces[name] ?? [:]) instead of \(b.namespaces[name] ?? [:])\n"
            }
            // The server counts generations.
            func ungenerated(_ policies: [EgressPolicy]) -> [EgressPolicy] {
                policies.map {
                    var policy = $0
                    policy.generation = nil
                    return policy
                }
            }
            if ungenerated(a.policies) != ungenerated(b.policies) {
                text += "policies \(a.policies.map(\.name)) instead of \(b.policies.map(\.name))\n"
            }
            if a.peers != b.peers { text += "peers \(a.peers.map(\.name)) instead of \(b.peers.map(\.name))\n" }
            return text
        }
        private func describe(_ node: Node?) -> String {
            node.map { "\($0.labels) \($0.annotations) \($0.addresses) \($0.podCIDRs)" } ?? "none"
        }
    }

    @Test(arguments: 1...4) func convergesAfterEveryStorm(_ seed: UInt64) async throws {
        var random = SeededGenerator(seed: seed)
        let cluster = try Cluster("storm\(seed)")
        cluster.fill()
        await cluster.inventory.start()
        #expect(await cluster.converges())
        for _ in 0..<12 {
            cluster.make((0..<Int.random(in: 1...6, using: &random)).map { _ in cluster.content.change(&random) })
            switch Int.random(in: 0..<13, using: &random) {
            case 0: cluster.server.fault("{\"breakWatches\":\"reset\"}")
            case 1: cluster.server.fault("{\"breakWatches\":\"truncate\"}")
            case 2: cluster.server.fault("{\"breakWatches\":\"garbage\"}")
            case 3: cluster.server.fault("{\"stallWatches\":true}")
            case 4: cluster.server.fault("{\"compact\":true,\"breakWatches\":\"close\"}")
            case 5: cluster.server.fault("{\"goneAsStatus\":true,\"compact\":true,\"breakWatches\":\"reset\"}")
            case 6: cluster.server.fault("{\"status\":{\"code\":500,\"count\":9},\"breakWatches\":\"close\"}")
            case 7:
                cluster.server.fault(
                    "{\"status\":{\"code\":429,\"count\":5,\"retryAfter\":1},\"breakWatches\":\"close\"}")
            case 8: cluster.server.fault("{\"truncateLists\":3,\"compact\":true,\"breakWatches\":\"reset\"}")
            case 9:
                cluster.server.fault("{\"disconnect\":true}")
                try await Task.sleep(for: .milliseconds(400))
            case 10: cluster.renewToken()
            case 11: cluster.server.fault("{\"expireContinue\":true,\"compact\":true,\"breakWatches\":\"close\"}")
            default:
                cluster.server.fault("{\"slow\":{\"secondsPerByte\":0.0005,\"count\":4},\"breakWatches\":\"close\"}")
            }
            cluster.make((0..<Int.random(in: 1...6, using: &random)).map { _ in cluster.content.change(&random) })
            if Int.random(in: 0..<3, using: &random) == 0 {
                cluster.server.fault(
                    "{\"stallWatches\":false,\"disconnect\":false,\"status\":null,\"goneAsStatus\":false}")
            }
        }
        cluster.server.fault("{\"stallWatches\":false,\"disconnect\":false,\"status\":null,\"goneAsStatus\":false}")
        #expect(await cluster.converges(seconds: 30), "seed \(seed)")
        let counters = cluster.server.counters()
        #expect(counters.mostWatches.values.allSatisfy { $0 <= 1 }, "\(counters.mostWatches)")
        #expect(counters.denials.isEmpty, "\(counters.denials)")
        await cluster.inventory.stop()
    }

    @Test func aBrokenWatchGoesOnWhereItWas() async throws {
        let cluster = try Cluster("resume")
        cluster.fill()
        await cluster.inventory.start()
        #expect(await cluster.converges())
        let before = cluster.server.counters().requests
        for kind in ["reset", "close", "truncate", "garbage"] {
            cluster.server.fault("{\"breakWatches\":\"\(kind)\"}")
            cluster.make([.set(cluster.content.set("Node", "n1", ClusterContent.node(1, 100 + kind.count)))])
            #expect(await cluster.converges(), "\(kind)")
        }
        let after = cluster.server.counters().requests
        #expect(after["list nodes"] == before["list nodes"], "listed again")
        // Forgotten: one list more.
        cluster.server.fault("{\"compact\":true,\"breakWatches\":\"close\"}")
        cluster.make([.set(cluster.content.set("Node", "n1", ClusterContent.node(1, 99)))])
        #expect(await cluster.converges())
        await cluster.inventory.stop()
    }

    /// 503 is its own word, and 502 that of a proxy before it that reaches no server.
    @Test(arguments: [503, 502]) func aServerInTroubleIsNotHammered(_ code: Int) async throws {
        let cluster = try Cluster("trouble\(code)")
        cluster.fill()
        await cluster.inventory.start()
        cluster.server.fault("{\"status\":{\"code\":\(code),\"count\":100000},\"breakWatches\":\"close\"}")
        try await Task.sleep(for: .seconds(1))
        cluster.server.control("reset", "")
        try await Task.sleep(for: .seconds(3))
        let sum = cluster.server.counters().requests.values.reduce(0, +)
        // Eight watches, at most one attempt each half a second.
        #expect(sum > 8 && sum <= 8 * 7, "\(sum) requests in three seconds")
        cluster.server.fault("{\"status\":null}")
        #expect(await cluster.converges())
        await cluster.inventory.stop()
    }

    @Test func oneMalformedObjectNeverStopsTheRest() async throws {
        let cluster = try Cluster("malformed")
        cluster.fill()
        await cluster.inventory.start()
        let good = await cluster.inventory.inventory().nodes["n1"]
        cluster.server.apply([
            ClusterContent.node(1, 5).replacingOccurrences(of: "10.244.1.0/24", with: "nonsense"),
            ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "bad", 1)
                .replacingOccurrences(of: "203.0.1.0/24", with: "x"),
        ])
        cluster.make([.set(cluster.content.set("Node", "n2", ClusterContent.node(2, 77)))])
        func policies() async -> [EgressPolicy] { await cluster.inventory.inventory().policies }
        for _ in 0..<100 where await policies().isEmpty { try await Task.sleep(for: .milliseconds(50)) }
        #expect(await policies().map(\.name) == ["bad"])
        #expect(await policies().first?.refusal.contains("spec.destinationCIDRs[0] \"x\"") == true)
        #expect(await policies().first?.hasUnknownDestinations == true)
        cluster.server.delete([ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "bad", 1)])
        #expect(await cluster.converges())
        let inventory = await cluster.inventory.inventory()
        #expect(inventory.nodes["n1"] == good, "its last good content stays")
        #expect(inventory.problems.contains { "\($0)".contains("n1") && "\($0)".contains("nonsense") })
        await cluster.inventory.stop()
    }

    @Test func resourcesThatAreNotInstalledAreNone() async throws {
        // Five times as fast as the world: a definition that is missing is looked for every ten seconds.
        let cluster = try Cluster("groups", clock: ScaledClock(factor: 5))
        for group in ["kilo.squat.ai", "culvert.dev", "cilium.io"] {
            cluster.server.fault("{\"groupOff\":\"\(group)\"}")
        }
        cluster.fill()
        await cluster.inventory.start()
        #expect(await cluster.inventory.inventory().nodes.count == 4)
        let status = await cluster.inventory.status()
        #expect(status["synchronized"]?.bool == true && status["problems"]?.elements?.isEmpty == true)
        #expect(
            status["notices"]?.elements?.compactMap(\.string) == [
                "EgressPolicy: its CustomResourceDefinition is not installed; checking again every 10 s",
                "CiliumEgressGatewayPolicy: its CustomResourceDefinition is not installed; checking again every 10 s",
            ])
        #expect(await cluster.inventory.inventory().unknown == [], "there are none")
        cluster.server.fault("{\"groupOn\":\"culvert.dev\"}")
        cluster.server.apply([ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "e", 1)])
        let end = Date().addingTimeInterval(10)
        while await cluster.inventory.inventory().policies.isEmpty && Date() < end {
            try await Task.sleep(for: .milliseconds(100))
        }
        #expect(await cluster.inventory.inventory().policies.count == 1)
        #expect(await cluster.inventory.status()["notices"]?.elements?.count == 1)
        await cluster.inventory.stop()
    }

    static func setPolicy(_ cluster: Cluster) {
        cluster.make([
            .set(
                cluster.content.set(
                    "EgressPolicy", "e", ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "e", 1)))
        ])
    }
    static func policies(_ inventory: KubernetesInventory) async -> [String] {
        await inventory.inventory().policies.map(\.name)
    }

    @Test func aStrayNotFoundAfterAGoneTakesNothingAway() async throws {
        let cluster = try Cluster("stray", ceiling: 0.2)
        cluster.fill()
        Self.setPolicy(cluster)
        await cluster.inventory.start()
        #expect(await cluster.converges())
        // What was listed is forgotten by the server, and then there is no such resource, for a while.
        cluster.server.fault("{\"groupOff\":\"culvert.dev\",\"compact\":true,\"breakWatches\":\"close\"}")
        var isReported = false
        for _ in 0..<60 {
            try await Task.sleep(for: .milliseconds(50))
            #expect(await Self.policies(cluster.inventory) == ["e"])
            let problems = await cluster.inventory.status()["problems"]?.text() ?? ""
            isReported = isReported || problems.contains("says that there is no such resource")
        }
        #expect(isReported)
        cluster.server.fault("{\"groupOn\":\"culvert.dev\"}")
        for _ in 0..<100 where await cluster.inventory.status()["problems"]?.elements?.isEmpty != true {
            try await Task.sleep(for: .milliseconds(100))
        }
        #expect(await cluster.inventory.status()["problems"]?.elements?.isEmpty == true)
        cluster.make([.delete(ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "e", 1))])
        for _ in 0..<100 where await !Self.policies(cluster.inventory).isEmpty {
            try await Task.sleep(for: .milliseconds(50))
        }
        #expect(await Self.policies(cluster.inventory) == [], "it is followed again")
        await cluster.inventory.stop()
    }

    @Test func aDefinitionThatIsGoneForTenSecondsTakesItsObjectsWithIt() async throws {
        let clock = ScaledClock(factor: 5)
        let cluster = try Cluster("uninstalled", ceiling: 0.2, clock: clock)
        cluster.fill()
        Self.setPolicy(cluster)
        await cluster.inventory.start()
        #expect(await cluster.converges())
        let elapsed = clock.stopwatch()
        cluster.server.fault("{\"groupOff\":\"culvert.dev\"}")
        while await !Self.policies(cluster.inventory).isEmpty, elapsed() < .seconds(60) {
            try await Task.sleep(for: .milliseconds(20))
        }
        #expect(elapsed() > .seconds(10) && elapsed() < .seconds(40), "\(elapsed())")
        #expect(await cluster.inventory.status()["notices"]?.elements?.count == 1)
        await cluster.inventory.stop()
    }

    /// An API server that is starting does not know custom resources yet.
    @Test func aStrayNotFoundAtTheStartTakesNothingOfTheCacheAway() async throws {
        let cluster = try Cluster("straystart", cache: true)
        cluster.fill()
        Self.setPolicy(cluster)
        await cluster.inventory.start()
        #expect(await cluster.converges())
        await cluster.inventory.saveCache()
        await cluster.inventory.stop()
        cluster.server.fault("{\"groupOff\":\"culvert.dev\"}")
        let second = try cluster.second()
        await second.start(patience: 0.5)
        #expect(await Self.policies(second) == ["e"])
        #expect(await second.inventory().unknown == [])
        await second.stop()
    }

    @Test func aPodThatStartsRightAfterTheDefinitionWasInstalledFindsItsPolicies() async throws {
        let cluster = try Cluster("install")
        cluster.server.fault("{\"groupOff\":\"culvert.dev\"}")
        cluster.fill()
        await cluster.inventory.start()
        // By then it is looked for every five to ten seconds.
        try await Task.sleep(for: .seconds(8))
        let path = "/api/v1/namespaces/ns1/pods/p1"
        let pod = PodReference(
            namespace: "ns1", name: "p1", uid: cluster.server.get(path)?["metadata"]?["uid"]?.string ?? "",
            isDecided: false, deadline: .now + .seconds(10))
        // One second after the last look at the earliest; nobody else is kept waiting.
        _ = try await cluster.inventory.identify(pod)
        #expect(await Self.policies(cluster.inventory) == [])
        let quick = ContinuousClock.now
        for _ in 0..<20 { _ = try await cluster.inventory.identify(pod) }
        #expect(ContinuousClock.now - quick < .milliseconds(200))
        // The looks are two to four seconds apart by then. The last one must be a second old for an ADD to look again.
        try await Task.sleep(for: .milliseconds(3000))
        func looks() -> Int { cluster.server.counters().requests["list egresspolicies.culvert.dev"] ?? 0 }
        var (count, since) = (looks(), ContinuousClock.now)
        #expect(count > 1)
        while ContinuousClock.now - since < .milliseconds(1200) {
            try await Task.sleep(for: .milliseconds(20))
            let now = looks()
            if now != count { (count, since) = (now, .now) }
        }
        cluster.server.fault("{\"groupOn\":\"culvert.dev\"}")
        Self.setPolicy(cluster)
        let inventory = cluster.inventory
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<10 {
                group.addTask {
                    _ = try await inventory.identify(pod)
                    #expect(await Self.policies(inventory) == ["e"])
                }
            }
            try await group.waitForAll()
        }
        #expect(cluster.server.counters().mostWatches.values.allSatisfy { $0 <= 1 })
        await cluster.inventory.stop()
    }

    @Test func whatWasNeverListedIsNotKnown() async throws {
        let client = try KubernetesClient(
            access: ClusterAccess(server: "http://127.0.0.1:9", credential: .none), userAgent: "test")
        let inventory = KubernetesInventory(
            client: client, nodeName: "n0", cachePath: nil, ceiling: 1, logger: .quiet)
        let starting = Task { await inventory.start(patience: 0.1) }
        try await Task.sleep(for: .milliseconds(500))
        let unknown = await inventory.inventory().unknown
        #expect(unknown.count == 10, "\(unknown)")
        #expect(unknown.contains { $0.hasPrefix("egresspolicies.culvert.dev: not listed yet") })
        starting.cancel()
        await inventory.stop()
    }

    @Test func theLastInventoryIsKeptOnDisk() async throws {
        let cluster = try Cluster("cache", cache: true)
        cluster.fill()
        cluster.make([
            .set(cluster.content.set("Peer", "peer1", ClusterContent.peer(1, 1))),
            .set(
                cluster.content.set(
                    "EgressPolicy", "e", ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "e", 1))),
        ])
        await cluster.inventory.start()
        #expect(await cluster.converges())
        await cluster.inventory.saveCache()
        await cluster.inventory.stop()
        let path = "\(cluster.server.directory)/inventory.json"
        #expect(Shell.run("stat -c %a \(path)").output == "600\n")
        // A server that answers nobody.
        let client = try KubernetesClient(
            access: ClusterAccess(server: "http://127.0.0.1:9", credential: .none), userAgent: "test")
        let second = KubernetesInventory(
            client: client, nodeName: "n0", cachePath: path, ceiling: 1, logger: .quiet)
        await second.start(patience: 0.3)
        #expect(cluster.same(await second.inventory(), cluster.content.expected(on: "n0")))
        let status = await second.status()
        #expect((status["fromDiskSeconds"]?.integer ?? -1) >= 0, "\(status.text())")
        #expect(status["synchronized"]?.bool == false)
        await second.stop()
    }

    /// A hundred times as fast as the world: the waiting is the clock's, the connections are real.
    @Test func tenMinutesWithoutTheServerLoseNothingAndHammerNobody() async throws {
        let clock = ScaledClock(factor: 100)
        let cluster = try Cluster("tenminutes", cache: true, ceiling: 30, clock: clock)
        cluster.fill()
        await cluster.inventory.start()
        #expect(await cluster.converges())
        let before = await cluster.inventory.inventory()
        func reference(_ n: Int, uid: String? = nil) -> PodReference {
            let path = "/api/v1/namespaces/ns\(n % 3)/pods/p\(n)"
            return PodReference(
                namespace: "ns\(n % 3)", name: "p\(n)",
                uid: uid ?? cluster.server.get(path)?["metadata"]?["uid"]?.string ?? "", isDecided: false,
                deadline: .now + .milliseconds(700))
        }
        let pods = (0..<4).map { reference($0) }
        cluster.server.fault("{\"disconnect\":true}")
        let elapsed = clock.stopwatch()
        cluster.server.control("reset", "")
        var random = SeededGenerator(seed: 1)
        var asked = 0
        while elapsed() < .seconds(600) {
            // Things go on at the server, which nobody hears of; pods that are known are judged, others are not.
            cluster.make((0..<3).map { _ in cluster.content.change(&random) })
            #expect(try await cluster.inventory.identify(pods[asked % 4]).origin == .watch)
            if asked == 2 {
                await #expect(throws: PodLookup.Failure.self) {
                    try await cluster.inventory.identify(reference(1, uid: "somebody-else"))
                }
            }
            asked += 1
            #expect(cluster.same(await cluster.inventory.inventory(), before), "what was known stays")
            try await Task.sleep(for: .milliseconds(200))
        }
        #expect(asked > 10)
        let problems = await cluster.inventory.status()["problems"]?.elements?.count ?? 0
        #expect(problems >= 7, "one of each resource that is watched")
        let sum = cluster.server.counters().refused
        // Eight watches, which wait for 1.5 to 3 seconds by then (and the judged pod's own requests).
        #expect(sum > 8 * 10 && sum < 8 * 420, "\(sum) connections in ten minutes")
        cluster.server.fault("{\"disconnect\":false}")
        #expect(await cluster.converges())
        for _ in 0..<100 where await cluster.inventory.status()["problems"]?.elements?.isEmpty != true {
            try await Task.sleep(for: .milliseconds(100))
        }
        #expect(await cluster.inventory.status()["problems"]?.elements?.isEmpty == true)
        #expect(cluster.server.counters().mostWatches.values.allSatisfy { $0 <= 1 })
        await cluster.inventory.stop()
    }

    @Test(arguments: ["", "--before-1.28"]) func selectedPodsAreCounted(_ options: String) async throws {
        let cluster = try Cluster(
            "count" + (options.isEmpty ? "" : "old"), options: options, clock: ScaledClock(factor: 10))
        cluster.fill()
        func pod(
            _ n: Int, _ namespace: Int, app: String = "shop", annotation: String? = nil, spec: String = "",
            phase: String = "Running"
        ) -> String {
            let annotations = annotation.map { "\"culvert.dev/egress-policy\":\"\($0)\"" } ?? ""
            return
                "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"c\(n)\",\"namespace\":\"ns\(namespace)\",\"labels\":{\"app\":\"\(app)\"},\"annotations\":{\(annotations)}},\"spec\":{\(spec)\"nodeName\":\"n\(n % 4)\",\"containers\":[]},\"status\":{\"phase\":\"\(phase)\"}}"
        }
        cluster.server.apply([
            pod(1, 0), pod(2, 0), pod(3, 1), pod(4, 2), pod(5, 0, app: "other"), pod(6, 0, annotation: "none"),
            pod(7, 0, annotation: "e"), pod(8, 0, phase: "Succeeded"),
        ])
        func policy(_ selectors: String) -> String {
            "{\"apiVersion\":\"culvert.dev/v1alpha1\",\"kind\":\"EgressPolicy\",\"metadata\":{\"name\":\"e\"},\"spec\":{\"selectors\":[\(selectors)],\"destinationCIDRs\":[\"0.0.0.0/0\"],\"egressGateway\":{\"nodeSelector\":{}}}}"
        }
        let shop = "\"podSelector\":{\"matchLabels\":{\"app\":\"shop\"}}"
        await cluster.publisher.start()
        await cluster.inventory.start()
        await cluster.publisher.report([PolicyReport(name: "e", activeGateways: ["n0"], reason: "")])
        func status() -> JSON? { cluster.server.get("/apis/culvert.dev/v1alpha1/egresspolicies/e")?["status"] }
        func counts(_ selectors: String, _ expected: Int64) async throws {
            cluster.server.apply([policy(selectors)])
            try await eventually { status()?["selectedPods"]?.integer == expected }
            #expect(status()?["activeGateways"]?.elements?.first?.string == "n0")
        }
        try await counts("{\(shop)}", 5)
        try await counts(
            "{\(shop),\"namespaceSelector\":{\"matchLabels\":{\"kubernetes.io/metadata.name\":\"ns0\"}}}", 3)
        try await counts(
            "{\"podSelector\":{\"matchLabels\":{\"app\":\"shop\",\"io.kubernetes.pod.namespace\":\"ns1\"}}},{\"podSelector\":{\"matchExpressions\":[{\"key\":\"app\",\"operator\":\"In\",\"values\":[\"other\"]}]}}",
            2)
        try await counts("{\(shop),\"nodeSelector\":{\"matchLabels\":{\"zone\":\"none\"}}}", 0)
        // Pods of the host's network are never attachments; a server before 1.28 cannot tell by metadata.
        cluster.server.apply([pod(9, 0, spec: "\"hostNetwork\":true,")])
        try await counts("{\(shop)},{\(shop)}", options.isEmpty ? 5 : 6)
        // Once told, it is left alone, however often it is counted.
        let path = "patch egresspolicies.culvert.dev/status"
        let writes = cluster.server.counters().requests[path]
        try await Task.sleep(for: .seconds(2))
        #expect(cluster.server.counters().requests[path] == writes)
        #expect(cluster.server.counters().denials.isEmpty)
        await cluster.publisher.stop()
        await cluster.inventory.stop()
    }

    private static func inventory(
        _ cluster: Cluster, _ nodes: KubernetesInventory.NodeReading
    ) async throws -> KubernetesInventory {
        let client = try KubernetesClient(
            access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
            userAgent: "\(nodes) n0")
        let inventory = KubernetesInventory(
            client: client, nodeName: "n0", cachePath: nil, nodes: nodes, ceiling: 1, logger: .quiet)
        await inventory.start()
        return inventory
    }

    @Test func aMeshNeedsTheMetadataOfEveryNode() async throws {
        let cluster = try Cluster("metadata")
        cluster.fill()
        let inventory = try await Self.inventory(cluster, .metadata)
        let node = await inventory.inventory().nodes["n2"]
        #expect(node?.labels == ["zone": "z1"] && node?.mesh.location == "l1")
        #expect(
            node?.podCIDRs == [IPNetwork("10.244.2.0/24")!] && node?.internalIPs == [], "the Node's own are not read")
        await inventory.stop()
        await cluster.inventory.stop()
    }

    @Test func ofOtherNodesTheCiliumNodeIsEnough() async throws {
        let cluster = try Cluster("own")
        cluster.fill()
        func ciliumNode(_ n: Int, _ labels: String) -> String {
            ClusterContent.ciliumNode(n, 1).replacingOccurrences(
                of: "\"name\":\"n\(n)\"", with: "\"name\":\"n\(n)\",\"labels\":{\(labels)}")
        }
        func host(_ n: Int) -> String { "\"kubernetes.io/hostname\":\"n\(n)\"" }
        let own = ClusterContent.node(0, 1).replacingOccurrences(of: "\"zone\"", with: "\(host(0)),\"zone\"")
        cluster.server.apply(
            [own] + (0..<4).map { ciliumNode($0, "\(host($0)),\"zone\":\"c\($0)\"") })
        let inventory = try await Self.inventory(cluster, .own)
        #expect(await inventory.inventory().nodes.count == 4)
        let other = await inventory.inventory().nodes["n2"]
        #expect(other?.labels["zone"] == "c2" && other?.overlayV4 == IPAddress("10.244.2.1"))
        #expect(await inventory.inventory().nodes["n0"]?.labels["zone"] == "z1", "the own Node's word counts")
        // What the kubelets report of the others is sent to nobody here.
        let sent = {
            cluster.server.control("counters")?["clients"]?.elements?.first { $0["userAgent"]?.string == "own n0" }?[
                "bytesSent"]?.integer ?? 0
        }
        let before = sent()
        for r in 0..<50 { cluster.server.apply([ClusterContent.node(2, r)]) }
        try await Task.sleep(for: .milliseconds(300))
        #expect(sent() - before < 10_000, "bookmarks")
        #expect(await inventory.inventory().nodes["n2"]?.annotations.isEmpty == true)
        // But for a gateway, which is asked for once: its own word on its address, and on nothing else.
        cluster.server.apply([
            ClusterContent.node(2, 7).replacingOccurrences(
                of: "\"annotations\":{", with: "\"annotations\":{\"culvert.dev/egress-address\":\"192.0.2.7\",")
        ])
        await inventory.look(atGateways: ["n2"], inDoubt: [])
        func annotations() async -> [String: String] { await inventory.inventory().nodes["n2"]?.annotations ?? [:] }
        for _ in 0..<100 where await annotations().isEmpty { try await Task.sleep(for: .milliseconds(50)) }
        #expect(await annotations() == ["culvert.dev/egress-address": "192.0.2.7"])
        #expect(cluster.server.counters().requests["get nodes"] == 1)
        cluster.server.apply([ciliumNode(2, "\(host(2)),\"zone\":\"drained\"")])
        for _ in 0..<100 where await inventory.inventory().nodes["n2"]?.labels["zone"] != "drained" {
            try await Task.sleep(for: .milliseconds(50))
        }
        #expect(await inventory.inventory().nodes["n2"]?.labels["zone"] == "drained", "at once")
        #expect(cluster.server.counters().denials.isEmpty)
        // A Cilium that does not copy labels: the Nodes' are needed after all.
        cluster.server.apply((0..<4).map { ciliumNode($0, "") })
        for _ in 0..<100 where await inventory.inventory().nodes["n3"]?.labels["zone"] != "z1" {
            try await Task.sleep(for: .milliseconds(50))
        }
        #expect(await inventory.inventory().nodes["n3"]?.labels["zone"] == "z1")
        #expect(cluster.server.counters().mostWatches["nodes"] == 1, "never both at once")
        await inventory.stop()
        await cluster.inventory.stop()
    }

    /// A look-up that failed has said nothing of the gateway. It comes again in seconds rather than in ten minutes; until then no
    /// egress address is known of the gateway.
    @Test func aGatewayWhoseLookUpFailedIsAskedAgainInSeconds() async throws {
        let cluster = try Cluster("lookup")
        cluster.fill()
        cluster.server.apply([
            ClusterContent.node(2, 1).replacingOccurrences(
                of: "\"annotations\":{", with: "\"annotations\":{\"culvert.dev/egress-address\":\"192.0.2.7\","),
            ClusterContent.ciliumNode(2, 1).replacingOccurrences(
                of: "\"name\":\"n2\"",
                with: "\"name\":\"n2\",\"labels\":{\"kubernetes.io/hostname\":\"n2\",\"zone\":\"z\"}"),
        ])
        let client = try KubernetesClient(
            access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
            userAgent: "lookups")
        let inventory = KubernetesInventory(
            client: client, nodeName: "n0", cachePath: nil, nodes: .own, ceiling: 1, clock: ScaledClock(factor: 20),
            logger: .quiet)
        await inventory.start()
        cluster.server.fault("{\"status\":{\"code\":503,\"count\":2,\"match\":\"/nodes/n2\"}}")
        await inventory.look(atGateways: ["n2"], inDoubt: [])
        func address() async -> String? {
            await inventory.inventory().nodes["n2"]?.annotations["culvert.dev/egress-address"]
        }
        // 10 s of the clock are half a second; ten minutes would be 30 seconds.
        for _ in 0..<100 where await address() == nil { try await Task.sleep(for: .milliseconds(50)) }
        #expect(await address() == "192.0.2.7")
        #expect(cluster.server.counters().requests["get nodes"] ?? 0 >= 2, "the first look-up failed")
        await inventory.stop()
        await cluster.inventory.stop()
    }

    /// Of a gateway's Node the taints are read too, however little of the other Nodes is: by them it ranks lower.
    @Test(arguments: [KubernetesInventory.NodeReading.own, .metadata])
    func aGatewayThatKubernetesHasGivenUpIsKnown(_ reading: KubernetesInventory.NodeReading) async throws {
        let cluster = try Cluster("taint\(reading)")
        cluster.fill()
        func node(_ taints: String) -> String {
            ClusterContent.node(2, 1).replacingOccurrences(of: "\"spec\":{", with: "\"spec\":{\"taints\":[\(taints)],")
        }
        func taint(_ key: String) -> String { "{\"key\":\"node.kubernetes.io/\(key)\",\"effect\":\"NoExecute\"}" }
        let label = "\"labels\":{\"kubernetes.io/hostname\":\"n2\",\"role\":\"gateway\"}"
        cluster.server.apply([
            node(taint("unreachable")),
            ClusterContent.ciliumNode(2, 1).replacingOccurrences(
                of: "\"name\":\"n2\"", with: "\"name\":\"n2\",\(label)"),
        ])
        let clock = ScaledClock(factor: 60)
        let client = try KubernetesClient(
            access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
            userAgent: "taints")
        let inventory = KubernetesInventory(
            client: client, nodeName: "n0", cachePath: nil, nodes: reading, ceiling: 1, clock: clock, logger: .quiet)
        await inventory.start()
        func isGivenUp() async -> Bool { await inventory.inventory().nodes["n2"]?.isGivenUp == true }
        func becomes(_ wanted: Bool) async throws -> Bool {
            for _ in 0..<100 where await isGivenUp() != wanted { try await Task.sleep(for: .milliseconds(50)) }
            return await isGivenUp() == wanted
        }
        #expect(await isGivenUp() == false, "nobody has asked yet")
        await inventory.look(atGateways: ["n2"], inDoubt: ["n2"])
        #expect(try await becomes(true))
        // The clock runs 60 times as fast: a minute later.
        cluster.server.apply([node("")])
        #expect(try await becomes(false))
        cluster.server.apply([node(taint("disk-pressure"))])
        try await Task.sleep(for: .seconds(2))
        #expect(await isGivenUp() == false)
        cluster.server.apply([node(taint("out-of-service"))])
        #expect(try await becomes(true))
        cluster.server.apply([node("")])
        #expect(try await becomes(false))
        // It recovers while no pod here uses it, and then is used once more.
        cluster.server.apply([node(taint("unreachable"))])
        #expect(try await becomes(true))
        await inventory.look(atGateways: [], inDoubt: [])
        try await Task.sleep(for: .milliseconds(500))
        cluster.server.apply([node("")])
        await inventory.look(atGateways: ["n2"], inDoubt: ["n2"])
        #expect(try await becomes(false))
        // The Node is gone and its CiliumNode is not yet. (Where all Nodes are watched, the gateway is gone with it.)
        if reading == .own {
            cluster.server.delete([node("")])
            #expect(try await becomes(true))
            #expect(await inventory.inventory().nodes["n2"]?.overlayV4 != nil, "it stays a candidate")
        }
        #expect(cluster.server.counters().denials.isEmpty)
        await inventory.stop()
        await cluster.inventory.stop()
    }

    /// Nobody knows which nodes run a helper; here the first two by name do not.
    @Test func ofAPolicyWithoutAGatewayOneNodeTells() async throws {
        let cluster = try Cluster("turns")
        cluster.fill()
        cluster.server.apply([ClusterContent.policy("culvert.dev/v1alpha1", "EgressPolicy", "e", 1)])
        let clock = ScaledClock(factor: 5)
        var inventories: [KubernetesInventory] = []
        var publishers: [KubernetesPublisher] = []
        for (rank, node) in [(2, "n2"), (3, "n3"), (700, "n1")] {
            let client = try KubernetesClient(
                access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
                userAgent: "own \(node)")
            let inventory = KubernetesInventory(
                client: client, nodeName: node, cachePath: nil, ceiling: 1, clock: clock, logger: .quiet)
            let publisher = KubernetesPublisher(
                client: client, nodeName: node, inventory: inventory, clock: clock, logger: .quiet)
            await publisher.start()
            await inventory.start()
            await publisher.report([PolicyReport(name: "e", activeGateways: [], reason: "none fits", rank: rank)])
            inventories.append(inventory)
            publishers.append(publisher)
        }
        func status() -> JSON? { cluster.server.get("/apis/culvert.dev/v1alpha1/egresspolicies/e")?["status"] }
        try await eventually { status()?["reason"]?.string == "none fits" && status()?["selectedPods"] != nil }
        try await Task.sleep(for: .seconds(2))
        let writes = (cluster.server.control("counters")?["clients"]?.elements ?? []).filter {
            $0["requests"]?["patch"]?["egresspolicies.culvert.dev/status"] != nil
        }.compactMap { $0["userAgent"]?.string }
        #expect(writes == ["own n2"])
        // It gets a gateway, loses it, and gets it again: each time somebody says so.
        for _ in 0..<2 {
            await publishers[0].report([])
            await publishers[2].report([])
            await publishers[1].report([PolicyReport(name: "e", activeGateways: ["n3"], reason: "")])
            try await eventually { status()?["activeGateways"]?.elements?.first?.string == "n3" }
            for (publisher, rank) in zip(publishers, [2, 3, 700]) {
                await publisher.report([PolicyReport(name: "e", activeGateways: [], reason: "none fits", rank: rank)])
            }
            try await eventually {
                status()?["reason"]?.string == "none fits" && status()?["activeGateways"]?.elements?.isEmpty == true
            }
        }
        for publisher in publishers { await publisher.stop() }
        for inventory in inventories { await inventory.stop() }
        await cluster.inventory.stop()
    }

    /// Of thousands of nodes, each every half minute.
    @Test func aSignOfLifeIsReadAndIsNoNews() async throws {
        let cluster = try Cluster("signs")
        cluster.fill()
        func sign(_ seconds: String) {
            cluster.server.apply([
                "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n2\",\"annotations\":{\"kilo.squat.ai/last-seen\":\"\(seconds)\"}}}"
            ])
        }
        sign("1700000000")
        await cluster.inventory.start()
        func seen() async -> Int64? { await cluster.inventory.inventory().nodes["n2"]?.mesh.lastSeen.seconds }
        #expect(await seen() == 1_700_000_000)
        let before = await cluster.inventory.inventory().revision.number
        sign("1700000030")
        try await eventually { await seen() == 1_700_000_030 }
        #expect(await cluster.inventory.inventory().revision.number == before)
        // The same after a list, which is made anew when a watch cannot go on.
        cluster.server.fault("{\"compact\":true}")
        sign("1700000060")
        try await eventually { await seen() == 1_700_000_060 }
        // What cannot be read is told.
        sign("yesterday")
        try await eventually { await !cluster.inventory.inventory().problems.isEmpty }
        #expect(await cluster.inventory.inventory().revision.number > before)
        await cluster.inventory.stop()
    }

    @Test func whatWasWrittenIntoTheNodeIsTakenBack() async throws {
        let cluster = try Cluster("withdraw")
        cluster.fill()
        await cluster.publisher.start()
        await cluster.inventory.start()
        func annotations() -> JSON? { cluster.server.get("/api/v1/nodes/n0")?["metadata"]?["annotations"] }
        await cluster.publisher.publish(annotations: ["kilo.squat.ai/key": "k1", "kilo.squat.ai/last-seen": "1"])
        try await eventually { annotations()?["kilo.squat.ai/key"]?.string == "k1" }
        await cluster.publisher.stop()
        await cluster.inventory.stop()
        let client = try KubernetesClient(
            access: ClusterAccess(server: cluster.server.url, credential: .tokenFile(cluster.tokenFile)),
            userAgent: "test")
        try await KubernetesPublisher.withdraw(fromNode: "n0", client: client)
        #expect(annotations()?["kilo.squat.ai/key"] == nil && annotations()?["kilo.squat.ai/last-seen"] == nil)
        #expect(annotations()?["kilo.squat.ai/location"]?.string == "l1", "somebody else's stays")
        // One that does not exist is not made.
        try await KubernetesPublisher.withdraw(fromNode: "n99", client: client)
        #expect(cluster.server.get("/api/v1/nodes/n99")?["metadata"] == nil)
        await client.shutdown()
    }

    @Test func publishesOnlyWhatChanges() async throws {
        let cluster = try Cluster("publish")
        cluster.fill()
        await cluster.publisher.start()
        await cluster.inventory.start()
        await cluster.publisher.publish(annotations: [
            "kilo.squat.ai/key": "k1", "culvert.dev/egress-address": "1.2.3.4",
        ])
        func annotations() -> JSON? { cluster.server.get("/api/v1/nodes/n0")?["metadata"]?["annotations"] }
        try await eventually { annotations()?["kilo.squat.ai/key"]?.string == "k1" }
        #expect(annotations()?["kilo.squat.ai/location"]?.string == "l1", "somebody else's stays")
        for _ in 0..<5 {
            await cluster.publisher.publish(
                annotations: ["kilo.squat.ai/key": "k1", "culvert.dev/egress-address": "1.2.3.4"])
            try await Task.sleep(for: .milliseconds(150))
        }
        #expect(cluster.server.counters().requests["patch nodes"] == 1)
        await cluster.publisher.publish(annotations: ["kilo.squat.ai/key": "k2"])
        try await eventually { annotations()?["kilo.squat.ai/key"]?.string == "k2" }
        #expect(annotations()?["culvert.dev/egress-address"] == nil, "what is said no more goes")
        await cluster.publisher.stop()
        await cluster.inventory.stop()
    }

    @Test func aPodIsJudgedByWatchOrRequestOrNotAtAll() async throws {
        let cluster = try Cluster("pods")
        cluster.fill()
        await cluster.inventory.start()
        func reference(_ name: String, _ uid: String, seconds: Int = 2, decided: Bool = false) -> PodReference {
            PodReference(
                namespace: "ns1", name: name, uid: uid, isDecided: decided, deadline: .now + .seconds(seconds))
        }
        func uid(_ name: String) -> String {
            cluster.server.get("/api/v1/namespaces/ns1/pods/\(name)")?["metadata"]?["uid"]?.string ?? ""
        }
        let first = uid("p1")
        #expect(try await cluster.inventory.identify(reference("p1", first)).origin == .watch)
        #expect(try await cluster.inventory.identify(reference("any", "any", decided: true)).origin == .annotations)
        await #expect(throws: PodLookup.Failure.self) {
            try await cluster.inventory.identify(reference("p1", "another-uid", seconds: 1))
        }
        // The watch is behind: one request knows.
        cluster.server.fault("{\"stallWatches\":true}")
        cluster.server.apply([ClusterContent.pod(7, node: "n0", label: "late")])
        let late = try await cluster.inventory.identify(reference("p7", uid("p7"), seconds: 5))
        #expect(late.origin == .get || late.origin == .watch)
        #expect(await cluster.inventory.inventory().pods.contains { $0.name == "p7" })
        cluster.server.fault("{\"stallWatches\":false}")
        // Nobody answers.
        cluster.server.fault("{\"disconnect\":true}")
        let start = ContinuousClock.now
        let error = await #expect(throws: PodLookup.Failure.self) {
            try await cluster.inventory.identify(reference("p8", "uid-8"))
        }
        #expect(error?.message.contains("cannot be identified") == true)
        #expect(ContinuousClock.now - start < .seconds(2), "the plugin must get the answer in time")
        #expect(try await cluster.inventory.identify(reference("p1", first)).origin == .watch)
        #expect(try await cluster.inventory.identify(reference("p8", "uid-8", decided: true)).origin == .annotations)
        await cluster.inventory.stop()
    }

    /// A minute costs nothing where all is well, and a busy machine may need it.
    private func eventually(_ condition: () async -> Bool) async throws {
        let end = Date().addingTimeInterval(60)
        while await !condition() && Date() < end { try await Task.sleep(for: .milliseconds(100)) }
        #expect(await condition())
    }
}

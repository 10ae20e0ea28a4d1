import Foundation
import Inventory
import Jansson
import Model
import TestSupport
import Testing

@testable import Kubernetes

/// An API server that is away for a while, behind a proxy that is not.
@Suite(.serialized) struct ServerOutageTests {
    /// A stand-in with TLS, a proxy before it, and the inventory of node n0 that follows the server through the proxy.
    final class Cluster {
        let server: APIServer
        let proxy: TCPProxy
        let inventory: KubernetesInventory
        private static let userAgent = "outage"

        init(_ name: String, silence: KubernetesClient.Silence = .init()) throws {
            let directory = "/run/culvert-\(Shell.prefix)-api-\(name)"
            Shell.run(
                """
                mkdir -p \(directory) && cd \(directory) && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 \
                    -nodes -keyout tls.key -out tls.crt -days 2 -subj /CN=stand-in 2> /dev/null
                """)
            server = try APIServer(
                name,
                arguments: "--tls-cert \(directory)/tls.crt --tls-key \(directory)/tls.key --bookmark-seconds 60")
            proxy = try TCPProxy(name, to: server.url)
            var access = ClusterAccess(server: "https://127.0.0.1:\(proxy.port)")
            access.skipsVerification = true
            let client = try KubernetesClient(access: access, userAgent: Cluster.userAgent, silence: silence)
            inventory = KubernetesInventory(
                client: client, nodeName: "n0", cachePath: nil, nodes: .whole, logger: .quiet)
            server.apply([ClusterContent.node(0, 0)])
        }

        /// Watches that the server has open.
        var openWatches: Int64 {
            (server.control("counters")?["clients"]?.elements ?? []).filter {
                $0["userAgent"]?.string == Cluster.userAgent
            }.flatMap { $0["openWatches"]?.members ?? [] }.reduce(0) { $0 + ($1.value.integer ?? 0) }
        }
        var problems: [String] {
            get async {
                await inventory.status()["problems"]?.elements?.compactMap(\.string) ?? []
            }
        }

        /// Whether all watches follow the server.
        func isFollowed(_ revision: Int) async -> Bool {
            let zone = await inventory.inventory().nodes["n0"]?.labels["zone"]
            return await problems.isEmpty && openWatches == Int64(WatchedObjects.resources.count)
                && zone == "z\(revision)"
        }
        func follows(_ revision: Int, seconds: Double = 60) async throws -> Duration {
            let start = ContinuousClock.now
            while await !isFollowed(revision), ContinuousClock.now - start < .milliseconds(Int64(seconds * 1000)) {
                try await Task.sleep(for: .milliseconds(50))
            }
            return ContinuousClock.now - start
        }
    }

    /// The HTTP client's pool waits longer and longer for a connection by itself, up to a minute, as soon as it has been
    /// refused often enough: after 20 seconds. By hand: CULVERT_OUTAGE="60 60 60 60 60", the seconds of each outage; then the
    /// bound is that of the goal.
    @Test func afterAnOutageAllWatchesAreBackAtOnce() async throws {
        let given = ProcessInfo.processInfo.environment["CULVERT_OUTAGE"]
        let outages = (given ?? "22").split(separator: " ").compactMap { Int($0) }
        // What a busy machine takes for eight lists is not what this is about.
        let bound = given == nil ? Duration.seconds(12) : .seconds(5)
        let cluster = try Cluster("outage")
        await cluster.inventory.start()
        _ = try await cluster.follows(0)
        for (round, seconds) in outages.enumerated() {
            cluster.proxy.close(true)
            try await Task.sleep(for: .seconds(seconds))
            #expect(await cluster.problems.count >= 7)
            // The server is another one than before: it is not ready at first, and knows nothing of what was.
            cluster.server.fault("{\"restart\":1}")
            cluster.server.apply([ClusterContent.node(0, round + 1)])
            cluster.proxy.close(false)
            let returned = try await cluster.follows(round + 1, seconds: 90) - .seconds(1)
            if given != nil { print("after \(seconds) s all watches were back within \(returned)") }
            #expect(returned < bound, "after \(seconds) s")
        }
        await cluster.inventory.stop()
    }

    /// No error comes of it: the kernel of the proxy's host acknowledges what is sent. A bookmark comes once a minute at best.
    @Test func aProxyThatStandsStillIsNoticed() async throws {
        let cluster = try Cluster("frozen", silence: .init(quiet: .seconds(2), answer: .seconds(2)))
        await cluster.inventory.start()
        _ = try await cluster.follows(0)
        let quiet = ContinuousClock.now
        while ContinuousClock.now - quiet < .seconds(6) {
            try await Task.sleep(for: .milliseconds(200))
            #expect(await cluster.problems == [], "a server that answers may be silent")
        }
        cluster.proxy.freeze(true)
        let frozen = ContinuousClock.now
        while await cluster.problems.count < 7, ContinuousClock.now - frozen < .seconds(30) {
            try await Task.sleep(for: .milliseconds(100))
        }
        #expect(await cluster.problems.count >= 7)
        cluster.server.apply([ClusterContent.node(0, 1)])
        cluster.proxy.freeze(false)
        #expect(try await cluster.follows(1) < .seconds(30))
        await cluster.inventory.stop()
    }

    /// Packets that vanish on the way of one connection only are noticed by the kernel, if it is told to look.
    @Test func theKernelLooksAfterEachConnection() async throws {
        let cluster = try Cluster("keepalive")
        await cluster.inventory.start()
        _ = try await cluster.follows(0)
        let connections = Shell.run("ss -Htno state established dst 127.0.0.1:\(cluster.proxy.port)").output
            .split(separator: "\n")
        #expect(connections.count >= WatchedObjects.resources.count)
        #expect(connections.allSatisfy { $0.contains("timer:(keepalive") }, "\(connections)")
        await cluster.inventory.stop()
    }
}

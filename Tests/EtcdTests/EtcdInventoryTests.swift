import CLinux
import Foundation
import Inventory
import Jansson
import Logging
import Model
import TestSupport
import Testing

@testable import Etcd

/// Against a real etcd, of one and of three members.
@Suite(.serialized) struct EtcdInventoryTests {
    /// Members on loopback, of this test's own.
    final class Store {
        let directory: String
        let ports: [Int]
        private let scheme: String
        private let options: String

        init(_ name: String, members: Int = 1, tls: Bool = false) throws {
            directory = "/run/culvert-\(Shell.prefix)-etcd-\(name)"
            scheme = tls ? "https" : "http"
            ports = (0..<members).map { _ in Store.freePort() }
            Shell.run("mkdir -p \(directory)")
            if tls {
                Store.makeCertificates(directory)
                options =
                    "--cert-file \(directory)/server.crt --key-file \(directory)/server.key --trusted-ca-file \(directory)/ca.crt --client-cert-auth"
            } else {
                options = ""
            }
            peers = (0..<members).map { _ in Store.freePort() }
            for member in 0..<members { start(member) }
            waitUntilHealthy()
        }
        private let peers: [Int]

        func waitUntilHealthy() { for _ in 0..<100 where ctl("endpoint health").status != 0 { usleep(100_000) } }

        /// An authority of its own, and certificates of the server and of a client.
        static func makeCertificates(_ directory: String) {
            Shell.run(
                """
                cd \(directory) && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca 2> /dev/null
                for n in server client; do
                    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $n.key -out $n.csr -subj /CN=$n 2> /dev/null
                    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > $n.ext
                    openssl x509 -req -in $n.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $n.crt -days 2 -extfile $n.ext 2> /dev/null
                done
                chmod 600 *.key
                """)
        }

        static func freePort() -> Int {
            let text = Shell.run(
                "/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(s.getsockname()[1])'"
            ).output
            return Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        }

        func start(_ member: Int) {
            let cluster = peers.indices.map { "m\($0)=http://127.0.0.1:\(peers[$0])" }.joined(separator: ",")
            Shell.run(
                """
                etcd --name m\(member) --data-dir \(directory)/data\(member) --listen-client-urls \(scheme)://127.0.0.1:\(ports[member]) \
                    --advertise-client-urls \(scheme)://127.0.0.1:\(ports[member]) --listen-peer-urls http://127.0.0.1:\(peers[member]) \
                    --initial-advertise-peer-urls http://127.0.0.1:\(peers[member]) --initial-cluster \(cluster) \
                    --heartbeat-interval 100 --election-timeout 1000 \(options) > \(directory)/log\(member) 2>&1 < /dev/null &
                echo $! > \(directory)/pid\(member)
                """)
        }
        func stop(_ member: Int) {
            let text = (try? String(contentsOfFile: "\(directory)/pid\(member)", encoding: .utf8)) ?? ""
            guard let pid = pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)), pid > 1 else { return }
            kill(pid, SIGKILL)
            for _ in 0..<50 where kill(pid, 0) == 0 { usleep(20_000) }
        }
        deinit {
            for member in ports.indices { stop(member) }
            Shell.run("rm -rf \(directory)")
        }

        var endpoints: [String] { ports.map { "\(scheme)://127.0.0.1:\($0)" } }
        var configuration: EtcdConfiguration {
            get throws {
                let path = "\(directory)/etcd.config"
                let files =
                    scheme == "https"
                    ? "trusted-ca-file: \(directory)/ca.crt\ncert-file: \(directory)/client.crt\nkey-file: \(directory)/client.key\n"
                    : ""
                try "endpoints: [\(endpoints.joined(separator: ", "))]\n\(files)".write(
                    toFile: path, atomically: true, encoding: .utf8)
                return try EtcdConfiguration(contentsOf: path)
            }
        }
        @discardableResult
        func ctl(_ command: String, input: String? = nil) -> CommandResult {
            let tls =
                scheme == "https"
                ? "--cacert \(directory)/ca.crt --cert \(directory)/client.crt --key \(directory)/client.key" : ""
            return Shell.run(
                "ETCDCTL_API=3 etcdctl --endpoints \(endpoints.joined(separator: ",")) \(tls) \(command)", input: input)
        }
        func put(
            _ n: Int, zone: String = "a", cluster: String = "default", lease: String? = nil, network: Int? = nil,
            prefix: String = "cilium/state/nodes/v1"
        ) {
            let value =
                "{\"Name\":\"n\(n)\",\"Cluster\":\"\(cluster)\",\"IPAddresses\":[{\"Type\":\"InternalIP\",\"IP\":\"10.0.0.\(n)\"},{\"Type\":\"CiliumInternalIP\",\"IP\":\"10.244.\(n).1\"}],\"IPv4AllocCIDR\":{\"IP\":\"10.244.\(network ?? n).0\",\"Mask\":\"////AA==\"},\"Labels\":{\"zone\":\"\(zone)\"}}"
            let result = ctl(
                "put \(prefix)/\(cluster)/n\(n) \(lease.map { "--lease \($0)" } ?? "")", input: value)
            #expect(result.status == 0, "\(result.errors)")
        }
    }

    static func inventory(
        _ store: Store, others: [(String, Store)] = [], cache: Bool = false, patience: Double = 5
    ) async throws -> EtcdInventory {
        let directory = "\(store.directory)/inventory"
        Shell.run("mkdir -p \(directory)")
        let inventory = try EtcdInventory(
            clusters: [.init(name: "default", configuration: try store.configuration)]
                + others.map { .init(name: $0.0, configuration: try $0.1.configuration) },
            directory: directory, cachePath: cache ? "\(store.directory)/etcd-nodes.json" : nil, idleSeconds: 5,
            renewal: .milliseconds(200), ceiling: 1, logger: .quiet)
        await inventory.start(patience: patience)
        return inventory
    }

    static func zones(_ inventory: EtcdInventory) async -> [String: String] {
        await inventory.inventory().nodes.mapValues { $0.labels["zone"] ?? "" }
    }
    static func becomes(_ inventory: EtcdInventory, _ expected: [String: String], seconds: Double = 15) async -> Bool {
        let end = Date().addingTimeInterval(seconds)
        while Date() < end {
            if await zones(inventory) == expected { return true }
            try? await Task.sleep(for: .milliseconds(50))
        }
        return false
    }

    @Test func nodesAppearChangeAndExpireWithTheirLease() async throws {
        let store = try Store("one")
        store.put(1)
        let inventory = try await Self.inventory(store)
        #expect(await Self.becomes(inventory, ["n1": "a"]))
        #expect(await inventory.inventory().nodes["n1"]?.overlayV4 == IPAddress("10.244.1.1"))
        store.put(1, zone: "b")
        let granted = store.ctl("lease grant 2").output
        let lease = granted.split(separator: " ").dropFirst().first.map(String.init)
        store.put(2, lease: lease)
        #expect(await Self.becomes(inventory, ["n1": "b", "n2": "a"]))
        #expect(await Self.becomes(inventory, ["n1": "b"]), "its lease is over")
        store.ctl("del cilium/state/nodes/v1/default/n1")
        #expect(await Self.becomes(inventory, [:]))
        // What is malformed keeps its last good content, and stops nobody.
        store.put(3)
        #expect(await Self.becomes(inventory, ["n3": "a"]))
        store.ctl("put cilium/state/nodes/v1/default/n3", input: "{")
        store.put(4)
        #expect(await Self.becomes(inventory, ["n3": "a", "n4": "a"]))
        #expect(await inventory.inventory().problems.contains { "\($0)".contains("n3") })
        await inventory.stop()
    }

    @Test func aStoreThatWasNeverReadIsNotKnown() async throws {
        let store = try Store("unread")
        let other = try Store("unreadother")
        store.put(1)
        store.stop(0)
        other.stop(0)
        Shell.run("mkdir -p \(store.directory)/inventory")
        // So that the directory is known, and says nothing.
        try "# nothing\n".write(toFile: "\(store.directory)/inventory/a.yaml", atomically: false, encoding: .utf8)
        let inventory = try EtcdInventory(
            clusters: [
                .init(name: "default", configuration: try store.configuration),
                .init(name: "east", configuration: try other.configuration),
            ], directory: "\(store.directory)/inventory", ceiling: 1, logger: .quiet)
        let starting = Task { await inventory.start(patience: 0.1) }
        let unread = await inventory.inventory()
        #expect(unread.unknown.count == 1, "\(unread.unknown)")
        #expect(unread.unknown.first?.hasPrefix("the nodes of cluster default are not known yet: ") == true)
        store.start(0)
        store.waitUntilHealthy()
        #expect(await Self.becomes(inventory, ["n1": "a"]))
        let read = await inventory.inventory()
        #expect(read.unknown == [])
        #expect(
            read.problems.contains { "\($0)".contains("the nodes of cluster east are not known yet") },
            "\(read.problems)")
        await starting.value
        // What was known stays known.
        store.stop(0)
        try await Task.sleep(for: .milliseconds(500))
        #expect(await inventory.inventory().unknown == [])
        await inventory.stop()
    }

    @Test func compactionAndARestartLoseNothing() async throws {
        let store = try Store("restart")
        store.put(1)
        let inventory = try await Self.inventory(store)
        store.stop(0)
        #expect(await Self.zones(inventory) == ["n1": "a"], "what was known stays")
        store.start(0)
        for _ in 0..<100 where store.ctl("endpoint health").status != 0 { usleep(100_000) }
        store.put(1, zone: "b")
        #expect(await Self.becomes(inventory, ["n1": "b"]))
        // Compacted while it is not looking.
        store.stop(0)
        store.start(0)
        for _ in 0..<100 where store.ctl("endpoint health").status != 0 { usleep(20_000) }
        for n in 2...5 { store.put(n) }
        store.ctl("del cilium/state/nodes/v1/default/n1")
        let revision =
            store.ctl("get nothing -w fields").output.split(separator: "\n")
            .first { $0.contains("\"Revision\"") }?.split(separator: " ").last ?? "0"
        #expect(store.ctl("compact \(revision)").status == 0)
        #expect(await Self.becomes(inventory, ["n2": "a", "n3": "a", "n4": "a", "n5": "a"]))
        await inventory.stop()
    }

    @Test func oneOfThreeMembersMayGo() async throws {
        let store = try Store("three", members: 3)
        for n in 1...3 { store.put(n) }
        let inventory = try await Self.inventory(store)
        #expect(await Self.becomes(inventory, ["n1": "a", "n2": "a", "n3": "a"]))
        for member in 0..<3 {
            store.stop(member)
            for _ in 0..<100 where store.ctl("get nothing").status != 0 { usleep(100_000) }
            store.put(1, zone: "without\(member)")
            let isThere = await Self.becomes(
                inventory, ["n1": "without\(member)", "n2": "a", "n3": "a"], seconds: 20)
            let status = await inventory.status().text()
            #expect(isThere, "\(member): \(status)")
            store.start(member)
            for _ in 0..<100 where store.ctl("endpoint health").status != 0 { usleep(100_000) }
        }
        await inventory.stop()
    }

    @Test func clustersOfAMeshOverTLS() async throws {
        let store = try Store("tls", tls: true)
        let other = try Store("other")
        store.put(1)
        other.put(2, cluster: "east")
        other.put(3, cluster: "east", network: 1)
        let inventory = try await Self.inventory(store, others: [("east", other)])
        #expect(await Self.becomes(inventory, ["n1": "a", "east/n2": "a"]))
        let problems = await inventory.inventory().problems.map { "\($0)" }
        #expect(
            problems.contains { $0.contains("n3") && $0.contains("overlaps with 10.244.1.0/24 of node n1") },
            "\(problems)")
        await inventory.stop()
    }

    @Test func aHelperThatStartsWithoutItsStoreGoesOnFromDisk() async throws {
        let store = try Store("disk")
        let other = try Store("diskother")
        for n in 1...3 { store.put(n) }
        other.put(1, zone: "east", cluster: "east", network: 9)
        let first = try await Self.inventory(store, others: [("east", other)], cache: true)
        let expected = ["n1": "a", "n2": "a", "n3": "a", "east/n1": "east"]
        #expect(await Self.becomes(first, expected))
        let whole = await first.inventory()
        await first.saveCache()
        await first.stop()
        let mode = Shell.run("stat -c %a \(store.directory)/etcd-nodes.json").output
        #expect(mode == "600\n")
        store.stop(0)
        other.stop(0)
        let second = try await Self.inventory(store, others: [("east", other)], cache: true, patience: 0.3)
        #expect(await second.inventory() == whole)
        let status = await second.status()
        #expect(status["fromDiskSeconds"]?.integer != nil && status["synchronized"]?.bool == false)
        // What is gone by the time that it comes back is gone.
        store.start(0)
        other.start(0)
        store.waitUntilHealthy()
        store.ctl("del cilium/state/nodes/v1/default/n3")
        #expect(await Self.becomes(second, ["n1": "a", "n2": "a", "east/n1": "east"]))
        #expect(await second.status()["fromDiskSeconds"]?.integer == nil)
        await second.stop()
    }

    /// Cilium's clustermesh-apiserver begins with an empty etcd whenever it is restarted.
    @Test func aStoreThatIsNotCompleteYetTakesNoNodeAway() async throws {
        let store = try Store("synced")
        store.put(1)
        let other = try Store("east")
        let config = "{\"id\":2,\"capabilities\":{\"syncedCanaries\":true}}"
        func fill(_ nodes: ClosedRange<Int>) {
            other.ctl("put cilium/cluster-config/east", input: config)
            for n in nodes { other.put(n, cluster: "east") }
        }
        fill(2...4)
        other.ctl("put cilium/synced/east/cilium/state/nodes/v1", input: "1")
        let inventory = try await Self.inventory(store, others: [("east", other)])
        let all = ["n1": "a", "east/n2": "a", "east/n3": "a", "east/n4": "a"]
        #expect(await Self.becomes(inventory, all))
        #expect(await inventory.status()["synchronized"]?.bool == true)
        other.stop(0)
        Shell.run("rm -rf \(other.directory)/data0")
        other.start(0)
        other.waitUntilHealthy()
        // The first of its nodes is there again, and n4 will not come back: but nobody knows that yet.
        other.put(2, zone: "b", cluster: "east")
        #expect(await Self.becomes(inventory, all.merging(["east/n2": "b"]) { _, new in new }))
        fill(3...3)
        try await Task.sleep(for: .seconds(1))
        #expect(await Self.zones(inventory) == all.merging(["east/n2": "b"]) { _, new in new })
        other.ctl("put cilium/synced/east/cilium/state/nodes/v1", input: "1")
        #expect(await Self.becomes(inventory, ["n1": "a", "east/n2": "b", "east/n3": "a"]))
        await inventory.stop()
    }

    @Test func nodesThatKvstoremeshHasCopied() async throws {
        let store = try Store("cached")
        store.put(1)
        let mesh = try Store("kvstoremesh")
        mesh.ctl("put cilium/cluster-config/east", input: "{\"id\":2,\"capabilities\":{\"cached\":true}}")
        mesh.put(2, cluster: "east", prefix: "cilium/cache/nodes/v1")
        mesh.put(3, cluster: "east")
        let inventory = try await Self.inventory(store, others: [("east", mesh)])
        #expect(await Self.becomes(inventory, ["n1": "a", "east/n2": "a"]))
        // It stops being a copy.
        mesh.ctl("put cilium/cluster-config/east", input: "{\"id\":2}")
        #expect(await Self.becomes(inventory, ["n1": "a", "east/n3": "a"]))
        await inventory.stop()
    }

    @Test func twoClustersOfOneIDAreNotBothTaken() async throws {
        let store = try Store("id")
        let other = try Store("idother")
        store.ctl("put cilium/cluster-config/default", input: "{\"id\":3}")
        other.ctl("put cilium/cluster-config/east", input: "{\"id\":3}")
        store.put(1)
        other.put(2, cluster: "east")
        let inventory = try await Self.inventory(store, others: [("east", other)])
        #expect(await Self.becomes(inventory, ["n1": "a"]))
        let problems = await inventory.inventory().problems.map { "\($0)" }
        #expect(problems.contains { $0.contains("cluster east") && $0.contains("cluster-id 3") }, "\(problems)")
        other.ctl("put cilium/cluster-config/east", input: "{\"id\":4}")
        #expect(await Self.becomes(inventory, ["n1": "a", "east/n2": "a"]))
        await inventory.stop()
    }

    @Test func renewedCertificatesAreUsedWithoutARestart() async throws {
        let store = try Store("renewed", tls: true)
        store.put(1)
        let inventory = try await Self.inventory(store)
        #expect(await Self.becomes(inventory, ["n1": "a"]))
        // Another authority altogether: nothing of the old is good for anything.
        store.stop(0)
        Store.makeCertificates(store.directory)
        store.start(0)
        store.waitUntilHealthy()
        store.put(1, zone: "b")
        let isThere = await Self.becomes(inventory, ["n1": "b"])
        let status = await inventory.status().text()
        #expect(isThere, "\(status)")
        // What cannot be used is reported, and what worked goes on.
        Shell.run(
            "cp \(store.directory)/client.key \(store.directory)/saved && echo no key > \(store.directory)/client.key")
        store.stop(0)
        store.start(0)
        Shell.run("sleep 2; cp \(store.directory)/saved \(store.directory)/client.key")
        store.waitUntilHealthy()
        store.put(1, zone: "c")
        #expect(await Self.becomes(inventory, ["n1": "c"]))
        await inventory.stop()
    }

    @Test func aKeyThatEverybodyCanReadIsRefused() throws {
        let directory = NSTemporaryDirectory() + "\(Shell.prefix)-etcd-key"
        Shell.run(
            "mkdir -p \(directory) && echo key > \(directory)/key && chmod 644 \(directory)/key && printf 'endpoints: [https://127.0.0.1:1]\nkey-file: \(directory)/key\n' > \(directory)/config"
        )
        defer { Shell.run("rm -rf \(directory)") }
        let error = #expect(throws: EtcdConfiguration.Failure.self) {
            try EtcdConfiguration(contentsOf: "\(directory)/config")
        }
        #expect(error?.description.contains("chmod 600") == true)
        for text in ["", "endpoints: []", "endpoints: [127.0.0.1:2379]", "- x", "{"] {
            Shell.run("cat > \(directory)/config", input: text)
            #expect(throws: EtcdConfiguration.Failure.self) { try EtcdConfiguration(contentsOf: "\(directory)/config") }
        }
    }
}

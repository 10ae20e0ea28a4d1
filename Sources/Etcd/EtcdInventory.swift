import ClusterTransport
import Foundation
import Inventory
import Jansson
import Logging
import Model

/// Nodes from Cilium's key-value store, of one cluster or of several that are a mesh; policies, namespaces and what else
/// there is from the inventory directory.
///
/// Nodes of other clusters are named `CLUSTER/NODE`.
public actor EtcdInventory: InventorySource {
    /// One etcd to follow.
    public struct Cluster: Sendable {
        /// Cilium's `cluster-name`.
        public let name: String
        public let configuration: EtcdConfiguration
        public init(name: String, configuration: EtcdConfiguration) {
            self.name = name
            self.configuration = configuration
        }
    }

    public nonisolated let changes: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation
    public nonisolated var files: FileSource? { manifests }
    private nonisolated let manifests: FileSource
    private let clusters: [Cluster]
    private let clients: [EtcdClient]
    private let logger: Logger
    private let ceiling: Double

    /// By cluster and node.
    private var records: [String: [String: CiliumNodeRecord]] = [:]
    private var malformed: [String: InventoryProblem] = [:]
    private var listed: Set<String> = []
    private var problems: [String: String] = [:]
    private var heartbeats: [String: Date] = [:]
    private var tasks: [Task<Void, Never>] = []

    /// Cilium takes a store without a heartbeat for so long for dead, seconds.
    static let heartbeatPatience: TimeInterval = 2.25 * 60

    /// - Parameters:
    ///   - clusters: the own one first.
    ///   - idleSeconds: a watch that says nothing for so long is begun anew, where it was.
    public init(
        clusters: [Cluster], directory: String, idleSeconds: Int64 = 150, ceiling: Double = 15, logger: Logger
    ) throws {
        self.clusters = clusters
        self.logger = logger
        self.ceiling = ceiling
        clients = try clusters.map { try EtcdClient($0.configuration, idleSeconds: idleSeconds) }
        manifests = FileSource(directory: directory)
        (changes, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    /// Starts the watches and waits until every cluster is read; for the own one without end, for others ten seconds.
    public func start() async {
        for (cluster, client) in zip(clusters, clients) {
            for prefix in [CiliumNodeRecord.prefix + cluster.name + "/", CiliumNodeRecord.heartbeatKey] {
                tasks.append(Task { await self.follow(cluster.name, client, prefix: prefix) })
            }
        }
        tasks.append(Task { for await _ in self.manifests.changes { self.signal.yield() } })
        var hasTold = false
        let start = ContinuousClock.now
        while let own = clusters.first?.name, listed.count < clusters.count {
            if listed.contains(own) && ContinuousClock.now - start > .seconds(10) { break }
            if !hasTold && ContinuousClock.now - start > .seconds(5) {
                hasTold = true
                logger.warning("waiting for etcd", metadata: ["problem": "\(problems[own] ?? "")"])
            }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    public func stop() async {
        for task in tasks { task.cancel() }
        tasks = []
        for client in clients { await client.shutdown() }
    }

    // MARK: following

    /// Reads everything with a prefix and follows it from there on, at one member after the other.
    private nonisolated func follow(_ cluster: String, _ client: EtcdClient, prefix: String) async {
        var backoff = Backoff(ceiling: ceiling)
        var turn = 0
        var next: Int64?
        while !Task.isCancelled {
            let endpoint = client.endpoints[turn % client.endpoints.count]
            var hasBegun = false
            do {
                if next == nil {
                    let (entries, revision) = try await client.range(endpoint, prefix: prefix)
                    await replace(cluster, prefix, entries)
                    next = revision + 1
                }
                var reached = next ?? 1
                defer { next = reached }
                try await client.watch(endpoint, prefix: prefix, from: reached) { events, revision in
                    if !hasBegun {
                        hasBegun = true
                        await self.works(cluster)
                    }
                    await self.take(cluster, events)
                    reached = max(reached, revision + 1)
                }
                // A watch that ends by itself goes on where it was, but not in a hurry.
                try await Task.sleep(for: .milliseconds(500))
                if hasBegun { backoff.reset() }
            } catch {
                if hasBegun { backoff.reset() }
                if Task.isCancelled { return }
                if (error as? EtcdClient.Failure)?.isGone == true { next = nil }
                // The next member of the cluster may be there.
                turn += 1
                await fails(cluster, "\(error)")
                let isLastOfRound = turn % client.endpoints.count == 0
                try? await Task.sleep(for: isLastOfRound ? backoff.wait() : .milliseconds(50))
            }
        }
    }

    private func works(_ cluster: String) { problems[cluster] = nil }
    private func fails(_ cluster: String, _ error: String) {
        problems[cluster] = "etcd of cluster \(cluster): \(error)"
        logger.notice("etcd", metadata: ["cluster": "\(cluster)", "error": "\(error)"])
    }

    private func replace(_ cluster: String, _ prefix: String, _ entries: [EtcdClient.Entry]) {
        if prefix == CiliumNodeRecord.heartbeatKey {
            for entry in entries { set(cluster, entry, before: [:]) }
            return
        }
        let before = records[cluster] ?? [:]
        records[cluster] = [:]
        malformed = malformed.filter { !$0.key.hasPrefix("\(CiliumNodeRecord.prefix)\(cluster)/") }
        for entry in entries { set(cluster, entry, before: before) }
        listed.insert(cluster)
        signal.yield()
    }

    private func take(_ cluster: String, _ events: [EtcdClient.Event]) {
        guard !events.isEmpty else { return }
        for event in events {
            if event.isDeletion {
                malformed[event.entry.key] = nil
                if let name = CiliumNodeKey(event.entry.key, cluster: cluster)?.node { records[cluster]?[name] = nil }
            } else {
                set(cluster, event.entry, before: records[cluster] ?? [:])
            }
        }
        signal.yield()
    }

    private func set(_ cluster: String, _ entry: EtcdClient.Entry, before: [String: CiliumNodeRecord]) {
        if entry.key == CiliumNodeRecord.heartbeatKey {
            heartbeats[cluster] = Date()
            return
        }
        guard let key = CiliumNodeKey(entry.key, cluster: cluster) else { return }
        do {
            records[cluster, default: [:]][key.node] = try CiliumNodeRecord(key: entry.key, value: entry.value)
            malformed[entry.key] = nil
        } catch {
            // Its last good content stays.
            records[cluster, default: [:]][key.node] = before[key.node]
            malformed[entry.key] = InventoryProblem(file: entry.key, message: error.message)
        }
    }

    // MARK: the inventory

    public func inventory() async -> Inventory {
        var inventory = await manifests.inventory()
        var owners: [(network: IPNetwork, node: String, cluster: String)] = []
        for (index, cluster) in clusters.enumerated() {
            for (name, record) in (records[cluster.name] ?? [:]).sorted(by: { $0.key < $1.key }) {
                let known = index == 0 ? name : "\(cluster.name)/\(name)"
                if index > 0, let clash = clash(record, owners, cluster.name) {
                    inventory.problems.append(
                        InventoryProblem(
                            file: "cluster \(cluster.name)",
                            message:
                                "node \(name) is left out: its pods' network \(clash.0) overlaps with \(clash.1.network) of node \(clash.1.node) of cluster \(clash.1.cluster); clusters of one mesh need networks of their own"
                        ))
                    continue
                }
                owners += record.cilium.podCIDRs.map { ($0, name, cluster.name) }
                // What files say of the node goes over it: its annotations about the mesh, for one.
                let told = inventory.nodes[known]
                var node = record.node
                node.name = known
                var cilium = record.cilium
                cilium.name = known
                let (merged, found) = NodeMerge.merge(node, published: told, cilium: cilium)
                inventory.nodes[known] = merged
                inventory.problems += found
            }
        }
        inventory.problems += malformed.sorted { $0.key < $1.key }.map(\.value)
        return inventory
    }

    private func clash(
        _ record: CiliumNodeRecord, _ owners: [(network: IPNetwork, node: String, cluster: String)], _ cluster: String
    ) -> (IPNetwork, (network: IPNetwork, node: String, cluster: String))? {
        for network in record.cilium.podCIDRs {
            if let owner = owners.first(where: { $0.cluster != cluster && $0.network.overlaps(network) }) {
                return (network, owner)
            }
        }
        return nil
    }

    /// Pods are not in the store: what the files say of them is complete.
    public func identify(_ pod: PodReference) -> PodLookup { PodLookup(.given) }
    /// Only Cilium writes to its store; `<run-dir>/published` is handed on by other means.
    public func publish(annotations: [String: String]) {}
    public func report(_ policies: [PolicyReport]) {}
    public func record(_ event: ObjectEvent) {}

    public func status() -> JSON {
        var problems = self.problems.values.sorted()
        for (cluster, date) in heartbeats.sorted(by: { $0.key < $1.key }) {
            let age = Date().timeIntervalSince(date)
            if age > EtcdInventory.heartbeatPatience {
                problems.append(
                    "etcd of cluster \(cluster): no heartbeat of Cilium's operator for \(Int(age)) seconds; its nodes may be out of date"
                )
            }
        }
        return .make(
            ("source", .string("etcd")),
            ("endpoints", .array(clusters.flatMap(\.configuration.endpoints).map { .string($0) })),
            (
                "clusters",
                .array(
                    clusters.map { cluster in
                        .make(
                            ("name", .string(cluster.name)),
                            ("nodes", .integer(Int64(records[cluster.name]?.count ?? 0))),
                            ("read", .bool(listed.contains(cluster.name))))
                    })
            ), ("synchronized", .bool(listed.count == clusters.count)),
            ("problems", .array(problems.map { .string($0) })))
    }
}

/// `cilium/state/nodes/v1/CLUSTER/NODE`
struct CiliumNodeKey {
    let node: String
    /// nil where it is another key, or of another cluster than the one that is followed.
    init?(_ key: String, cluster: String) {
        let start = "\(CiliumNodeRecord.prefix)\(cluster)/"
        guard key.hasPrefix(start), key.utf8.count > start.utf8.count else { return nil }
        node = String(key.dropFirst(start.count))
    }
}

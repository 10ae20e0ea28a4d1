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
        /// Where its nodes are, without the cluster's name; nil: where its store says.
        public let prefix: String?
        public init(name: String, configuration: EtcdConfiguration, prefix: String? = nil) {
            self.name = name
            self.configuration = configuration
            self.prefix = prefix.map { $0.hasSuffix("/") ? String($0.dropLast()) : $0 }
        }
    }

    public nonisolated let changes: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation
    public nonisolated var files: FileSource? { manifests }
    private nonisolated let manifests: FileSource
    private let clusters: [Cluster]
    private let clients: [String: EtcdClient]
    private let logger: Logger
    private let ceiling: Double
    /// The last nodes on disk; nil: none are kept.
    private let cachePath: String?

    /// What is known of one cluster.
    private struct Known {
        var config = CiliumClusterConfig()
        /// By node.
        var records: [String: CiliumNodeRecord] = [:]
        /// By key.
        var malformed: [String: InventoryProblem] = [:]
        var isListed = false
        /// The store says that it has all nodes.
        var isSynced = false
        var heartbeat: Date?
        /// When what is known was written to disk; nil: it is from the store.
        var cachedAt: Date?
        var problem: String?
        /// Follow the nodes, and the canary that says that they are complete; `prefix` is where the nodes are.
        var nodesTask: Task<Void, Never>?
        var canaryTask: Task<Void, Never>?
        var prefix = ""
        /// Number of the task that follows the nodes: what an earlier task still reports is ignored.
        var generation = 0
        /// It has what the store has.
        var isRead: Bool { isListed && (isSynced || !config.hasSyncedCanaries) }
        /// All of it was known at some time, from the store or from disk.
        var wasKnown = false
    }
    private var known: [String: Known] = [:]
    private var tasks: [Task<Void, Never>] = []
    private var isCacheStale = false
    private var isStopped = false

    /// Cilium takes a store without a heartbeat for so long for dead, seconds.
    static let heartbeatPatience: TimeInterval = 2.25 * 60

    /// - Parameters:
    ///   - clusters: the own one first.
    ///   - idleSeconds: a watch that says nothing for so long is begun anew, where it was.
    ///   - renewal: certificates are read again when a request begins so long after the last look.
    public init(
        clusters: [Cluster], directory: String, cachePath: String? = nil, idleSeconds: Int64 = 150,
        renewal: Duration = .seconds(60), ceiling: Double = 15, logger: Logger
    ) throws {
        self.clusters = clusters
        self.logger = logger
        self.ceiling = ceiling
        self.cachePath = cachePath
        clients = try Dictionary(
            clusters.map { ($0.name, try EtcdClient($0.configuration, idleSeconds: idleSeconds, renewal: renewal)) },
            uniquingKeysWith: { first, _ in first })
        for cluster in clusters { known[cluster.name] = Known() }
        manifests = FileSource(directory: directory)
        (changes, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    /// Starts the watches and waits until every cluster is read. A store that is not there within `seconds` is gone on
    /// without, from the last nodes on disk, where there are any; the own one is waited for otherwise, others are not.
    public func start(patience seconds: Double = 5) async {
        for cluster in clusters {
            let name = cluster.name
            tasks.append(
                Task {
                    await self.follow(
                        name, prefix: CiliumClusterConfig.key(name), replace: { await self.replaceConfig(name, $0) },
                        take: { await self.takeConfig(name, $0) })
                })
            tasks.append(
                Task {
                    await self.follow(
                        name, prefix: CiliumNodeRecord.heartbeatKey,
                        replace: { if !$0.isEmpty { await self.beats(name) } },
                        take: { if !$0.isEmpty { await self.beats(name) } })
                })
        }
        tasks.append(Task { for await _ in self.manifests.changes { self.signal.yield() } })
        tasks.append(Task { await self.keepCache() })
        let start = ContinuousClock.now
        var isLate = false
        while let own = clusters.first?.name, known.values.contains(where: { !$0.isRead }) {
            if !isLate, ContinuousClock.now - start > .milliseconds(Int64(seconds * 1000)) {
                isLate = true
                loadCache()
                logger.warning("waiting for etcd", metadata: ["problem": "\(known[own]?.problem ?? "")"])
            }
            if isLate, known[own]?.isRead == true || known[own]?.cachedAt != nil { break }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    public func stop() async {
        isStopped = true
        for task in tasks + known.values.flatMap({ [$0.nodesTask, $0.canaryTask].compactMap { $0 } }) { task.cancel() }
        tasks = []
        for client in clients.values { await client.shutdown() }
    }

    // MARK: following

    /// Reads everything with a prefix and follows it from there on, at one member after the other.
    ///
    /// - Parameter first: is awaited before everything is read, at the same member.
    private nonisolated func follow(
        _ cluster: String, prefix: String, first: @Sendable (EtcdClient, String) async throws -> Void = { _, _ in },
        replace: @Sendable ([EtcdClient.Entry]) async -> Void,
        take: @Sendable ([EtcdClient.Event]) async -> Void
    ) async {
        guard let client = clients[cluster] else { return }
        var backoff = Backoff(ceiling: ceiling)
        var turn = 0
        var next: Int64?
        var store = ""
        while !Task.isCancelled {
            let endpoint = client.endpoints[turn % client.endpoints.count]
            var hasBegun = false
            do {
                if next == nil {
                    try await first(client, endpoint)
                    let read = try await client.range(endpoint, prefix: prefix)
                    if Task.isCancelled { return }
                    await replace(read.entries)
                    next = read.revision &+ 1
                    store = read.cluster
                }
                var reached = next ?? 1
                defer { next = reached }
                try await client.watch(endpoint, prefix: prefix, from: reached, cluster: store) { events, revision in
                    if !hasBegun {
                        hasBegun = true
                        await self.works(cluster)
                    }
                    if Task.isCancelled { return }
                    if !events.isEmpty { await take(events) }
                    reached = max(reached, revision &+ 1)
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

    private func works(_ cluster: String) { known[cluster]?.problem = nil }
    private func fails(_ cluster: String, _ error: String) {
        known[cluster]?.problem = "etcd of cluster \(cluster): \(error)"
        logger.notice("etcd", metadata: ["cluster": "\(cluster)", "error": "\(error)"])
    }
    private func beats(_ cluster: String) { known[cluster]?.heartbeat = Date() }

    private func changed() {
        isCacheStale = true
        signal.yield()
    }

    // MARK: what a cluster says of itself

    private func replaceConfig(_ cluster: String, _ entries: [EtcdClient.Entry]) {
        configure(cluster, entries.first { $0.key == CiliumClusterConfig.key(cluster) }?.value)
    }

    private func takeConfig(_ cluster: String, _ events: [EtcdClient.Event]) {
        for event in events where event.entry.key == CiliumClusterConfig.key(cluster) {
            // One that vanishes is the end of the lease of whoever wrote it, who will write it again.
            if !event.isDeletion { configure(cluster, event.entry.value) }
        }
    }

    /// Follows the nodes where the cluster says that they are.
    private func configure(_ cluster: String, _ value: [UInt8]?) {
        var config = known[cluster]?.config ?? CiliumClusterConfig()
        if let value {
            guard let read = CiliumClusterConfig(value) else {
                return fails(cluster, "\(CiliumClusterConfig.key(cluster)) is not JSON")
            }
            config = read
        }
        let before = known[cluster]?.config
        known[cluster]?.config = config
        let prefix =
            clusters.first { $0.name == cluster }?.prefix
            ?? (config.isCached ? CiliumNodeRecord.cachePrefix : CiliumNodeRecord.statePrefix)
        guard known[cluster]?.prefix != prefix else {
            if before != config { changed() }
            return
        }
        guard !isStopped else { return }
        known[cluster]?.prefix = prefix
        known[cluster]?.isListed = false
        let canary = CiliumClusterConfig.canary(cluster, prefix)
        known[cluster]?.canaryTask?.cancel()
        known[cluster]?.canaryTask = Task {
            await self.follow(
                cluster, prefix: canary,
                replace: { entries in
                    if entries.contains(where: { $0.key == canary }) { await self.canaryIsThere(cluster, prefix) }
                },
                take: { events in
                    if events.contains(where: { $0.entry.key == canary && !$0.isDeletion }) {
                        await self.canaryIsThere(cluster, prefix)
                    }
                })
        }
        followNodes(cluster)
    }

    /// Reads the nodes, and then follows them, anew.
    private func followNodes(_ cluster: String) {
        guard !isStopped, let state = known[cluster] else { return }
        state.nodesTask?.cancel()
        let generation = state.generation + 1
        let prefix = state.prefix
        let canary = CiliumClusterConfig.canary(cluster, prefix)
        known[cluster]?.generation = generation
        known[cluster]?.nodesTask = Task {
            await self.follow(
                cluster, prefix: "\(prefix)/\(cluster)/",
                first: { client, endpoint in
                    // The canary key is written last: once it is visible, so are all nodes.
                    await self.set(cluster, generation, isSynced: false)
                    let found = try await client.range(endpoint, prefix: canary)
                    if found.entries.contains(where: { $0.key == canary }) {
                        await self.set(cluster, generation, isSynced: true)
                    }
                }, replace: { await self.replaceNodes(cluster, generation, $0) },
                take: { await self.takeNodes(cluster, generation, $0) })
        }
    }

    private func set(_ cluster: String, _ generation: Int, isSynced: Bool) {
        if known[cluster]?.generation == generation { known[cluster]?.isSynced = isSynced }
    }

    /// The store has all nodes by now. They are read once more, to learn which of the known ones are gone.
    private func canaryIsThere(_ cluster: String, _ prefix: String) {
        guard let state = known[cluster], state.prefix == prefix, !state.isSynced else { return }
        followNodes(cluster)
    }

    // MARK: nodes

    private func replaceNodes(_ cluster: String, _ generation: Int, _ entries: [EtcdClient.Entry]) {
        guard var state = known[cluster], state.generation == generation else { return }
        let before = state.records
        state.records = [:]
        state.malformed = [:]
        for entry in entries { set(&state, cluster, entry, before: before) }
        if !state.isSynced && state.config.hasSyncedCanaries {
            // The store is not complete: a node that is missing from it may still be written.
            for (name, record) in before where state.records[name] == nil { state.records[name] = record }
        }
        state.isListed = true
        state.cachedAt = nil
        if state.isRead { state.wasKnown = true }
        known[cluster] = state
        changed()
    }

    private func takeNodes(_ cluster: String, _ generation: Int, _ events: [EtcdClient.Event]) {
        guard var state = known[cluster], state.generation == generation else { return }
        for event in events {
            if event.isDeletion {
                state.malformed[event.entry.key] = nil
                if let name = node(event.entry.key, cluster, state) { state.records[name] = nil }
            } else {
                set(&state, cluster, event.entry, before: state.records)
            }
        }
        known[cluster] = state
        changed()
    }

    /// The node that a key is of.
    private func node(_ key: String, _ cluster: String, _ state: Known) -> String? {
        let start = "\(state.prefix)/\(cluster)/"
        return key.hasPrefix(start) && key.utf8.count > start.utf8.count ? String(key.dropFirst(start.count)) : nil
    }

    private func set(
        _ state: inout Known, _ cluster: String, _ entry: EtcdClient.Entry, before: [String: CiliumNodeRecord]
    ) {
        guard let name = node(entry.key, cluster, state) else { return }
        do {
            state.records[name] = try CiliumNodeRecord(cluster: cluster, name: name, value: entry.value)
            state.malformed[entry.key] = nil
        } catch {
            // Its last good content stays.
            state.records[name] = before[name]
            state.malformed[entry.key] = InventoryProblem(file: entry.key, message: error.message)
        }
    }

    // MARK: the inventory

    public func inventory() async -> Inventory {
        var inventory = await manifests.inventory()
        var merge = ClusterMerge(inventory)
        for cluster in clusters {
            if let state = known[cluster.name] {
                merge.add(cluster.name, id: state.config.id, records: state.records)
            }
        }
        inventory = merge.inventory
        inventory.problems += known.values.flatMap(\.malformed).sorted { $0.key < $1.key }.map(\.value)
        reportUnread(&inventory)
        return inventory
    }

    /// Without the own cluster's nodes nothing can be decided. Another cluster that was never reached must not hold this one
    /// up: its nodes are missing, and it is named.
    private func reportUnread(_ inventory: inout Inventory) {
        for (index, cluster) in clusters.enumerated() {
            guard let state = known[cluster.name], !state.wasKnown else { continue }
            let reason =
                "the nodes of cluster \(cluster.name) are not known yet: " + (state.problem ?? "its etcd is being read")
            if index == 0 {
                inventory.unknown.append(reason)
            } else {
                inventory.problems.append(InventoryProblem(file: "cluster \(cluster.name)", message: reason))
            }
        }
    }

    // MARK: cache

    /// Only in the file on disk.
    private static let clusterAnnotation = "culvert.dev/cluster"
    private static let clusterIDAnnotation = "culvert.dev/cluster-id"

    /// Writes the nodes to disk once those of the own cluster are read, and then a minute after a change at the latest.
    private func keepCache() async {
        var hasWritten = false
        while !Task.isCancelled {
            if isCacheStale, let own = clusters.first?.name, known[own]?.isRead == true {
                await saveCache()
                hasWritten = true
            }
            try? await Task.sleep(for: hasWritten ? .seconds(60) : .seconds(1))
        }
    }

    public func saveCache() async {
        guard let cachePath else { return }
        isCacheStale = false
        // Of clusters that were not reached since the start, what the file has of them stays.
        let unread = Set(known.filter { !$0.value.isListed && $0.value.cachedAt == nil }.keys)
        let kept =
            unread.isEmpty
            ? []
            : (InventoryCache.read(cachePath)?.objects ?? []).filter { object in
                switch object {
                case .node(let node), .publishedNode(let node): unread.contains { node.name.hasPrefix($0 + "/") }
                case .ciliumNode(let node): unread.contains { node.name.hasPrefix($0 + "/") }
                default: false
                }
            }
        let objects =
            kept
            + clusters.flatMap { cluster in
                (known[cluster.name]?.records ?? [:]).sorted { $0.key < $1.key }.flatMap {
                    _, record -> [ManifestObject] in
                    var node = record.node
                    node.annotations[EtcdInventory.clusterAnnotation] = cluster.name
                    node.annotations[EtcdInventory.clusterIDAnnotation] = "\(record.clusterID)"
                    var cilium = record.cilium
                    // Two clusters may have nodes of one name.
                    node.name = "\(cluster.name)/\(node.name)"
                    cilium.name = node.name
                    return [.node(node), .ciliumNode(cilium)]
                }
            }
        do { try await InventoryCache.write(objects, to: cachePath) } catch {
            logger.warning("the inventory cannot be kept on disk", metadata: ["error": "\(error)"])
        }
    }

    /// Takes the nodes of clusters that were not read yet from disk.
    private func loadCache() {
        guard let cachePath, let (objects, date) = InventoryCache.read(cachePath) else { return }
        var ciliumNodes: [String: CiliumNode] = [:]
        for case .ciliumNode(let node) in objects { ciliumNodes[node.name] = node }
        for object in objects {
            var node: Node
            switch object {
            case .node(let found), .publishedNode(let found): node = found
            default: continue
            }
            guard let cluster = node.annotations.removeValue(forKey: EtcdInventory.clusterAnnotation),
                let id = node.annotations.removeValue(forKey: EtcdInventory.clusterIDAnnotation).flatMap({ Int64($0) }),
                var cilium = ciliumNodes[node.name], node.name.hasPrefix(cluster + "/"),
                known[cluster]?.isListed == false
            else { continue }
            node.name = String(node.name.dropFirst(cluster.count + 1))
            cilium.name = node.name
            known[cluster]?.records[node.name] = CiliumNodeRecord(
                cluster: cluster, clusterID: id, node: node, cilium: cilium)
            known[cluster]?.cachedAt = date
            known[cluster]?.wasKnown = true
        }
        let read = known.filter { $0.value.cachedAt != nil }.keys.sorted()
        guard !read.isEmpty else { return }
        logger.warning(
            "etcd cannot be reached: going on from the nodes on disk",
            metadata: ["clusters": "\(read.joined(separator: " "))", "written": "\(date)"])
        signal.yield()
    }

    /// Pods are not in the store: what the files say of them is complete.
    public nonisolated func identify(_ pod: PodReference) -> PodLookup { PodLookup(.given) }
    /// Only Cilium writes to its store; `<run-dir>/published` is handed on by other means.
    public func publish(annotations: [String: String]) {}
    public func report(_ policies: [PolicyReport]) {}
    public func useGateways(_ names: Set<String>) {}
    public func record(_ event: ObjectEvent) {}

    // MARK: status

    public func status() -> JSON {
        var problems = known.values.compactMap(\.problem).sorted()
        for cluster in clusters {
            guard let state = known[cluster.name] else { continue }
            if let heartbeat = state.heartbeat {
                let age = Date().timeIntervalSince(heartbeat)
                if age > EtcdInventory.heartbeatPatience {
                    problems.append(
                        "etcd of cluster \(cluster.name): no heartbeat of Cilium's operator for \(Int(age)) seconds; its nodes may be out of date"
                    )
                }
            }
            if state.isListed && !state.isRead {
                problems.append(
                    "etcd of cluster \(cluster.name): its store is not complete yet (\(CiliumClusterConfig.canary(cluster.name, state.prefix)) is missing); nodes that were known stay"
                )
            }
            if let problem = clients[cluster.name]?.renewalProblem, !problem.isEmpty {
                problems.append("etcd of cluster \(cluster.name): certificates were not read again: \(problem)")
            }
        }
        let oldest = known.values.compactMap(\.cachedAt).min()
        return .make(
            ("source", .string("etcd")),
            ("endpoints", .array(clusters.flatMap(\.configuration.endpoints).map { .string($0) })),
            (
                "clusters",
                .array(
                    clusters.map { cluster in
                        .make(
                            ("name", .string(cluster.name)),
                            ("id", .integer(known[cluster.name]?.config.id ?? 0)),
                            ("nodes", .integer(Int64(known[cluster.name]?.records.count ?? 0))),
                            ("read", .bool(known[cluster.name]?.isRead ?? false)))
                    })
            ), ("synchronized", .bool(known.values.allSatisfy { $0.isRead })),
            ("fromDiskSeconds", oldest.map { .integer(Int64(Date().timeIntervalSince($0))) }),
            ("problems", .array(problems.map { .string($0) })))
    }
}

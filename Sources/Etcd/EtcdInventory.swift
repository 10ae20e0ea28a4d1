import FoundationEssentials
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
    /// nil: the nodes are not kept on disk.
    private let onDisk: NodesOnDisk?

    private var known: [String: ClusterNodes] = [:]
    /// Increases with every change, so that the file on disk can be told from newer data.
    private var revision: UInt64 = 0
    private var tasks: [Task<Void, Never>] = []
    /// The tasks that follow one cluster's nodes, and the canary that says that they are complete.
    private struct Following {
        var nodes: Task<Void, Never>?
        var canary: Task<Void, Never>?
        /// Number of the task that follows the nodes: what an earlier task still reports is ignored.
        var generation = 0
    }
    private var following: [String: Following] = [:]
    private var isStopped = false

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
        onDisk = cachePath.map { NodesOnDisk(path: $0, logger: logger) }
        clients = try Dictionary(
            clusters.map { ($0.name, try EtcdClient($0.configuration, idleSeconds: idleSeconds, renewal: renewal)) },
            uniquingKeysWith: { first, _ in first })
        for cluster in clusters { known[cluster.name] = ClusterNodes(cluster: cluster.name) }
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
        if let onDisk { tasks.append(Task { await onDisk.keep { await self.readNodes } }) }
        let start = ContinuousClock.now
        var isLate = false
        while let own = clusters.first?.name, known.values.contains(where: { !$0.isRead }) {
            if !isLate, ContinuousClock.now - start > .milliseconds(Int64(seconds * 1000)) {
                isLate = true
                goOnFromDisk()
                logger.warning("waiting for etcd", metadata: ["problem": "\(known[own]?.problem ?? "")"])
            }
            if isLate, known[own]?.isRead == true || known[own]?.cachedAt != nil { break }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    public func stop() async {
        isStopped = true
        for task in tasks + following.values.flatMap({ [$0.nodes, $0.canary].compactMap { $0 } }) { task.cancel() }
        tasks = []
        for client in clients.values { await client.shutdown() }
    }

    // MARK: following

    /// - Parameter first: is awaited before everything is read, at the same member.
    private nonisolated func follow(
        _ cluster: String, prefix: String, first: @Sendable (EtcdClient, String) async throws -> Void = { _, _ in },
        replace: @Sendable ([EtcdClient.Entry]) async -> Void,
        take: @Sendable ([EtcdClient.Event]) async -> Void
    ) async {
        guard let client = clients[cluster] else { return }
        await PrefixWatch(client: client, prefix: prefix, ceiling: ceiling).run(first: first) { change in
            switch change {
            case .replaced(let entries): await replace(entries)
            case .changed(let events): await take(events)
            case .problem(let text): await self.note(text, of: cluster)
            }
        }
    }

    /// - Parameter problem: empty: there is none.
    private func note(_ problem: String, of cluster: String) {
        known[cluster]?.problem = problem.isEmpty ? nil : "etcd of cluster \(cluster): \(problem)"
        if !problem.isEmpty { logger.notice("etcd", metadata: ["cluster": "\(cluster)", "error": "\(problem)"]) }
    }
    private func beats(_ cluster: String) { known[cluster]?.heartbeat = Date() }

    private func changed() {
        revision += 1
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
                return note("\(CiliumClusterConfig.key(cluster)) is not JSON", of: cluster)
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
        known[cluster]?.move(to: prefix)
        let canary = CiliumClusterConfig.canary(cluster, prefix)
        following[cluster]?.canary?.cancel()
        following[cluster, default: Following()].canary = Task {
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
        guard !isStopped, let prefix = known[cluster]?.prefix else { return }
        following[cluster]?.nodes?.cancel()
        let generation = (following[cluster]?.generation ?? 0) + 1
        let canary = CiliumClusterConfig.canary(cluster, prefix)
        following[cluster, default: Following()].generation = generation
        following[cluster]?.nodes = Task {
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
        if following[cluster]?.generation == generation { known[cluster]?.isSynced = isSynced }
    }

    /// The store is complete now. Its nodes are read once more, to find out which of the known nodes are gone.
    private func canaryIsThere(_ cluster: String, _ prefix: String) {
        guard let state = known[cluster], state.prefix == prefix, !state.isSynced else { return }
        followNodes(cluster)
    }

    private func replaceNodes(_ cluster: String, _ generation: Int, _ entries: [EtcdClient.Entry]) {
        guard following[cluster]?.generation == generation else { return }
        known[cluster]?.replace(entries)
        changed()
    }

    private func takeNodes(_ cluster: String, _ generation: Int, _ events: [EtcdClient.Event]) {
        guard following[cluster]?.generation == generation else { return }
        known[cluster]?.take(events)
        changed()
    }

    // MARK: the inventory

    public func inventory() async -> Inventory {
        var merge = ClusterMerge(await manifests.inventory())
        for cluster in clusters { if let nodes = known[cluster.name] { merge.add(nodes) } }
        return merge.inventory
    }

    /// Pods are not in the store: what the files say of them is complete.
    public nonisolated func identify(_ pod: PodReference) -> PodLookup { PodLookup(.given) }
    /// All that is in the store and in the files is read anyway.
    public nonisolated func look(atGateways names: Set<String>, inDoubt: Set<String>) {}

    // MARK: on disk

    /// For the disk, in the clusters' order.
    private var content: NodesOnDisk.Content {
        NodesOnDisk.Content(clusters: clusters.compactMap { known[$0.name] }, revision: revision)
    }
    /// For the disk; nil: the own cluster is not read.
    private var readNodes: NodesOnDisk.Content? {
        clusters.first.flatMap { known[$0.name]?.isRead } == true ? content : nil
    }

    /// Writes the nodes to disk now.
    public func saveCache() async { await onDisk?.save(content) }

    /// Takes the nodes of clusters that were not read yet from disk.
    private func goOnFromDisk() {
        guard let (found, date) = onDisk?.load() else { return }
        for (cluster, records) in found where known[cluster]?.isListed == false {
            known[cluster]?.load(records, written: date)
        }
        let read = known.filter { $0.value.cachedAt != nil }.keys.sorted()
        guard !read.isEmpty else { return }
        logger.warning(
            "etcd cannot be reached: using the nodes that were saved to disk",
            metadata: ["clusters": "\(read.joined(separator: " "))", "written": "\(date)"])
        signal.yield()
    }

    // MARK: status

    public func status() -> JSON {
        var problems = known.values.compactMap(\.problem).sorted()
        for cluster in clusters {
            problems += known[cluster.name]?.notices ?? []
            if let problem = clients[cluster.name]?.renewalProblem, !problem.isEmpty {
                problems.append("etcd of cluster \(cluster.name): certificates could not be reloaded: \(problem)")
            }
        }
        let oldest = known.values.compactMap(\.cachedAt).min()
        return SourceField.object(
            (.source, .string("etcd")),
            (.endpoints, .array(clusters.flatMap(\.configuration.endpoints).map { .string($0) })),
            (.clusters, .array(clusters.compactMap { known[$0.name]?.status })),
            (.synchronized, .bool(known.values.allSatisfy { $0.isRead })),
            (.fromDiskSeconds, oldest.map { .integer(Int64(Date().timeIntervalSince($0))) }),
            (.problems, .array(problems.map { .string($0) })))
    }
}

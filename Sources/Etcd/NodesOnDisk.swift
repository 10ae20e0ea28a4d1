import FoundationEssentials
import Glibc
import Inventory
import Logging
import Model

/// The last nodes on disk, from which a helper goes on while an etcd cannot be reached.
actor NodesOnDisk {
    /// What all clusters have, the own one first, at one time.
    struct Content: Sendable {
        let clusters: [ClusterNodes]
        /// Grows with every change.
        let revision: UInt64
    }

    /// Only in the file on disk.
    private static let clusterAnnotation = "culvert.dev/cluster"
    private static let clusterIDAnnotation = "culvert.dev/cluster-id"

    private let path: String
    private let logger: Logger
    /// Of the content that was written last.
    private var savedRevision: UInt64 = 0

    init(path: String, logger: Logger) {
        self.path = path
        self.logger = logger
    }

    /// Writes the nodes to disk once those of the own cluster are read, and then a minute after a change at the latest. Until
    /// the task is cancelled.
    ///
    /// - Parameter content: nil: the own cluster is not read.
    func keep(_ content: @Sendable () async -> Content?) async {
        var hasWritten = false
        while !Task.isCancelled {
            if let content = await content(), content.revision != savedRevision {
                await save(content)
                hasWritten = true
            }
            try? await Task.sleep(for: hasWritten ? .seconds(60) : .seconds(1))
        }
    }

    func save(_ content: Content) async {
        // Of clusters that were not reached since the start, what the file has of them stays.
        let unread = content.clusters.filter { !$0.isListed && $0.cachedAt == nil }.map(\.cluster)
        let kept =
            unread.isEmpty
            ? []
            : (InventoryCache.read(path)?.objects ?? []).filter { object in
                switch object {
                case .node(let node), .publishedNode(let node): unread.contains { node.name.hasPrefix($0 + "/") }
                case .ciliumNode(let node): unread.contains { node.name.hasPrefix($0 + "/") }
                default: false
                }
            }
        let objects = kept + content.clusters.flatMap(NodesOnDisk.manifests)
        do {
            try await InventoryCache.write(objects, to: path)
            savedRevision = content.revision
        } catch {
            logger.warning("the inventory cannot be saved to disk", metadata: ["error": "\(error)"])
        }
    }

    private static func manifests(_ nodes: ClusterNodes) -> [ManifestObject] {
        nodes.records.sorted { $0.key < $1.key }.flatMap { _, record -> [ManifestObject] in
            var node = record.node
            node.annotations[clusterAnnotation] = nodes.cluster
            node.annotations[clusterIDAnnotation] = "\(record.clusterID)"
            var cilium = record.cilium
            // Two clusters may have nodes of one name.
            node.name = "\(nodes.cluster)/\(node.name)"
            cilium.name = node.name
            return [.node(node), .ciliumNode(cilium)]
        }
    }

    /// The nodes by cluster, and when they were written; nil where there is no file, or where it is damaged.
    nonisolated func load() -> (clusters: [String: [CiliumNodeRecord]], written: Date)? {
        guard let (objects, date) = InventoryCache.read(path) else { return nil }
        var ciliumNodes: [String: CiliumNode] = [:]
        for case .ciliumNode(let node) in objects { ciliumNodes[node.name] = node }
        var clusters: [String: [CiliumNodeRecord]] = [:]
        for object in objects {
            var node: Node
            switch object {
            case .node(let found), .publishedNode(let found): node = found
            default: continue
            }
            guard let cluster = node.annotations.removeValue(forKey: NodesOnDisk.clusterAnnotation),
                let id = node.annotations.removeValue(forKey: NodesOnDisk.clusterIDAnnotation).flatMap({ Int64($0) }),
                var cilium = ciliumNodes[node.name], node.name.hasPrefix(cluster + "/")
            else { continue }
            node.name = String(node.name.dropFirst(cluster.count + 1))
            cilium.name = node.name
            clusters[cluster, default: []].append(
                CiliumNodeRecord(cluster: cluster, clusterID: id, node: node, cilium: cilium))
        }
        return (clusters, date)
    }
}

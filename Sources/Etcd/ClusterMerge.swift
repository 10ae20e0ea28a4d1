import Inventory
import Model

/// Puts the nodes of several clusters into one inventory. What clashes with an earlier cluster is left out and reported.
struct ClusterMerge {
    private var merged: Inventory
    private var clashes = ClusterClashes()
    private var malformed: [String: InventoryProblem] = [:]
    /// Clusters whose nodes are missing.
    private var unread: [InventoryProblem] = []
    private var isOwnCluster = true

    /// - Parameter inventory: what files say.
    init(_ inventory: Inventory) { merged = inventory }

    /// With what is wrong in the clusters.
    var inventory: Inventory {
        var inventory = merged
        inventory.problems += malformed.sorted { $0.key < $1.key }.map(\.value) + unread
        return inventory
    }

    /// Adds a cluster, the own one first. Nodes of the others are named `CLUSTER/NODE`.
    mutating func add(_ nodes: ClusterNodes) {
        let isOwn = isOwnCluster
        isOwnCluster = false
        malformed.merge(nodes.malformed) { first, _ in first }
        noteUnread(nodes, isOwn: isOwn)
        // As the cluster's configuration has it, or else as its nodes have it.
        let id = nodes.config.id != 0 ? nodes.config.id : nodes.records.values.map(\.clusterID).max() ?? 0
        if let clash = clashes.add(nodes.cluster, id: id) {
            merged.problems.append(problem(nodes, clash))
            return
        }
        for (name, record) in nodes.records.sorted(by: { $0.key < $1.key }) {
            if let clash = clashes.add(record, name, of: nodes.cluster, isOwn: isOwn) {
                merged.problems.append(problem(nodes, clash))
                continue
            }
            add(record, as: isOwn ? name : "\(nodes.cluster)/\(name)")
        }
    }

    /// Without the own cluster's nodes nothing can be decided. Another cluster that was never reached must not hold this one
    /// up: its nodes are missing, and it is named.
    private mutating func noteUnread(_ nodes: ClusterNodes, isOwn: Bool) {
        guard !nodes.wasKnown else { return }
        let reason =
            "the nodes of cluster \(nodes.cluster) are not known yet: " + (nodes.problem ?? "its etcd is being read")
        if isOwn { merged.unknown.append(reason) } else { unread.append(problem(nodes, reason)) }
    }

    private mutating func add(_ record: CiliumNodeRecord, as name: String) {
        var node = record.node
        node.name = name
        var cilium = record.cilium
        cilium.name = name
        // Files go before the store: they may have the node's annotations about the mesh.
        let (whole, problems) = NodeMerge.merge(node, published: merged.nodes[name], cilium: cilium)
        merged.nodes[name] = whole
        merged.problems += problems
    }

    private func problem(_ nodes: ClusterNodes, _ message: String) -> InventoryProblem {
        InventoryProblem(file: "cluster \(nodes.cluster)", message: message)
    }
}

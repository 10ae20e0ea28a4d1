import Inventory
import Model

/// Puts the nodes of several clusters into one inventory. Clusters of one mesh need an id and pod networks of their own: what
/// clashes with an earlier cluster is left out and reported.
struct ClusterMerge {
    private(set) var inventory: Inventory
    /// Clusters by their id.
    private var ids: [Int64: String] = [:]
    /// Who has which pod network.
    private var owners: [Owner] = []
    private var isOwnCluster = true

    private struct Owner {
        let network: IPNetwork
        let node: String
        let cluster: String
    }

    /// - Parameter inventory: what files say.
    init(_ inventory: Inventory) { self.inventory = inventory }

    /// Adds a cluster, the own one first. Nodes of the others are named `CLUSTER/NODE`.
    ///
    /// - Parameter id: as the cluster's configuration has it; 0: as its nodes have it.
    mutating func add(_ cluster: String, id: Int64, records: [String: CiliumNodeRecord]) {
        let isOwn = isOwnCluster
        isOwnCluster = false
        let id = id != 0 ? id : records.values.map(\.clusterID).max() ?? 0
        if id != 0, let other = ids.updateValue(ids[id] ?? cluster, forKey: id) {
            report(
                cluster,
                "is left out: it has the cluster-id \(id), which cluster \(other) has already; give each cluster of the mesh one of its own (Cilium's cluster.id)"
            )
            return
        }
        for (name, record) in records.sorted(by: { $0.key < $1.key }) {
            if !isOwn, let (network, owner) = clash(record, cluster) {
                report(
                    cluster,
                    "node \(name) is left out: its pods' network \(network) overlaps with \(owner.network) of node \(owner.node) of cluster \(owner.cluster); clusters of one mesh need networks of their own"
                )
                continue
            }
            owners += record.cilium.podCIDRs.map { Owner(network: $0, node: name, cluster: cluster) }
            add(record, as: isOwn ? name : "\(cluster)/\(name)")
        }
    }

    private mutating func add(_ record: CiliumNodeRecord, as name: String) {
        var node = record.node
        node.name = name
        var cilium = record.cilium
        cilium.name = name
        // Files go before the store: they may have the node's annotations about the mesh.
        let (merged, problems) = NodeMerge.merge(node, published: inventory.nodes[name], cilium: cilium)
        inventory.nodes[name] = merged
        inventory.problems += problems
    }

    /// The first of the node's networks that a node of another cluster has.
    private func clash(_ record: CiliumNodeRecord, _ cluster: String) -> (IPNetwork, Owner)? {
        for network in record.cilium.podCIDRs {
            if let owner = owners.first(where: { $0.cluster != cluster && $0.network.overlaps(network) }) {
                return (network, owner)
            }
        }
        return nil
    }

    private mutating func report(_ cluster: String, _ message: String) {
        inventory.problems.append(InventoryProblem(file: "cluster \(cluster)", message: message))
    }
}

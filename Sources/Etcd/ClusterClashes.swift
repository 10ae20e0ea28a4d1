import Model

/// Clusters of one mesh need an id and pod networks of their own: finds what clashes with an earlier cluster.
struct ClusterClashes {
    /// Clusters by their id.
    private var ids: [Int64: String] = [:]
    /// Who has which pod network, cluster by cluster.
    private var owners: [Owner] = []
    /// The places in `owners` of all clusters but the last.
    private var earlier = NetworkTrie()
    private var earlierCount = 0
    private var cluster = ""

    private struct Owner {
        let network: IPNetwork
        let node: String
        let cluster: String
    }

    /// Gives a cluster its id.
    ///
    /// - Parameter id: 0: not known, which clashes with nothing.
    /// - Returns: why the cluster is left out; nil where nothing clashes.
    mutating func add(_ cluster: String, id: Int64) -> String? {
        guard id != 0, let other = ids.updateValue(ids[id] ?? cluster, forKey: id) else { return nil }
        return
            "is left out: it has the cluster-id \(id), which cluster \(other) already has; give each cluster of the mesh its own cluster-id (Cilium's cluster.id)"
    }

    /// Gives a node its pods' networks. A cluster's nodes come one after another.
    ///
    /// - Parameter isOwn: the own cluster's nodes are never left out.
    /// - Returns: why the node is left out; nil where nothing clashes.
    mutating func add(_ record: CiliumNodeRecord, _ name: String, of cluster: String, isOwn: Bool) -> String? {
        if cluster != self.cluster {
            for place in earlierCount..<owners.count { earlier.insert(owners[place].network, place) }
            (earlierCount, self.cluster) = (owners.count, cluster)
        }
        if !isOwn, let (network, owner) = clash(record) {
            return
                "node \(name) is left out: its pods' network \(network) overlaps with \(owner.network) of node \(owner.node) of cluster \(owner.cluster); the pod networks of the clusters of one mesh must not overlap"
        }
        owners += record.cilium.podCIDRs.map { Owner(network: $0, node: name, cluster: cluster) }
        return nil
    }

    /// The first of the node's networks that a node of another cluster has.
    private func clash(_ record: CiliumNodeRecord) -> (IPNetwork, Owner)? {
        for network in record.cilium.podCIDRs {
            if let place = earlier.first(overlapping: network) { return (network, owners[place]) }
        }
        return nil
    }
}

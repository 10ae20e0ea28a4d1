import Jansson

/// What a cluster says of itself in its key-value store: `cilium/cluster-config/<cluster>` (Cilium's
/// pkg/clustermesh/types). Absent in stores that only one cluster uses.
struct CiliumClusterConfig: Equatable, Sendable {
    static func key(_ cluster: String) -> String { "cilium/cluster-config/\(cluster)" }
    /// There when everything below a prefix is, if `hasSyncedCanaries`.
    static func canary(_ cluster: String, _ prefix: String) -> String { "cilium/synced/\(cluster)/\(prefix)" }

    /// `cluster-id`, 1...511, of its own in a mesh; 0: not known.
    var id: Int64 = 0
    /// The store says when it is complete, prefix by prefix: `cilium/synced/<cluster>/<prefix>`. Until then, what is not
    /// there may still come.
    var hasSyncedCanaries = false
    /// Keys are below `cilium/cache`: kvstoremesh keeps a copy of the other cluster's.
    var isCached = false

    init() {}
    /// - Returns: nil where it is not JSON.
    init?(_ value: [UInt8]) {
        guard let root = try? JSON.parse(value), root.members != nil else { return nil }
        id = root["id"]?.integer ?? 0
        hasSyncedCanaries = root["capabilities"]?["syncedCanaries"]?.bool ?? false
        isCached = root["capabilities"]?["cached"]?.bool ?? false
    }
}

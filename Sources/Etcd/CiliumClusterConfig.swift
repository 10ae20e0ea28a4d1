import Jansson

/// The settings of a cluster in its key-value store: `cilium/cluster-config/<cluster>` (Cilium's
/// pkg/clustermesh/types). A store that only one cluster uses does not have them.
struct CiliumClusterConfig: Equatable, Sendable {
    static func key(_ cluster: String) -> String { "cilium/cluster-config/\(cluster)" }
    /// There when everything below a prefix is, if `hasSyncedCanaries`.
    static func canary(_ cluster: String, _ prefix: String) -> String { "cilium/synced/\(cluster)/\(prefix)" }

    /// `cluster-id`, 1...511, of its own in a mesh; 0: not known.
    var id: Int64 = 0
    /// The store has a key for each prefix that is complete: `cilium/synced/<cluster>/<prefix>`. Until it exists,
    /// missing nodes may still be written.
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

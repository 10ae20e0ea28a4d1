import FoundationEssentials
import Inventory
import Jansson
import Model

/// What is known of one cluster's nodes.
struct ClusterNodes: Sendable {
    /// Cilium takes a store without a heartbeat for so long for dead, seconds.
    static let heartbeatPatience: TimeInterval = 2.25 * 60

    /// Cilium's `cluster-name`.
    let cluster: String
    var config = CiliumClusterConfig()
    /// Where the nodes are, without the cluster's name; empty: not known yet.
    private(set) var prefix = ""
    /// By node.
    private(set) var records: [String: CiliumNodeRecord] = [:]
    /// By key.
    private(set) var malformed: [String: InventoryProblem] = [:]
    private(set) var isListed = false
    /// The store says that it has all nodes.
    var isSynced = false
    var heartbeat: Date?
    /// When what is known was written to disk; nil: it is from the store.
    private(set) var cachedAt: Date?
    /// Why the etcd cannot be followed.
    var problem: String?
    /// All of it was known at some time, from the store or from disk.
    private(set) var wasKnown = false

    init(cluster: String) { self.cluster = cluster }

    /// It has what the store has.
    var isRead: Bool { isListed && (isSynced || !config.hasSyncedCanaries) }

    // MARK: changes

    /// The nodes are elsewhere: what is known stays until they are listed there.
    mutating func move(to prefix: String) {
        self.prefix = prefix
        isListed = false
    }

    /// Takes all keys.
    mutating func replace(_ entries: [EtcdClient.Entry]) {
        let before = records
        records = [:]
        malformed = [:]
        for entry in entries { set(entry, before: before) }
        if !isSynced && config.hasSyncedCanaries {
            // The store is not complete: a node that is missing from it may still be written.
            for (name, record) in before where records[name] == nil { records[name] = record }
        }
        isListed = true
        cachedAt = nil
        if isRead { wasKnown = true }
    }

    mutating func take(_ events: [EtcdClient.Event]) {
        for event in events {
            if event.isDeletion {
                malformed[event.entry.key] = nil
                if let name = node(event.entry.key) { records[name] = nil }
            } else {
                set(event.entry, before: records)
            }
        }
    }

    /// Takes what was written to disk.
    mutating func load(_ found: [CiliumNodeRecord], written: Date) {
        for record in found { records[record.node.name] = record }
        cachedAt = written
        wasKnown = true
    }

    /// The node that a key is of.
    private func node(_ key: String) -> String? {
        let start = "\(prefix)/\(cluster)/"
        return key.hasPrefix(start) && key.utf8.count > start.utf8.count ? String(key.dropFirst(start.count)) : nil
    }

    private mutating func set(_ entry: EtcdClient.Entry, before: [String: CiliumNodeRecord]) {
        guard let name = node(entry.key) else { return }
        do {
            records[name] = try CiliumNodeRecord(cluster: cluster, name: name, value: entry.value)
            malformed[entry.key] = nil
        } catch {
            // Its last good content stays.
            records[name] = before[name]
            malformed[entry.key] = InventoryProblem(file: entry.key, message: error.message)
        }
    }

    // MARK: status

    var status: JSON {
        .make(
            ("name", .string(cluster)), ("id", .integer(config.id)), ("nodes", .integer(Int64(records.count))),
            ("read", .bool(isRead)))
    }

    /// What keeps the nodes from being up to date, other than `problem`.
    var notices: [String] {
        var notices: [String] = []
        if let heartbeat {
            let age = Date().timeIntervalSince(heartbeat)
            if age > ClusterNodes.heartbeatPatience {
                notices.append(
                    "etcd of cluster \(cluster): no heartbeat of Cilium's operator for \(Int(age)) seconds; its nodes may be out of date"
                )
            }
        }
        if isListed && !isRead {
            notices.append(
                "etcd of cluster \(cluster): its store is not complete yet (\(CiliumClusterConfig.canary(cluster, prefix)) is missing); nodes that are already known are kept"
            )
        }
        return notices
    }
}

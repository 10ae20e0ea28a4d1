import FoundationEssentials
import Model

/// Pods whose attachment has ended here, with the addresses that they had: they are not adopted by those. (A new sandbox of
/// the same pod has other ones.)
///
/// The API shows a pod running for a while after its DEL, and for as long as the API server is away.
struct EndedPods: Equatable {
    struct Ended: Equatable {
        var addresses: Set<IPAddress>
        /// When the last attachment ended.
        var at: Date
        /// The connections of these addresses are forgotten.
        var hasNoConnections = false
    }
    /// By UID.
    private(set) var pods: [String: Ended] = [:]

    /// A pod whose object is not there is remembered for so long, seconds: its ADD and its DEL may both come before the watch
    /// shows the pod.
    private static let patience: TimeInterval = 3600
    /// More pods do not end on one node in that time.
    private static let most = 4096

    init(pods: [String: Ended] = [:]) { self.pods = pods }

    var addresses: [String: Set<IPAddress>] { pods.mapValues(\.addresses) }

    /// Addresses whose connections may not be forgotten yet.
    var addressesWithConnections: Set<IPAddress> {
        pods.values.reduce(into: []) { if !$1.hasNoConnections { $0.formUnion($1.addresses) } }
    }

    /// The attachment has ended.
    mutating func note(_ attachment: Attachment, now: Date) {
        let before = pods[attachment.podUID]?.addresses ?? []
        pods[attachment.podUID] = Ended(addresses: before.union(attachment.addresses.map(\.address)), at: now)
    }

    /// There is such an attachment again.
    ///
    /// - Returns: whether it had ended.
    @discardableResult
    mutating func takeBack(_ attachment: Attachment) -> Bool {
        let before = pods[attachment.podUID]
        pods[attachment.podUID]?.addresses.subtract(attachment.addresses.map(\.address))
        if pods[attachment.podUID]?.addresses.isEmpty == true { pods[attachment.podUID] = nil }
        return pods[attachment.podUID] != before
    }

    /// All connections of these addresses are forgotten.
    ///
    /// - Returns: the pods that have none any more.
    @discardableResult
    mutating func noteForgotten(_ addresses: Set<IPAddress>) -> [String] {
        let done = pods.filter { !$1.hasNoConnections && $1.addresses.isSubset(of: addresses) }.keys.sorted()
        for uid in done { pods[uid]?.hasNoConnections = true }
        return done
    }

    /// Forgets pods whose object is gone.
    ///
    /// - Returns: whether there was one.
    mutating func forgetOld(pods known: [Pod], now: Date) -> Bool {
        let before = pods.count
        let oldest = now.addingTimeInterval(-EndedPods.patience)
        let isCrowded = pods.count > EndedPods.most
        pods = pods.filter { uid, ended in
            (!isCrowded && ended.at > oldest) || known.contains { $0.hasUID(uid) }
        }
        return pods.count != before
    }
}

import FoundationEssentials
import Model

/// Pods whose attachment has ended here, by UID, with the addresses that they had: they are not adopted by those. (A new
/// sandbox of the same pod has other ones.)
///
/// The API shows a pod running for a while after its DEL, and for as long as the API server is away.
struct EndedPods: Equatable {
    struct Ended: Equatable {
        var addresses: Set<IPAddress>
        /// When the last attachment ended.
        var at: Date
    }
    private(set) var pods: [String: Ended] = [:]

    /// A pod whose object is not there is remembered for so long, seconds: its ADD and its DEL may both come before the watch
    /// shows the pod.
    private static let patience: TimeInterval = 3600
    /// More pods do not end on one node in that time.
    private static let most = 4096

    init(pods: [String: Ended] = [:]) { self.pods = pods }

    var addresses: [String: Set<IPAddress>] { pods.mapValues(\.addresses) }

    /// Addresses of pods that have ended since then.
    func addresses(since time: Date) -> Set<IPAddress> {
        pods.values.reduce(into: []) { if $1.at >= time { $0.formUnion($1.addresses) } }
    }

    mutating func note(_ uid: String, _ addresses: [IPAddress], now: Date) {
        pods[uid] = Ended(addresses: (pods[uid]?.addresses ?? []).union(addresses), at: now)
    }

    /// An attachment of the pod has these addresses again.
    mutating func takeBack(_ uid: String, _ addresses: [IPAddress]) {
        pods[uid]?.addresses.subtract(addresses)
        if pods[uid]?.addresses.isEmpty == true { pods[uid] = nil }
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

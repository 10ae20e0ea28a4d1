import Model

/// Who may be a policy's gateway, in which order: for every pod of this node, and for each pod where they differ.
struct GatewayCandidates: Equatable, Sendable {
    /// Of each entry of the policy: those that may be used from this node, the preferred first.
    let entries: [[GatewayCandidate]]
    /// All of them, whatever the policy's locality says: other nodes may use them.
    let nodes: Set<String>
    private let byEntry: [EgressPolicy.GatewayEntry: Set<String>]
    /// Those that go first because they are in this node's location.
    private let preferred: Set<String>
    /// The policy matches more than are used.
    let isCrowded: Bool

    /// Candidates of one policy that are used at the most. Each needs a tunnel on every node that has pods of the policy.
    static let most = 64

    /// - Parameters:
    ///   - ranks: of the nodes that an entry's selector matches, in order.
    ///   - location: of this node.
    init(_ policy: EgressPolicy, location: String, ranks: (LabelSelector) -> [GatewayRank]) {
        var entries: [[GatewayCandidate]] = []
        var nodes: Set<String> = []
        var byEntry: [EgressPolicy.GatewayEntry: Set<String>] = [:]
        var seen: Set<GatewayCandidate> = []
        var left = GatewayCandidates.most
        var isCrowded = false
        var preferred: Set<String> = []
        for entry in policy.gatewayEntries {
            let found = ranks(entry.selector)
            let names = Set(found.map(\.name))
            nodes.formUnion(names)
            byEntry[entry] = names
            let here = found.filter { $0.location == location }
            let ordered: [GatewayRank] =
                switch policy.locality {
                case .none: found
                case .prefer: here + found.filter { $0.location != location }
                case .only: here
                }
            if policy.locality == .prefer { preferred.formUnion(here.map(\.name)) }
            let egress = EgressSpecification(entry.egress, targets: policy.healthChecks.targets)
            let candidates = ordered.map { GatewayCandidate(node: $0.name, egress: egress) }
                .filter { seen.insert($0).inserted }
            isCrowded = isCrowded || candidates.count > left
            entries.append(Array(candidates.prefix(left)))
            left -= entries[entries.count - 1].count
        }
        self.entries = entries
        self.nodes = nodes
        self.byEntry = byEntry
        self.preferred = preferred
        self.isCrowded = isCrowded
    }

    /// Whether a node is a candidate by this entry.
    func matches(_ entry: EgressPolicy.GatewayEntry, _ node: String) -> Bool { byEntry[entry]?.contains(node) ?? false }

    /// The order that all pods have which have none of their own.
    var all: [GatewayCandidate] { entries.flatMap { $0 } }

    /// The choice of one pod.
    ///
    /// With `mode: spread` the first two candidates follow from the pod's UID, by rendezvous hashing (Thaler and Ravishankar,
    /// 1998): a lost gateway's pods are spread over the others, and no other pod moves. The order of the rest follows from
    /// the policy, so that there are few different choices, each of which costs a table. With `locality: prefer` those in this
    /// node's location go before all others, and are chosen from in the same way. Of a Cilium policy with a list of
    /// entries it is the entries that are chosen from, and of one entry the first node.
    func choice(for pod: String, of policy: EgressPolicy) -> (candidates: [GatewayCandidate], spread: String) {
        guard policy.isSpread else { return (all, "") }
        let groups = (policy.source == .cilium ? entries : all.map { [$0] }).filter { !$0.isEmpty }
        guard groups.count > 1 else { return (all, "") }
        let scores = groups.map { group in
            Rendezvous.score(pod, group.map { "\($0.node) \($0.egress.text)" }.joined(separator: ";"))
        }
        let isFar = groups.map { group in !group.contains { preferred.contains($0.node) } }
        func isBefore(_ a: Int, _ b: Int) -> Bool { isFar[a] != isFar[b] ? isFar[b] : (scores[a], b) > (scores[b], a) }
        let places = groups.indices.sorted(by: isBefore)
        let others = groups.indices.filter { $0 != places[0] && $0 != places[1] }
        let rest = others.filter { !isFar[$0] } + others.filter { isFar[$0] }
        let order = Array(places.prefix(2)) + rest
        func name(_ group: [GatewayCandidate]) -> String {
            let first = group[0]
            let isAlone = all.count { $0.node == first.node } == 1
            return isAlone ? first.node : "\(first.node)/\(first.egress.text)"
        }
        return (order.flatMap { groups[$0] }, "\(name(groups[order[0]]))>\(name(groups[order[1]]))")
    }
}

/// Scores by which a pod ranks what it can choose from, each independent of all others.
enum Rendezvous {
    static func score(_ pod: String, _ choice: String) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in pod.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        hash = (hash ^ 0) &* 0x100_0000_01B3
        for byte in choice.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        // FNV-1a alone mixes the last bytes badly: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
        hash = (hash ^ (hash >> 30)) &* 0xBF58_476D_1CE4_E5B9
        hash = (hash ^ (hash >> 27)) &* 0x94D0_49BB_1331_11EB
        return hash ^ (hash >> 31)
    }
}

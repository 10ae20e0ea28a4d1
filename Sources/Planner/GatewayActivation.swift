import Model

/// Where each slot of an assignment points at the moment. Changes with the gateways' health, and changes nothing but what a
/// next hop points to.
public struct GatewayActivation: Equatable, Sendable {
    /// What was active before. It stays active unless there is a reason against it.
    public struct Previous: Equatable, Sendable {
        /// By slot: decided already, and not decided again here. One that is no candidate any more does not count.
        public var decided: [String: GatewayChoice] = [:]
        /// By place (a slot whatever its gateways are), for slots that are new.
        public var places: [String: GatewayCandidate] = [:]
        /// What the kernel had when the helper started, by slot: what a next hop to a gateway is numbered by
        /// (`NextHops.wayKey`).
        public var ways: [String: String] = [:]
        public init() {}

        /// Slots, and places of slots, of which the two say something else.
        func difference(from other: Self) -> (slots: Set<String>, places: Set<String>) {
            (
                Previous.keys(decided, other.decided).union(Previous.keys(ways, other.ways)),
                Previous.keys(places, other.places)
            )
        }
        private static func keys<Value: Equatable>(_ a: [String: Value], _ b: [String: Value]) -> Set<String> {
            var keys: Set<String> = []
            for (key, value) in a where b[key] != value { keys.insert(key) }
            for key in b.keys where a[key] == nil { keys.insert(key) }
            return keys
        }
    }

    /// By slot; one without any candidate that can be reached is not in it, and what it claims is unreachable.
    public private(set) var choices: [String: GatewayChoice] = [:]

    /// - Parameters:
    ///   - address: where that node's end of a tunnel is; nil where it is not known.
    ///   - before: slots whose gateways are known already.
    init(
        _ policies: some Sequence<AssignedPolicy>, health: GatewayHealth, previous: Previous = Previous(),
        before: GatewayActivation? = nil, address: (String) -> IPAddress?
    ) {
        if let before { self = before }
        for policy in policies where choices[policy.slot] == nil {
            decide(policy, health: health, previous: previous, address: address)
        }
    }

    /// Decides on the slot of this policy, whatever was decided on it.
    mutating func decide(
        _ policy: AssignedPolicy, health: GatewayHealth, previous: Previous, address: (String) -> IPAddress?
    ) {
        let candidates = policy.candidates.filter { address($0.node) != nil }
        if candidates.isEmpty { return }
        switch previous.decided[policy.slot] {
        case .allDown?: choices[policy.slot] = .allDown
        case .gateway(let candidate)? where candidates.contains(candidate):
            choices[policy.slot] = .gateway(candidate)
        default:
            let there = previous.ways[policy.slot].flatMap { way in
                candidates.first { candidate in
                    address(candidate.node).map { NextHops.wayKey($0, EgressIdentity(candidate.egress)) } == way
                }
            }
            choices[policy.slot] = GatewayActivation.choose(
                candidates, takesBack: policy.takesBack, health: health,
                previous: there ?? previous.places[policy.place])
        }
    }

    /// The one decision. Sticky: what was active goes on, until it is down, or a preferred one takes back what it had.
    ///
    /// - Parameters:
    ///   - candidates: in order of preference; at least one.
    ///   - previous: what was active before. Where it is no candidate any more, its node counts: a policy that gets another address
    ///     or targets stays where it is.
    public static func choose(
        _ candidates: [GatewayCandidate], takesBack: Bool, health: GatewayHealth, previous: GatewayCandidate?
    ) -> GatewayChoice {
        /// Lower is better; nil: down. An echo that has come back goes before what Kubernetes thinks of the node.
        func rank(_ candidate: GatewayCandidate) -> Int? {
            switch health.state(GatewayEnd(candidate)) {
            case .up: 0
            case .unknown: health.doubtful.contains(candidate.node) ? 2 : 1
            case .down: nil
            }
        }
        let usable = candidates.enumerated().compactMap { place, candidate in
            rank(candidate).map { (place: place, rank: $0, candidate: candidate) }
        }
        guard let best = usable.min(by: { ($0.rank, $0.place) < ($1.rank, $1.place) }) else { return .allDown }
        guard let previous,
            let now = candidates.contains(previous)
                ? usable.first(where: { $0.candidate == previous })
                : usable.first(where: { $0.candidate.node == previous.node })
        else { return .gateway(best.candidate) }
        if now.rank == 2 && best.rank < 2 { return .gateway(best.candidate) }
        if takesBack,
            let preferred = usable.first(where: {
                $0.place < now.place && health.steady.contains(GatewayEnd($0.candidate))
            })
        {
            return .gateway(preferred.candidate)
        }
        return .gateway(now.candidate)
    }

    func choice(of policy: AssignedPolicy) -> GatewayChoice? { choices[policy.slot] }
    func gateway(of policy: AssignedPolicy) -> GatewayCandidate? { choices[policy.slot]?.candidate }
    /// There are candidates, and all of them are down.
    func isDown(_ policy: AssignedPolicy) -> Bool { choices[policy.slot] == .allDown }
}

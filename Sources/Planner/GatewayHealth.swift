import Model

/// One way out as it is watched: a node and an egress identity.
public struct GatewayEnd: Hashable, Sendable, Comparable {
    public let node: String
    public let identity: EgressIdentity
    public init(node: String, identity: EgressIdentity) {
        self.node = node
        self.identity = identity
    }
    public init(_ candidate: GatewayCandidate) {
        self.init(node: candidate.node, identity: EgressIdentity(candidate.egress))
    }
    public static func < (a: Self, b: Self) -> Bool {
        a.node != b.node ? a.node < b.node : a.identity < b.identity
    }
}

/// What is known of the gateways' health at one instant.
public struct GatewayHealth: Equatable, Sendable {
    public enum State: String, Sendable {
        /// No echo has come back yet, and it is too early to say that none will.
        case unknown
        case up
        case down
    }
    /// What is not in it is unknown.
    public var states: [GatewayEnd: State] = [:]
    /// Those that have been up long enough to take back what they had.
    public var steady: Set<GatewayEnd> = []
    /// Nodes that Kubernetes has given up. They rank lower until an echo of theirs comes back.
    public var doubtful: Set<String> = []
    public init() {}

    public func state(_ end: GatewayEnd) -> State { states[end] ?? .unknown }
}

/// Where a slot points.
public enum GatewayChoice: Hashable, Sendable {
    case gateway(GatewayCandidate)
    /// Every candidate is down.
    case allDown

    public var candidate: GatewayCandidate? { if case .gateway(let candidate) = self { candidate } else { nil } }
}

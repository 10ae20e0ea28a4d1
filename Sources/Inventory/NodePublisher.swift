import Model

/// Tells others what this node knows: the other nodes about this node, and people about policies and pods.
///
/// The calls only hand over what is to be told. The publisher writes it at its own pace; annotations and reports are written
/// again where that failed.
public protocol NodePublisher: Sendable {
    /// Replaces what is published about this node. Called whenever it changes.
    func publish(annotations: [String: String]) async
    /// Replaces the reports of policies. Called whenever they change.
    func report(_ policies: [PolicyReport]) async
    /// Something happened that a person who looks at the object should see.
    func record(_ event: ObjectEvent) async
    /// What could not be written and why, for `culvertctl status`; empty where everything could.
    func problems() async -> [String]
}

/// For sources that nobody writes to: with files and with etcd (only Cilium writes to its store), `<run-dir>/published` is
/// handed on by other means.
public struct NoPublisher: NodePublisher {
    public init() {}
    public func publish(annotations: [String: String]) {}
    public func report(_ policies: [PolicyReport]) {}
    public func record(_ event: ObjectEvent) {}
    public func problems() -> [String] { [] }
}

/// What this node knows for the `status` of an EgressPolicy.
public struct PolicyReport: Hashable, Sendable {
    /// How this node knows it.
    public enum Standing: Hashable, Sendable {
        /// Pods here use the policy, and echoes go to its gateways.
        case user
        /// This node is its gateway, as far as it knows itself.
        case candidate
        /// The policy is refused, which every node can find out.
        case bystander
    }
    public let name: String
    /// Names of nodes: the gateways of the pods here, or this node itself.
    public let activeGateways: [String]
    /// Why there is none; empty when there is one.
    public let reason: String
    public let standing: Standing
    /// How many nodes may report it before this one. It is not known which of the nodes run a helper.
    public let rank: Int
    /// All nodes that may be its gateway, whatever node asks.
    public let candidates: [String]
    /// Those of which this node knows that they are up, and that they are down.
    public let up: [String]
    public let down: [String]
    /// The spec cannot be carried out, and `reason` says why.
    public let isRefused: Bool
    /// Of which generation of the spec this is known; nil: not told by the source.
    public let generation: Int64?
    public init(
        name: String, activeGateways: [String], reason: String, standing: Standing? = nil, rank: Int = 0,
        candidates: [String]? = nil, up: [String] = [], down: [String] = [], isRefused: Bool = false,
        generation: Int64? = nil
    ) {
        self.isRefused = isRefused
        self.generation = generation
        self.standing = standing ?? (activeGateways.isEmpty ? .bystander : .candidate)
        self.rank = rank
        self.name = name
        self.activeGateways = activeGateways
        self.reason = reason
        self.candidates = candidates ?? activeGateways
        self.up = up
        self.down = down
    }
}

/// For `kubectl describe`.
public struct ObjectEvent: Hashable, Sendable {
    public enum Subject: Hashable, Sendable {
        case pod(namespace: String, name: String, uid: String)
        case policy(name: String, source: EgressPolicy.Source)
        case node(name: String)
    }
    public let subject: Subject
    /// CamelCase, e.g. `NoGateway`.
    public let reason: String
    public let message: String
    public init(_ subject: Subject, reason: String, message: String) {
        self.subject = subject
        self.reason = reason
        self.message = message
    }
}

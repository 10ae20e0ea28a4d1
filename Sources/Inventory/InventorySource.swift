import Jansson
import Model

/// Where nodes, pods and policies come from.
public protocol InventorySource: Sendable {
    /// Says that `inventory()` may have changed. One reader.
    var changes: AsyncStream<Void> { get }
    /// The directory that is read too, and has to be watched by a thread; nil: none.
    var files: FileSource? { get }
    /// What is known now.
    func inventory() async -> Inventory
    /// Waits until the pod of an ADD is known well enough to judge it by its labels.
    func identify(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup
    /// Tells the other nodes what this node says of itself; called whenever that changes.
    func publish(annotations: [String: String]) async
    /// Tells people what became of the policies of which this node is to tell; called whenever that changes.
    func report(_ policies: [PolicyReport]) async
    /// Names the gateways of this node's pods, of which people want to see the egress address; called whenever they change.
    func useGateways(_ names: Set<String>) async
    /// Something happened that a person who looks at the object should see.
    func record(_ event: ObjectEvent) async
    /// For `culvertctl status`.
    func status() async -> JSON
}

/// A pod as the runtime names it.
public struct PodReference: Equatable, Sendable {
    public let namespace: String
    public let name: String
    /// Empty where the runtime does not say.
    public let uid: String
    /// The runtime has told of annotations that decide alone.
    public let isDecided: Bool
    /// How long the plugin waits.
    public let deadline: ContinuousClock.Instant
    public init(namespace: String, name: String, uid: String, isDecided: Bool, deadline: ContinuousClock.Instant) {
        self.namespace = namespace
        self.name = name
        self.uid = uid
        self.isDecided = isDecided
        self.deadline = deadline
    }
    /// False for containers that are no pods of Kubernetes (podman and nomad give names only).
    public var isKubernetes: Bool { !namespace.isEmpty && !name.isEmpty }
}

/// Where a pod's labels and annotations came from.
public struct PodLookup: Equatable, Sendable {
    public enum Origin: String, Sendable, CaseIterable {
        /// The runtime's capability `io.kubernetes.cri.pod-annotations`.
        case annotations
        /// The inventory knew it.
        case watch
        /// One request for it.
        case get
        /// Not a pod of Kubernetes, or files, which are complete by definition.
        case given
    }
    public struct Failure: Error, Equatable {
        public let message: String
        public init(_ message: String) { self.message = message }
    }
    public let origin: Origin
    public init(_ origin: Origin) { self.origin = origin }
}

/// `status` of an EgressPolicy.
public struct PolicyReport: Hashable, Sendable {
    public let name: String
    /// Names of nodes.
    public let activeGateways: [String]
    /// Why the policy is not in force; empty when it is.
    public let reason: String
    /// Pods in the whole cluster that its selectors match; nil: not counted yet. The source counts them.
    public var selectedPods: Int?
    /// How many nodes go before this one to tell it: 0 for the gateway. Where there is no gateway, nobody can know which of
    /// the nodes run a helper.
    public let rank: Int
    public init(name: String, activeGateways: [String], reason: String, rank: Int = 0) {
        self.rank = rank
        self.name = name
        self.activeGateways = activeGateways
        self.reason = reason
    }
}

/// For `kubectl describe`.
public struct ObjectEvent: Hashable, Sendable {
    public enum Subject: Hashable, Sendable {
        case pod(namespace: String, name: String, uid: String)
        case policy(name: String, source: EgressPolicy.Source)
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

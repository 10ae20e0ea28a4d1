import Jansson
import Model

/// Where nodes, pods and policies come from. A source only reads. A `NodePublisher` writes.
public protocol InventorySource: Sendable {
    /// Signals that `inventory()` may have changed. One reader.
    var changes: AsyncStream<Void> { get }
    /// The directory that is read too, and has to be watched by a thread; nil: none.
    var files: FileSource? { get }
    /// What is known now.
    func inventory() async -> Inventory
    /// Waits until the pod of an ADD is known well enough to judge it by its labels.
    func identify(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup
    /// Names the gateways of this node's pods, of which more has to be known than of other nodes: what they say of
    /// themselves (their egress address), and whether Kubernetes has given them up. Called whenever they change. A source
    /// that does not read all of the other nodes asks for these.
    ///
    /// - Parameter inDoubt: those in use of which no echo tells anything: they are asked for more often.
    func look(atGateways names: Set<String>, inDoubt: Set<String>) async
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

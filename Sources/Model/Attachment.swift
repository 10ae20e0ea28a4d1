/// A pod's interface that Culvert routes: what an ADD said, kept until DEL.
public struct Attachment: Equatable, Sendable {
    public var containerID: String
    public var interfaceName: String
    public var network: String
    public var podNamespace: String
    public var podName: String
    public var podUID: String
    public var addresses: [IPNetwork]
    /// Without those that are derived.
    public var labels: [String: String]
    /// Empty: not known, or none.
    public var serviceAccount = ""
    public var annotations: [String: String]
    /// The Pod object was seen with the annotation that names a policy: where it has none any more, it was taken away. (A runtime
    /// may hand over one that the inventory's Pod does not have.)
    public var isAnnotatedByPod = false
    public var defaultPolicy: String
    /// Index and name of the host-side peer link; 0 where it is not known.
    public var hostIndex: Int32
    public var hostName: String
    /// Routes that ADD put into the pod, and their MTUs.
    public var podRoutes: [IPNetwork: Int] = [:]
    /// What it got last; nil: nothing was worked out for it yet.
    public var assignment: [AssignedPolicy]?
    /// The annotation's value that it was last permitted to have; empty: none. nil: a record of the release before, which
    /// permitted all.
    public var grantedAnnotation: String? = ""
    /// Pods that the inventory gave one of its addresses to at its ADD: who had it before, by UID. nil: not known.
    public var formerOwners: Set<String>? = []
    /// Found by its Pod object rather than by an ADD: nothing inside the pod was changed.
    public var adopted = false
    /// Of an adopted pod: when its Pod says that it started, seconds since 1970.
    public var podStart: Int64?

    public init(
        containerID: String, interfaceName: String, network: String = "", podNamespace: String = "",
        podName: String = "", podUID: String = "", addresses: [IPNetwork], labels: [String: String] = [:],
        annotations: [String: String] = [:], defaultPolicy: String = "", hostIndex: Int32 = 0, hostName: String = ""
    ) {
        self.containerID = containerID
        self.interfaceName = interfaceName
        self.network = network
        self.podNamespace = podNamespace
        self.podName = podName
        self.podUID = podUID
        self.addresses = addresses
        self.labels = labels
        self.annotations = annotations
        self.defaultPolicy = defaultPolicy
        self.hostIndex = hostIndex
        self.hostName = hostName
    }

    /// `<container>_<interface>`: file name and key.
    public var id: String { "\(containerID)_\(interfaceName)" }
    public var addressesV4: [IPAddress] { addresses.filter { $0.family == .v4 }.map(\.address) }
}

/// A pod's interface that Culvert routes: what an ADD said, kept until DEL.
public struct Attachment: Equatable, Sendable {
    /// All of it, in one place that copies share until one is changed: a plan has each attachment many times.
    private struct Content: Equatable, Sendable {
        var containerID: String
        var interfaceName: String
        var network: String
        var podNamespace: String
        var podName: String
        var podUID: String
        var addresses: [IPNetwork]
        var labels: [String: String]
        var serviceAccount: String = ""
        var annotations: [String: String]
        var isAnnotatedByPod: Bool = false
        var defaultPolicy: String
        var hostIndex: Int32
        var hostName: String
        var podRoutes: [IPNetwork: Int] = [:]
        var assignment: [AssignedPolicy]?
        var grantedAnnotation: String? = ""
        var formerOwners: Set<String>? = []
        var adopted: Bool = false
        var podStart: Int64?
        var id: String
    }
    private final class Shared: Sendable {
        let content: Content
        init(_ content: Content) { self.content = content }
    }
    private var shared: Shared
    private mutating func change(_ body: (inout Content) -> Void) {
        var content = shared.content
        body(&content)
        content.id = "\(content.containerID)_\(content.interfaceName)"
        shared = Shared(content)
    }

    public static func == (a: Self, b: Self) -> Bool { a.shared === b.shared || a.shared.content == b.shared.content }

    public var containerID: String {
        get { shared.content.containerID }
        set { change { $0.containerID = newValue } }
    }
    public var interfaceName: String {
        get { shared.content.interfaceName }
        set { change { $0.interfaceName = newValue } }
    }
    public var network: String {
        get { shared.content.network }
        set { change { $0.network = newValue } }
    }
    public var podNamespace: String {
        get { shared.content.podNamespace }
        set { change { $0.podNamespace = newValue } }
    }
    public var podName: String {
        get { shared.content.podName }
        set { change { $0.podName = newValue } }
    }
    public var podUID: String {
        get { shared.content.podUID }
        set { change { $0.podUID = newValue } }
    }
    public var addresses: [IPNetwork] {
        get { shared.content.addresses }
        set { change { $0.addresses = newValue } }
    }
    /// Without those that are derived.
    public var labels: [String: String] {
        get { shared.content.labels }
        set { change { $0.labels = newValue } }
    }
    /// Empty: not known, or none.
    public var serviceAccount: String {
        get { shared.content.serviceAccount }
        set { change { $0.serviceAccount = newValue } }
    }
    public var annotations: [String: String] {
        get { shared.content.annotations }
        set { change { $0.annotations = newValue } }
    }
    /// The Pod object was seen with the annotation that names a policy: where it has none any more, it was taken away. (A runtime
    /// may hand over one that the inventory's Pod does not have.)
    public var isAnnotatedByPod: Bool {
        get { shared.content.isAnnotatedByPod }
        set { change { $0.isAnnotatedByPod = newValue } }
    }
    public var defaultPolicy: String {
        get { shared.content.defaultPolicy }
        set { change { $0.defaultPolicy = newValue } }
    }
    /// Index and name of the host-side peer link; 0 where it is not known.
    public var hostIndex: Int32 {
        get { shared.content.hostIndex }
        set { change { $0.hostIndex = newValue } }
    }
    public var hostName: String {
        get { shared.content.hostName }
        set { change { $0.hostName = newValue } }
    }
    /// Routes that ADD put into the pod, and their MTUs.
    public var podRoutes: [IPNetwork: Int] {
        get { shared.content.podRoutes }
        set { change { $0.podRoutes = newValue } }
    }
    /// What it got last; nil: nothing was worked out for it yet.
    public var assignment: [AssignedPolicy]? {
        get { shared.content.assignment }
        set { change { $0.assignment = newValue } }
    }
    /// The annotation's value that it was last permitted to have; empty: none. nil: a record of the release before, which
    /// permitted all.
    public var grantedAnnotation: String? {
        get { shared.content.grantedAnnotation }
        set { change { $0.grantedAnnotation = newValue } }
    }
    /// Pods that the inventory gave one of its addresses to at its ADD: who had it before, by UID. nil: not known.
    public var formerOwners: Set<String>? {
        get { shared.content.formerOwners }
        set { change { $0.formerOwners = newValue } }
    }
    /// Found by its Pod object rather than by an ADD: nothing inside the pod was changed.
    public var adopted: Bool {
        get { shared.content.adopted }
        set { change { $0.adopted = newValue } }
    }
    /// Of an adopted pod: when its Pod says that it started, seconds since 1970.
    public var podStart: Int64? {
        get { shared.content.podStart }
        set { change { $0.podStart = newValue } }
    }

    public init(
        containerID: String, interfaceName: String, network: String = "", podNamespace: String = "",
        podName: String = "", podUID: String = "", addresses: [IPNetwork], labels: [String: String] = [:],
        annotations: [String: String] = [:], defaultPolicy: String = "", hostIndex: Int32 = 0, hostName: String = ""
    ) {
        shared = Shared(
            Content(
                containerID: containerID, interfaceName: interfaceName, network: network, podNamespace: podNamespace,
                podName: podName, podUID: podUID, addresses: addresses, labels: labels, annotations: annotations,
                defaultPolicy: defaultPolicy, hostIndex: hostIndex, hostName: hostName,
                id: "\(containerID)_\(interfaceName)"))
    }

    /// `<container>_<interface>`: file name and key.
    public var id: String { shared.content.id }
    public var addressesV4: [IPAddress] { addresses.filter { $0.family == .v4 }.map(\.address) }
}

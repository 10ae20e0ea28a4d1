/// A pod's interface that Culvert routes: what an ADD said, kept until DEL.
public struct Attachment: Equatable, Sendable {
    public var containerID: String
    public var interfaceName: String
    public var network: String
    public var podNamespace: String
    public var podName: String
    public var podUID: String
    public var addresses: [IPNetwork]
    public var labels: [String: String]
    public var annotations: [String: String]
    public var defaultPolicy: String
    /// Index and name of the host-side peer link; 0 where it is not known.
    public var hostIndex: Int32
    public var hostName: String
    /// Routes that ADD put into the pod, and their MTUs.
    public var podRoutes: [IPNetwork: Int] = [:]
    /// What it got last; nil: nothing was worked out for it yet.
    public var assignment: [AssignedPolicy]?
    /// Found by its Pod object rather than by an ADD: nothing inside the pod was changed.
    public var adopted = false

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

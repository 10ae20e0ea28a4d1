/// Networks that contain the addresses of Services, as far as objects of the cluster name them. If the kernel of a node
/// translates those addresses, a policy that claims them would cut its pods off from every Service, including DNS.
public struct ServiceNetworks: Equatable, Sendable {
    /// Of ServiceCIDR objects (networking.k8s.io/v1), by name.
    public var objects: [String: [IPNetwork]] = [:]
    /// `networking.serviceSubnet` of kubeadm's ClusterConfiguration (ConfigMap kube-system/kubeadm-config).
    public var kubeadm: [IPNetwork] = []
    /// Addresses of the Service `kubernetes` in the namespace `default`, which is the API server. They tell nothing of the
    /// network that they lie in.
    public var apiServer: [IPAddress] = []
    public init() {}

    /// All that must keep its normal path.
    public var all: [IPNetwork] { networks + apiServer.map { IPNetwork(host: $0) } }

    /// Whole networks, without single addresses.
    public var networks: [IPNetwork] { objects.sorted { $0.key < $1.key }.flatMap(\.value) + kubeadm }

    /// Whether a network may be one of Services. What is kept is claimed by no policy: a mistake as large as 0.0.0.0/0 would
    /// switch all policies off. (The API server itself takes at most 20 bits of addresses.)
    public static func isPlausible(_ network: IPNetwork) -> Bool {
        network.prefixLength >= (network.family == .v4 ? 8 : 32)
    }
}

/// What a node knows of itself and of nobody else.
public struct LocalFacts: Equatable, Sendable {
    /// An interface that packets may leave by.
    public struct Interface: Equatable, Sendable {
        public var name: String
        public var addresses: [IPNetwork]
        /// Host addresses as assigned, in the kernel's order.
        public var hostAddresses: [IPAddress]
        /// Next hop of a default route over it, if there is one.
        public var gateway: IPAddress?
        /// `net.ipv4.conf.<dev>.rp_filter`
        public var reversePathFilter: Int
        public init(
            name: String, addresses: [IPNetwork], hostAddresses: [IPAddress], gateway: IPAddress? = nil,
            reversePathFilter: Int = 0
        ) {
            self.reversePathFilter = reversePathFilter
            self.name = name
            self.addresses = addresses
            self.hostAddresses = hostAddresses
            self.gateway = gateway
        }
    }

    public var nodeName: String
    /// Found on `cilium_host`; nil: not known, the inventory's word counts.
    public var overlayAddress: IPAddress?
    /// The overlay address as it was last known, for as long as nobody tells a newer one.
    public var lastOverlayAddress: IPAddress?
    /// MTU of the underlay device in bytes.
    public var underlayMTU: Int
    /// Device of the default route.
    public var underlayDevice: String
    public var interfaces: [Interface]
    /// `net.ipv4.conf.all.rp_filter`; nil where it cannot be known.
    public var reversePathFilterAll: Int?
    /// `net.ipv4.ip_forward`; nil where it cannot be known.
    public var forwarding: Int?
    /// What speaks WireGuard on this node.
    public enum WireGuardSupport: String, Sendable {
        /// The kernel's own (Linux 5.6).
        case kernel
        /// A program such as wireguard-go, by its socket.
        case userspace
        case none
    }
    public var wireGuard = WireGuardSupport.kernel
    /// Nodes that have no part in the mesh, whatever the inventory says of them: Kilo would leave them out.
    public var leftOutOfMesh: Set<String> = []
    /// This node's WireGuard key; nil: the inventory's word counts.
    public var publicKey: WireGuardKey?
    /// Address on the interface that has the node address, with its prefix length.
    public var privateAddress: InterfaceAddress?
    /// Addresses of the DNS names that endpoints are given by.
    public var resolvedNames: [String: IPAddress] = [:]
    /// False when the facts are those of no real node (`culvertctl plan` on a desk).
    public var isLive: Bool

    public init(
        nodeName: String, overlayAddress: IPAddress? = nil, underlayMTU: Int = 1500,
        underlayDevice: String = "underlay", interfaces: [Interface] = [], reversePathFilterAll: Int? = nil,
        isLive: Bool = false
    ) {
        self.nodeName = nodeName
        self.overlayAddress = overlayAddress
        self.underlayMTU = underlayMTU
        self.underlayDevice = underlayDevice
        self.interfaces = interfaces
        self.reversePathFilterAll = reversePathFilterAll
        self.isLive = isLive
    }

    /// The default route's interface drops packets whose source is not routed back by it (`rp_filter` 1, RFC 3704).
    public var hasStrictUplink: Bool {
        max(reversePathFilterAll ?? 0, interface(underlayDevice)?.reversePathFilter ?? 0) == 1
    }
    /// The default egress address: the first of the default route's interface.
    public var egressAddressV4: IPAddress? { interface(underlayDevice)?.hostAddresses.first { $0.family == .v4 } }
    public func interface(_ name: String) -> Interface? { interfaces.first { $0.name == name } }
    public func interface(with address: IPAddress) -> Interface? {
        interfaces.first { $0.hostAddresses.contains(address) }
    }
}

/// What a node knows of itself.
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
        /// `net.ipv4.conf.<dev>.forwarding`, of what comes in by it; nil where it is not known.
        public var forwards: Bool?
        /// The link has a carrier.
        public var hasCarrier = true
        /// Some table has a default route over it, or it needs none because there is only one other end.
        public var hasDefaultRoute = true
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

    /// A network that the main table has a route to.
    public struct Way: Hashable, Sendable {
        public let network: IPNetwork
        /// By a next hop, or to the one other end of a device; else the network is connected.
        public let isForwarded: Bool
        public init(_ network: IPNetwork, isForwarded: Bool) {
            self.network = network
            self.isForwarded = isForwarded
        }
    }

    public var nodeName: String
    /// Found on `cilium_host`. nil: it is not known, and the inventory's value is used.
    public var overlayAddress: IPAddress?
    /// The last known overlay address, which is used until a newer one is known.
    public var lastOverlayAddress: IPAddress?
    /// MTU of the underlay device in bytes.
    public var underlayMTU: Int
    /// Device of the default route.
    public var underlayDevice: String
    public var interfaces: [Interface]
    /// Where packets that leave this node may go by its main table, Cilium's and Culvert's own devices left out; nil: not
    /// known, or too many to look at.
    public var ways: Set<Way>?
    /// `net.ipv4.conf.all.rp_filter`; nil where it cannot be known.
    public var reversePathFilterAll: Int?
    /// `net.ipv4.ip_forward`; nil where it cannot be known.
    public var forwarding: Int?
    /// What other tables of nftables drop of forwarded packets.
    public var forwardDrops: [ForwardDrop] = []
    /// Priority of the rule that asks the local table, the first of them; nil where it cannot be known.
    public var localRulePriority: UInt32?
    /// What speaks WireGuard on this node.
    public enum WireGuardSupport: String, Sendable {
        /// The kernel's own (Linux 5.6).
        case kernel
        /// A program such as wireguard-go, by its socket.
        case userspace
        case none
    }
    public var wireGuard = WireGuardSupport.kernel
    /// Nodes that are left out of the mesh, whatever the inventory contains: Kilo would leave them out.
    public var leftOutOfMesh: Set<String> = []
    /// A Kilo on this node has the mesh: nothing of it is planned here.
    public var isMeshLeftToKilo = false
    /// This node's WireGuard key. nil: the inventory's value is used.
    public var publicKey: WireGuardKey?
    /// Address on the interface that has the node address, with its prefix length.
    public var privateAddress: InterfaceAddress?
    /// Addresses of the DNS names that endpoints are given by.
    public var resolvedNames: [String: IPAddress] = [:]
    /// The API server's own Service address, which the kubelet tells every container (`KUBERNETES_SERVICE_HOST`); nil where
    /// the helper is no pod, or is told a name.
    public var apiServerAddress: IPAddress?
    /// Since when the plugin is in the chain; nil: not known.
    public var chain: ChainRecord?
    /// When this node was started, seconds since 1970; nil: not known.
    public var bootTime: Int64?
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

/// A chain of somebody else's that drops forwarded packets.
public struct ForwardDrop: Hashable, Sendable {
    public enum What: String, Sendable {
        /// Whatever no rule accepts.
        case byDefault
        /// What connection tracking calls invalid.
        case invalid
    }
    /// Family and name, as nft has them.
    public let table: String
    public let chain: String
    public let what: What
    public init(table: String, chain: String, what: What) {
        self.table = table
        self.chain = chain
        self.what = what
    }
}

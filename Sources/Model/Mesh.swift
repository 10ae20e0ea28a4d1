/// The mesh between locations: keys, endpoints, what a node says of itself, outside peers.

/// A WireGuard key, public or preshared: 32 bytes (Curve25519, RFC 7748; or symmetric), as base64 text of 44
/// characters.
public struct WireGuardKey: Hashable, Sendable, Comparable, CustomStringConvertible {
    /// 44 characters of base64.
    public let text: String

    /// nil where the text is not 32 bytes in base64 (RFC 4648, section 4).
    public init?(_ text: String) {
        guard let bytes = WireGuardKey.decode(text) else { return nil }
        self.init(bytes: bytes)
    }

    /// nil where there are not 32 of them.
    public init?(bytes: [UInt8]) {
        guard bytes.count == 32 else { return nil }
        text = WireGuardKey.encode(bytes)
    }

    public var bytes: [UInt8] { WireGuardKey.decode(text) ?? [] }
    public var description: String { text }
    public static func < (a: Self, b: Self) -> Bool { a.text < b.text }

    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    private static let values: [UInt8] = {
        var values = [UInt8](repeating: 0xFF, count: 256)
        for (value, character) in alphabet.enumerated() { values[Int(character)] = UInt8(value) }
        return values
    }()

    private static func decode(_ text: String) -> [UInt8]? {
        let characters = Array(text.utf8)
        guard characters.count == 44, characters[43] == UInt8(ascii: "=") else { return nil }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(33)
        for start in stride(from: 0, to: 44, by: 4) {
            var group: UInt32 = 0
            for index in start..<start + 4 {
                let value = index == 43 ? 0 : values[Int(characters[index])]
                guard value != 0xFF else { return nil }
                group = group << 6 | UInt32(value)
            }
            bytes += [UInt8(group >> 16), UInt8(truncatingIfNeeded: group >> 8), UInt8(truncatingIfNeeded: group)]
        }
        return bytes[32] == 0 ? Array(bytes.prefix(32)) : nil
    }

    private static func encode(_ bytes: [UInt8]) -> String {
        var text: [UInt8] = []
        let padded = bytes + [0]
        for start in stride(from: 0, to: 33, by: 3) {
            let group = UInt32(padded[start]) << 16 | UInt32(padded[start + 1]) << 8 | UInt32(padded[start + 2])
            for shift in [18, 12, 6, 0] as [UInt32] { text.append(alphabet[Int(group >> shift & 63)]) }
        }
        text[43] = UInt8(ascii: "=")
        return String(decoding: text, as: UTF8.self)
    }
}

/// An address and a UDP port.
public struct SocketAddress: Hashable, Sendable, CustomStringConvertible {
    public let address: IPAddress
    public let port: UInt16
    public init(_ address: IPAddress, port: UInt16) {
        self.address = address
        self.port = port
    }
    public var description: String { address.family == .v6 ? "[\(address)]:\(port)" : "\(address):\(port)" }
}

/// Where a WireGuard peer is: by address or by DNS name.
public struct Endpoint: Hashable, Sendable, CustomStringConvertible {
    public enum Host: Hashable, Sendable {
        case address(IPAddress)
        case name(String)
    }
    public let host: Host
    public let port: UInt16
    public init(host: Host, port: UInt16) {
        self.host = host
        self.port = port
    }

    /// `ADDRESS:PORT`, `[V6ADDRESS]:PORT` or `NAME:PORT`; nil for anything else.
    public init?(_ text: String) {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]), port > 0
        else { return nil }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
            guard let address = IPAddress(String(host)), address.family == .v6 else { return nil }
            self.init(host: .address(address), port: port)
            return
        }
        if let address = IPAddress(String(host)) {
            guard address.family == .v4 else { return nil }
            self.init(host: .address(address), port: port)
            return
        }
        guard Endpoint.isDNSName(host) else { return nil }
        self.init(host: .name(String(host)), port: port)
    }

    public var address: IPAddress? { if case .address(let address) = host { address } else { nil } }
    public var description: String {
        switch host {
        case .address(let address): "\(SocketAddress(address, port: port))"
        case .name(let name): "\(name):\(port)"
        }
    }

    /// RFC 1123, section 2.1: letters, digits and hyphens between dots, and not an address by looks.
    static func isDNSName(_ text: Substring) -> Bool {
        guard !text.isEmpty, text.utf8.count <= 253, text.contains(where: \.isLetter) else { return false }
        return text.split(separator: ".", omittingEmptySubsequences: false).allSatisfy { label in
            !label.isEmpty && label.utf8.count <= 63 && !label.hasPrefix("-") && !label.hasSuffix("-")
                && label.utf8.allSatisfy {
                    (0x30...0x39).contains($0) || (0x41...0x5A).contains($0) || (0x61...0x7A).contains($0)
                        || $0 == 0x2D || $0 == 0x5F
                }
        }
    }
}

/// What a node's annotations say about the mesh (Kilo's annotations, design.md, "Inventory").
public struct MeshAnnotations: Equatable, Sendable {
    /// `kilo.squat.ai/location`; nil: the topology label's value.
    public var location: String?
    public var granularity: MeshConfiguration.Granularity?
    public var key: WireGuardKey?
    /// `kilo.squat.ai/force-endpoint`, `…/endpoint`; nil: worked out of the node's addresses.
    public var endpoint: Endpoint?
    /// The endpoint comes from `force-endpoint`, which an administrator wrote.
    public var isEndpointForced = false
    /// `kilo.squat.ai/leader`, whatever its value.
    public var wantsToBeGateway = false
    /// Seconds; 0: none.
    public var persistentKeepalive: UInt16 = 0
    public var allowedLocationIPs: [IPNetwork] = []
    /// Where this node has seen peers that are behind a NAT.
    public var discoveredEndpoints: [WireGuardKey: SocketAddress] = [:]
    /// The node's private address with its prefix length; nil: it has none, and is a location of its own.
    public var privateAddress: InterfaceAddress?
    /// `kilo.squat.ai/last-seen`.
    public var lastSeen = LastSeen(seconds: nil)
    public init() {}

    /// A sign of life, seconds since 1970: all are equal, because a newer one is no reason to plan anew.
    public struct LastSeen: Equatable, Sendable {
        public let seconds: Int64?
        public init(seconds: Int64?) { self.seconds = seconds }
        public static func == (a: Self, b: Self) -> Bool { true }
    }
}

/// An address as it is assigned to an interface: with the prefix length of its network.
public struct InterfaceAddress: Hashable, Sendable, CustomStringConvertible {
    public let address: IPAddress
    public let prefixLength: Int
    public init(_ address: IPAddress, prefixLength: Int? = nil) {
        self.address = address
        self.prefixLength = prefixLength ?? address.family.bits
    }
    public var network: IPNetwork { IPNetwork(address, prefixLength: prefixLength) }
    public var description: String { "\(address)/\(prefixLength)" }
}

/// `Peer` (kilo.squat.ai/v1alpha1): something outside the cluster.
public struct MeshPeer: Equatable, Sendable {
    public var name: String
    public var publicKey: WireGuardKey
    public var presharedKey: WireGuardKey?
    public var endpoint: Endpoint?
    /// Seconds; 0: none.
    public var persistentKeepalive: UInt16 = 0
    public var allowedIPs: [IPNetwork] = []
    public init(name: String, publicKey: WireGuardKey) {
        self.name = name
        self.publicKey = publicKey
    }
}

/// `mesh` of the configuration, and of `encapsulation` what belongs to it.
public struct MeshConfiguration: Equatable, Sendable {
    public enum Granularity: String, Sendable, CaseIterable { case location, full }
    public enum Strategy: String, Sendable, CaseIterable { case always, crosssubnet, never }

    public var enabled = false
    public var granularity = Granularity.location
    /// WireGuard addresses of gateways come out of it.
    public var subnet = IPNetwork(IPAddress(v4: 0x0A04_0000), prefixLength: 16)
    public var port: UInt16 = 51820
    public var interface = Ownership.wireGuardDevice
    public var manageLocalRoutes = false
    public var topologyLabel = "topology.kubernetes.io/region"
    public var kiloInterop = false
    /// What `kilo.squat.ai/allowed-location-ips` of a node may name; empty: anything.
    public var allowedLocationCIDRs: [IPNetwork] = []
    public var strategy = Strategy.always
    /// Of the local node, seconds; 0: none.
    public var persistentKeepalive: UInt16 = 0
    public init() {}
}

/// A WireGuard device, but for its private key, which never leaves the node's key file.
public struct WireGuardDevice: Hashable, Sendable {
    public var name: String
    public var listenPort: UInt16
    public var publicKey: WireGuardKey
    /// By public key.
    public var peers: [WireGuardPeer]
    public init(name: String, listenPort: UInt16, publicKey: WireGuardKey, peers: [WireGuardPeer] = []) {
        self.name = name
        self.listenPort = listenPort
        self.publicKey = publicKey
        self.peers = peers
    }
}

/// A peer of a WireGuard device.
public struct WireGuardPeer: Hashable, Sendable {
    public var publicKey: WireGuardKey
    public var presharedKey: WireGuardKey?
    /// nil: learnt from what the peer sends, and left alone.
    public var endpoint: SocketAddress?
    /// Seconds; 0: none.
    public var persistentKeepalive: UInt16
    /// Sorted.
    public var allowedIPs: [IPNetwork]
    public init(
        publicKey: WireGuardKey, presharedKey: WireGuardKey? = nil, endpoint: SocketAddress? = nil,
        persistentKeepalive: UInt16 = 0, allowedIPs: [IPNetwork] = []
    ) {
        self.publicKey = publicKey
        self.presharedKey = presharedKey
        self.endpoint = endpoint
        self.persistentKeepalive = persistentKeepalive
        self.allowedIPs = allowedIPs
    }
}

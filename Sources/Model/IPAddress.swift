import CLinux

/// An IPv4 or IPv6 address, sixteen bytes and a family.
public struct IPAddress: Hashable, Sendable, Comparable, CustomStringConvertible {
    public enum Family: UInt8, Hashable, Sendable {
        /// `AF_INET`
        case v4 = 2
        /// `AF_INET6`
        case v6 = 10

        /// Length of an address in bits.
        public var bits: Int { self == .v4 ? 32 : 128 }
    }

    public let family: Family
    /// The address in host order, right-aligned: an IPv4 address fills the low 32 bits of `low`.
    public let high: UInt64
    public let low: UInt64

    public init(family: Family, high: UInt64, low: UInt64) {
        self.family = family
        self.high = high
        self.low = low
    }

    /// An IPv4 address from its value in host order.
    public init(v4 value: UInt32) { self.init(family: .v4, high: 0, low: UInt64(value)) }

    /// From network-order bytes: 4 or 16 of them, else nil.
    public init?(bytes: some Collection<UInt8>) {
        switch bytes.count {
        case 4: self.init(v4: bytes.reduce(0) { $0 << 8 | UInt32($1) })
        case 16:
            self.init(
                family: .v6, high: bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) },
                low: bytes.suffix(8).reduce(0) { $0 << 8 | UInt64($1) })
        default: return nil
        }
    }

    /// From dotted or colon notation; nil where `inet_pton` refuses it.
    public init?(_ text: String) {
        guard text.utf8.count < 64 else { return nil }
        var bytes = [UInt8](repeating: 0, count: 16)
        if inet_pton(AF_INET, text, &bytes) == 1 {
            self.init(bytes: bytes.prefix(4))
        } else if inet_pton(AF_INET6, text, &bytes) == 1 {
            self.init(bytes: bytes)
        } else {
            return nil
        }
    }

    /// The next address; wraps at the end.
    public var successor: IPAddress {
        if family == .v4 { return IPAddress(v4: UInt32(truncatingIfNeeded: low) &+ 1) }
        let (sum, carry) = low.addingReportingOverflow(1)
        return IPAddress(family: .v6, high: carry ? high &+ 1 : high, low: sum)
    }

    /// An IPv4 address written as IPv6, `::ffff:10.0.0.1` (RFC 4291 section 2.5.5.2).
    public var isMappedV4: Bool { family == .v6 && high == 0 && low >> 32 == 0xFFFF }

    /// Not of a private network (RFC 1918, RFC 4193), shared (RFC 6598), loopback or link-local.
    public var isPublic: Bool { !IPAddress.nonPublic.contains { $0.contains(IPNetwork(host: self)) } }
    private static let nonPublic = [
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8",
        "fc00::/7", "fe80::/10", "::1/128",
    ].compactMap { IPNetwork($0) }

    /// Network-order bytes, 4 or 16.
    public var bytes: [UInt8] {
        func split(_ value: UInt64, _ count: Int) -> [UInt8] {
            (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * (count - 1 - $0))) }
        }
        return family == .v4 ? split(low, 4) : split(high, 8) + split(low, 8)
    }

    /// The IPv4 value in host order; 0 for IPv6.
    public var v4Value: UInt32 { family == .v4 ? UInt32(truncatingIfNeeded: low) : 0 }

    public var description: String {
        if family == .v4 { return "\(low >> 24 & 255).\(low >> 16 & 255).\(low >> 8 & 255).\(low & 255)" }
        var text = [CChar](repeating: 0, count: 64)
        let source = bytes
        guard inet_ntop(AF_INET6, source, &text, 64) != nil else { return "::" }
        return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.family.rawValue, a.high, a.low) < (b.family.rawValue, b.high, b.low)
    }
}

/// A network in CIDR notation (RFC 4632): the address with its host bits cleared, and a prefix length.
public struct IPNetwork: Hashable, Sendable, Comparable, CustomStringConvertible {
    public let address: IPAddress
    /// 0...32 or 0...128.
    public let prefixLength: Int

    /// Clears the host bits. The prefix length is clamped to the family's range.
    public init(_ address: IPAddress, prefixLength: Int) {
        let length = max(0, min(prefixLength, address.family.bits))
        self.prefixLength = length
        if address.family == .v4 {
            self.address = IPAddress(family: .v4, high: 0, low: address.low & UInt64(IPNetwork.maskV4(length)))
        } else {
            let high: UInt64 = length == 0 ? 0 : length >= 64 ? .max : .max << UInt64(64 - length)
            let low: UInt64 = length <= 64 ? 0 : length == 128 ? .max : .max << UInt64(128 - length)
            self.address = IPAddress(family: .v6, high: address.high & high, low: address.low & low)
        }
    }

    /// The mask of an IPv4 prefix length (0...32), host order.
    public static func maskV4(_ prefixLength: Int) -> UInt32 {
        prefixLength == 0 ? 0 : UInt32.max << UInt32(32 - prefixLength)
    }

    /// One host.
    public init(host address: IPAddress) { self.init(address, prefixLength: address.family.bits) }

    /// From `address/length`, or a bare address for one host. Host bits are cleared.
    public init?(_ text: String) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count <= 2, let address = IPAddress(String(parts[0])) else { return nil }
        if parts.count == 1 {
            self.init(host: address)
        } else {
            // A length with zeros before it is none (RFC 4632, and Kubernetes): some would read it as octal.
            guard parts[1].utf8.count <= 3, parts[1].utf8.allSatisfy({ (48...57).contains($0) }),
                parts[1] == "0" || parts[1].utf8.first != 48,
                let length = Int(parts[1]), length <= address.family.bits
            else { return nil }
            self.init(address, prefixLength: length)
        }
    }

    public var family: IPAddress.Family { address.family }
    public var isHost: Bool { prefixLength == family.bits }
    public static let everythingV4 = IPNetwork(IPAddress(v4: 0), prefixLength: 0)
    public static let everythingV6 = IPNetwork(IPAddress(family: .v6, high: 0, low: 0), prefixLength: 0)

    public func contains(_ other: IPAddress) -> Bool {
        family == other.family && IPNetwork(other, prefixLength: prefixLength).address == address
    }
    public func contains(_ other: IPNetwork) -> Bool {
        other.prefixLength >= prefixLength && contains(other.address)
    }
    /// One contains the other.
    public func overlaps(_ other: IPNetwork) -> Bool { contains(other) || other.contains(self) }

    /// The two halves, or nil for a host.
    public var halves: (IPNetwork, IPNetwork)? {
        guard !isHost else { return nil }
        let bit = family.bits - prefixLength - 1
        let upper = IPAddress(
            family: family, high: bit >= 64 ? address.high | 1 << UInt64(bit - 64) : address.high,
            low: bit < 64 ? address.low | 1 << UInt64(bit) : address.low)
        return (IPNetwork(address, prefixLength: prefixLength + 1), IPNetwork(upper, prefixLength: prefixLength + 1))
    }

    /// The last address of an IPv4 network, host order.
    public var lastV4: UInt32 {
        prefixLength == 32 ? address.v4Value : address.v4Value | (UInt32.max >> UInt32(prefixLength))
    }

    public var description: String { "\(address)/\(prefixLength)" }
    /// As iproute2 prints a route's `dst`: `default` for everything, no length for a host.
    public var routeText: String {
        prefixLength == 0 ? "default" : isHost ? address.description : description
    }

    public static func < (a: Self, b: Self) -> Bool { (a.address, a.prefixLength) < (b.address, b.prefixLength) }
}

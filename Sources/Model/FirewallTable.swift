/// The nftables table `inet culvert`, as a value.
public struct FirewallTable: Equatable, Sendable {
    public var chains: [FirewallChain]
    public var sets: [FirewallSet]
    public init(chains: [FirewallChain], sets: [FirewallSet]) {
        self.chains = chains
        self.sets = sets
    }
}

/// A chain with its rules in order. The policy of a base chain is always accept.
public struct FirewallChain: Equatable, Sendable {
    public enum Kind: String, Sendable { case filter, nat }
    /// Netfilter hook of the inet family.
    public enum Hook: UInt32, Sendable {
        case prerouting = 0
        case input = 1
        case forward = 2
        case output = 3
        case postrouting = 4
        public var name: String {
            switch self {
            case .prerouting: "prerouting"
            case .input: "input"
            case .forward: "forward"
            case .output: "output"
            case .postrouting: "postrouting"
            }
        }
    }
    public let name: String
    public let kind: Kind
    /// nil: no base chain; other chains jump to it.
    public let hook: Hook?
    public let priority: Int32
    public var rules: [FirewallRule]

    /// A chain that others jump to. It stands before them in the table.
    public init(name: String, rules: [FirewallRule]) {
        self.name = name
        kind = .filter
        hook = nil
        priority = 0
        self.rules = rules
    }
    public init(name: String, kind: Kind, hook: Hook, priority: Int32, rules: [FirewallRule]) {
        self.name = name
        self.kind = kind
        self.hook = hook
        self.priority = priority
        self.rules = rules
    }
}

public struct FirewallRule: Equatable, Sendable {
    public let statements: [FirewallStatement]
    /// Shown by `nft list`, and in `culvertctl status` beside the counter. At most 120 bytes.
    public let comment: String?
    public init(_ statements: [FirewallStatement], comment: String? = nil) {
        self.statements = statements
        self.comment = comment
    }
}

/// A field of a packet, loaded by `payload`.
public enum PacketField: Hashable, Sendable {
    case sourceAddress
    case destinationAddress
    /// Protocol field of the IPv4 header, one byte.
    case ipProtocol
    /// `meta l4proto`, one byte.
    case layer4Protocol
    /// Source port of UDP.
    case udpSourcePort
    /// Destination port of UDP.
    case udpDestinationPort
    /// Source port of TCP, UDP and others that have it in the same place.
    case sourcePort
    /// Destination port of the same.
    case destinationPort
    /// Type of ICMP (RFC 792), one byte.
    case icmpType
    /// Flags byte of TCP.
    case tcpFlags
    /// Raw bits of the transport header (`@th,offset,length`), whole bytes.
    case transport(offset: Int, bits: Int)
    /// The first bits of an address (`& mask`): its network of that prefix length.
    indirect case network(PacketField, prefixLength: Int)

    public var bytes: Int {
        switch self {
        case .sourceAddress, .destinationAddress: 4
        case .layer4Protocol, .tcpFlags, .ipProtocol, .icmpType: 1
        case .udpSourcePort, .udpDestinationPort, .sourcePort, .destinationPort: 2
        case .transport(_, let bits): bits / 8
        case .network(let field, _): field.bytes
        }
    }
}

public enum FirewallStatement: Equatable, Sendable {
    /// IPv4 only (`meta nfproto ipv4`), needed before a raw payload match in the inet family.
    case ipv4Only
    /// Incoming interface name, or its beginning.
    case incoming(String, prefix: Bool, negated: Bool)
    case outgoing(String, prefix: Bool, negated: Bool)
    /// One field equal (or not) to a value in network order.
    case match(PacketField, UInt32, negated: Bool)
    /// `tcp flags syn / syn,rst`, that is: a connection's first packets.
    case tcpSyn
    /// Of TCP's flags those of `mask` are `value` (RFC 9293, section 3.1).
    case tcpFlags(value: TCPFlags, mask: TCPFlags)
    /// Connection tracking has one of these states for the packet.
    case connectionState(ConnectionState)
    /// The routes that packets with this packet's mark take do not lead to its source by the interface that it has come by.
    case comesByNoRouteBack
    /// The packet goes in the direction in which its connection was opened.
    case originalDirection
    /// The connection's destination was translated.
    case destinationTranslated
    /// What is opened by the packet is looked up in this zone of connection tracking, what answers it in the usual one.
    case originalZone(UInt16)
    /// Puts the fields, joined, into a set that packets fill, for so many seconds from now.
    case update([PacketField], set: String, seconds: UInt64)
    /// All these bits of the firewall mark are set, or (negated) none is.
    case marked(UInt32, negated: Bool)
    /// The fields, joined, are in the set.
    case lookup([PacketField], set: String, negated: Bool)
    /// Goes on in the chain that the verdict map has for the fields, joined, and comes back where that one decides nothing.
    /// Where the map has none, the next rule follows.
    case lookUpChain([PacketField], map: String)
    case counter
    case accept
    case drop
    case notrack
    /// Sets these bits of the firewall mark and leaves the others.
    case setMark(UInt32)
    /// Clears these bits of the firewall mark and leaves the others.
    case clearMark(UInt32)
    /// Goes back to the chain that has jumped here.
    case goBack
    /// Goes on in a chain that has no hook, and comes back where that one decides nothing.
    case jump(String)
    case snat(IPAddress)
    /// TCP maximum segment size, never raised.
    case clampMSS(UInt16)
}

/// Flags of a TCP segment (RFC 9293, section 3.1).
public struct TCPFlags: OptionSet, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let fin = Self(rawValue: 0x01)
    public static let syn = Self(rawValue: 0x02)
    public static let rst = Self(rawValue: 0x04)
    public static let ack = Self(rawValue: 0x10)
}

/// States of connection tracking, as bits (linux/netfilter/nf_conntrack_common.h, `NF_CT_STATE_BIT`).
public struct ConnectionState: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let invalid = Self(rawValue: 0x01)
    /// Packets in both directions were seen.
    public static let established = Self(rawValue: 0x02)
    public static let untracked = Self(rawValue: 0x40)
}

/// A named set of IPv4 addresses or ranges, of two of them joined, or of flows; or a verdict map, which has a chain for each
/// address.
public struct FirewallSet: Equatable, Sendable {
    public enum Key: Equatable, Sendable {
        case address
        case addressPair
        /// A 32-bit number (GRE key), host order.
        case number
        /// Two addresses, protocol, two ports.
        case flow

        /// Bytes of one key.
        public var bytes: Int {
            switch self {
            case .address, .number: 4
            case .addressPair: 8
            case .flow: 20
            }
        }
    }
    public let name: String
    public let key: Key
    /// Ranges are allowed. The kernel copies an interval set of pairs whole for every change of it; a set without
    /// ranges is a hash table, whatever its size.
    public let interval: Bool
    /// How many elements it may have at most, where packets fill it and elements leave it by themselves; nil: it has the
    /// elements that are listed. What packets have put in is kept, and compared with nothing.
    public let dynamicSize: UInt32?
    /// Each element is an address with the number (`pair`) of the chain that its packets go on in (`chain(map:number:)`).
    public let isVerdictMap: Bool
    /// In order, each once: two sets of thousands are compared and told apart in one pass.
    public private(set) var elements: [Element]

    /// A range of keys; a single one where both ends are equal. For `addressPair` the first part is `pair`, and in a verdict
    /// map `pair` is the chain's number.
    public struct Element: Hashable, Sendable, Comparable {
        public let pair: UInt32
        public let first: UInt32
        public let last: UInt32
        public init(pair: UInt32 = 0, first: UInt32, last: UInt32) {
            self.pair = pair
            self.first = first
            self.last = last
        }
        public static func < (a: Self, b: Self) -> Bool {
            let (one, other) = (UInt64(a.pair) << 32 | UInt64(a.first), UInt64(b.pair) << 32 | UInt64(b.first))
            return one != other ? one < other : a.last < b.last
        }
    }

    /// A set that packets fill.
    ///
    /// - Parameter size: how many elements it may have at most.
    public init(name: String, key: Key, dynamicSize size: UInt32) {
        self.name = name
        self.key = key
        interval = false
        isVerdictMap = false
        dynamicSize = size
        elements = []
    }

    /// A verdict map.
    ///
    /// - Parameter elements: addresses with the numbers of their chains, in order of both, each address once.
    public init(map name: String, elements: [Element]) {
        self.name = name
        key = .address
        interval = false
        isVerdictMap = true
        dynamicSize = nil
        self.elements = elements
    }

    /// The chain that a verdict map names with this number.
    public static func chain(map name: String, number: UInt32) -> String { "\(name)_\(String(number, radix: 16))" }

    /// No chain has this number.
    public static let noChain = UInt32.max

    /// The number of a chain of this verdict map; nil: it is not named like one.
    public static func number(ofChain chain: String, map name: String) -> UInt32? {
        guard chain.hasPrefix(name + "_") else { return nil }
        let number = UInt32(chain.dropFirst(name.utf8.count + 1), radix: 16)
        return number.flatMap { self.chain(map: name, number: $0) == chain ? $0 : nil }
    }

    public init(name: String, key: Key, interval: Bool, elements: [Element]) {
        dynamicSize = nil
        isVerdictMap = false
        self.name = name
        self.key = key
        self.interval = interval
        var list = elements
        if key != .addressPair || interval {
            list.sort()
        } else if !zip(list, list.dropFirst()).allSatisfy({ $0 <= $1 }) {
            // Thousands, and numbers are quicker to sort.
            var numbers = list.map { UInt64($0.pair) << 32 | UInt64($0.first) }
            numbers.sort()
            for (index, number) in numbers.enumerated() {
                let address = UInt32(truncatingIfNeeded: number)
                list[index] = Element(pair: UInt32(number >> 32), first: address, last: address)
            }
        }
        var last: Element?
        list.removeAll { element in
            defer { last = element }
            return element == last
        }
        self.elements = list
    }

    /// What two lists in order do not share, in one pass.
    public static func difference(
        _ before: [Element], _ after: [Element]
    ) -> (added: [Element], removed: [Element]) {
        var added: [Element] = []
        var removed: [Element] = []
        var (old, new) = (before.startIndex, after.startIndex)
        while old < before.endIndex || new < after.endIndex {
            if new == after.endIndex || (old < before.endIndex && before[old] < after[new]) {
                removed.append(before[old])
                old += 1
            } else if old == before.endIndex || after[new] < before[old] {
                added.append(after[new])
                new += 1
            } else {
                old += 1
                new += 1
            }
        }
        return (added, removed)
    }
}

import Jansson

/// The state that Culvert wants of one node's kernel, as a value. The planner makes it, and the reconciler makes the
/// kernel equal to it.
public struct HostState: Equatable, Sendable {
    public var links: [Link] = []
    public var nextHops: [NextHop] = []
    /// Routes table by table, in order of the tables' numbers. Two tables of which nothing has changed are the same list, which
    /// is seen at a glance: a node may have thousands of routes for its pods.
    public private(set) var routeTables: [RouteTable] = []
    public var rules: [Rule] = []
    public var neighbours: [Neighbour] = []
    public var fouPorts: [FOUPort] = []
    /// nil: none of ours.
    public var wireGuard: WireGuardDevice?
    /// nil: Culvert has no table.
    public var firewall: FirewallTable?

    /// The routes of one table, in order (`Route.isBefore`).
    public struct RouteTable: Equatable, Sendable {
        public let number: UInt32
        public let routes: [Route]
        public init(number: UInt32, routes: [Route]) {
            self.number = number
            self.routes = Route.inOrder(routes)
        }
    }

    /// The routes of all tables, in order.
    public var routes: [Route] {
        get { routeTables.flatMap(\.routes) }
        set {
            routeTables = []
            add(newValue)
        }
    }

    /// The routes of one table.
    public func routes(table: UInt32) -> [Route] { routeTables.first { $0.number == table }?.routes ?? [] }

    /// Adds routes of any tables.
    public mutating func add(_ routes: [Route]) {
        var byTable: [UInt32: [Route]] = [:]
        for route in routes { byTable[route.table, default: []].append(route) }
        for (number, more) in byTable.sorted(by: { $0.key < $1.key }) {
            add(RouteTable(number: number, routes: self.routes(table: number) + more))
        }
    }

    /// Puts a table in, in place of one of that number.
    public mutating func add(_ table: RouteTable) {
        var (low, high) = (0, routeTables.count)
        while low < high {
            let middle = (low + high) / 2
            if routeTables[middle].number < table.number { low = middle + 1 } else { high = middle }
        }
        if low < routeTables.count, routeTables[low].number == table.number {
            routeTables[low] = table
        } else {
            routeTables.insert(table, at: low)
        }
    }
    /// Whether packets for a node's own address go into the WireGuard device, by the main table. (Wider networks are not
    /// looked at: a link of the node's own may go before them.)
    public func isRoutedByWireGuard(_ address: IPAddress) -> Bool {
        guard let device = wireGuard?.name else { return false }
        return routes(table: Rule.mainTable).contains {
            $0.destination == IPNetwork(host: address) && $0.kind == .device(device)
        }
    }

    public init() {}
}

/// Numbers that mark kernel objects as Culvert's own.
public enum Ownership {
    /// `rtm_protocol` of our routes, rules and next hops.
    public static let routeProtocol: UInt8 = 110
    public static let linkPrefix = "cni-culvert"
    public static let linkAlias = "culvert"
    public static let mainTunnel = "cni-culvert0"

    /// UDP port of echoes (RFC 5881, section 4).
    public static let echoPort: UInt16 = 3785
    /// Source port of echoes that the gateway is to translate, as proof that it does.
    public static let provingPort: UInt16 = 63488
    /// Priority of rules by which echoes get into their tunnel: before the local rule, which Cilium has moved to 100.
    public static let echoRulePriority: UInt32 = 99
    /// The table by which the echoes of one session are routed.
    public static func echoTable(_ session: UInt32) -> UInt32 { 42000 + session }
    /// The mark of its echoes. The bits of the upper half only: Cilium, kube-proxy and Tailscale look at lower ones.
    public static func echoMark(_ session: UInt32) -> UInt32 { (0x9000 + session) << 16 }
    public static let echoMarkMask: UInt32 = 0xFFFF_0000
    public static let mostEchoSessions: UInt32 = 0xFFF

    /// The device of tunnel number `number`, which is at least 1: `cni-culvert-1` to `-999`, then `-a00` to `-zzz` in base 36,
    /// because a device's name has at most 15 characters.
    public static func tunnelName(_ number: UInt32) -> String {
        guard number > 999 else { return "\(linkPrefix)-\(number)" }
        let index = Int(number - 1000)
        let digits = Array("0123456789abcdefghijklmnopqrstuvwxyz")
        let first = digits[10 + index / 1296 % 26]
        return "\(linkPrefix)-\(first)\(digits[index / 36 % 36])\(digits[index % 36])"
    }
    /// How many tunnels have a name.
    public static let mostTunnels: UInt32 = 999 + 26 * 36 * 36

    /// The number of a tunnel device; nil for any other name.
    public static func tunnelNumber(_ name: String) -> UInt32? {
        guard name.hasPrefix(linkPrefix + "-") else { return nil }
        let text = name.dropFirst(linkPrefix.utf8.count + 1)
        if let number = UInt32(text) { return (1...999).contains(number) ? number : nil }
        guard text.utf8.count == 3, let value = UInt32(text, radix: 36), value >= 10 * 1296 else { return nil }
        return value - 10 * 1296 + 1000
    }

    public static let wireGuardDevice = "cni-culvert-wg"
    /// For what comes out of a tunnel and was not let in by our firewall.
    public static let guardTable: UInt32 = 46998
    /// What a gateway receives from other locations for nodes of its own.
    public static let locationTable: UInt32 = 46999
    /// Metric of routes to pods of other locations: Cilium's own routes, at 0, go before them.
    public static let meshMetric: UInt32 = 110
    public static let firstTable: UInt32 = 47000
    public static let firstNextHop: UInt32 = 1_130_000_000
    public static let firewallTable = "culvert"
    /// Priority of rules by incoming tunnel.
    public static let tunnelRulePriority: UInt32 = 105
    /// Priority of rules by pod address.
    public static let podRulePriority: UInt32 = 106
    /// The same rule once more, with a lower priority: if another program deletes the first one, the pod still cannot
    /// leave without its gateway.
    public static let secondPodRulePriority: UInt32 = 107
    /// The bit of the firewall mark that only our own firewall table sets, on what it lets into a tunnel's receiving end.
    public static let acceptedMark: UInt32 = 0x10
    /// The bit of the firewall mark of a pod's replies to what came in from outside. Cilium keeps identities in the lower
    /// byte and the upper half, and its own signs in bits 8 to 11.
    public static let inboundMark: UInt32 = 0x1000
    /// Priority of the rule by which replies to what came in from outside leave as they came.
    public static let inboundRulePriority: UInt32 = 104
    /// Connection tracking keeps what comes out of a tunnel in a zone per egress identity: this one and those after it.
    public static let firstZone: UInt16 = 11000
    /// Set of the firewall: flows out of tunnels that began under a release without such zones, and go on without one.
    public static let flowsWithoutZone = "flows_without_zone"
    /// Metric of IPv6 routes that have none of their own (linux/ipv6_route.h, `IP6_RT_PRIO_USER`).
    public static let defaultMetricV6: UInt32 = 1024
    /// Metric of the `unreachable` backstops: above every metric that a route daemon would use.
    public static let backstopMetric: UInt32 = 4_278_198_272
    /// UDP ports (design.md, "Protocols").
    public static let fouIPIPPort: UInt16 = 5555
    public static let fouGREPort: UInt16 = 5556
    public static let vxlanPort: UInt16 = 8475
    /// Of the sending end of a VXLAN tunnel to self; nothing is ever sent to it.
    public static let vxlanSelfPort: UInt16 = 8476
}

/// A tunnel device.
public struct Link: Hashable, Sendable {
    public enum Kind: Hashable, Sendable {
        /// RFC 2003. `remote` nil: receives from every peer.
        case ipip(local: IPAddress, remote: IPAddress?, fouPort: UInt16?)
        /// RFC 2890 with a key in both directions.
        case gre(local: IPAddress, remote: IPAddress?, key: UInt32, fouPort: UInt16?)
        /// RFC 7348, learning off.
        case vxlan(local: IPAddress, vni: UInt32, port: UInt16, mac: MACAddress)
        /// Its keys and peers are a `WireGuardDevice`.
        case wireguard

        /// The name that `ip -d link` prints for it.
        public var name: String {
            switch self {
            case .ipip: "ipip"
            case .gre: "gre"
            case .vxlan: "vxlan"
            case .wireguard: "wireguard"
            }
        }
    }

    public let name: String
    public let kind: Kind
    /// Bytes of the largest inner IP packet that the device takes.
    public let mtu: Int
    /// The node's overlay address: a device without one loses packets to reverse-path filtering.
    public let address: IPAddress
    /// `net.ipv4.conf.<dev>.rp_filter` (2: loose).
    public let reversePathFilter: UInt32

    public init(name: String, kind: Kind, mtu: Int, address: IPAddress, reversePathFilter: UInt32 = 2) {
        self.name = name
        self.kind = kind
        self.mtu = mtu
        self.address = address
        self.reversePathFilter = reversePathFilter
    }
}

/// An Ethernet address.
public struct MACAddress: Hashable, Sendable, CustomStringConvertible {
    /// 48 bits, first byte highest.
    public let value: UInt64
    public init(_ value: UInt64) { self.value = value & 0xFFFF_FFFF_FFFF }
    public var bytes: [UInt8] { (0..<6).map { UInt8(truncatingIfNeeded: value >> (40 - 8 * UInt64($0))) } }
    public var description: String {
        bytes.map { byte in
            let text = String(byte, radix: 16)
            return text.utf8.count == 1 ? "0" + text : text
        }.joined(separator: ":")
    }
}

/// A next-hop object (`ip nexthop`).
public struct NextHop: Hashable, Sendable {
    public enum Target: Hashable, Sendable {
        case device(String)
        case via(IPAddress, device: String)
        case blackhole
        /// A group with one member.
        case group(UInt32)
        /// A resilient group of one bucket (Linux 5.13): everything goes to `used`; `named`, if there is one, only lends its
        /// device to the reverse-path check of the replies.
        case pair(used: UInt32, named: UInt32?)

        /// The next hops that it consists of.
        public var members: [UInt32] {
            switch self {
            case .device, .via, .blackhole: []
            case .group(let member): [member]
            case .pair(let used, let named): [used] + (named.map { [$0] } ?? [])
            }
        }
        /// The kernel turns none of these into another under one number.
        public enum Kind: Sendable { case single, group, resilientGroup }
        public var kind: Kind {
            switch self {
            case .device, .via, .blackhole: .single
            case .group: .group
            case .pair: .resilientGroup
            }
        }
    }
    public let id: UInt32
    public let target: Target
    public init(id: UInt32, target: Target) {
        self.id = id
        self.target = target
    }
}

/// A route of one of our tables.
public struct Route: Hashable, Sendable {
    public enum Kind: Hashable, Sendable {
        case nextHop(UInt32)
        case device(String)
        case via(IPAddress, device: String)
        case throwOn
        case unreachable
    }
    public let table: UInt32
    public let destination: IPNetwork
    public let kind: Kind
    public let metric: UInt32
    /// Preferred source address of what this host sends by it.
    public let source: IPAddress?
    public init(table: UInt32, destination: IPNetwork, kind: Kind, metric: UInt32 = 0, source: IPAddress? = nil) {
        self.source = source
        self.table = table
        self.destination = destination
        self.kind = kind
        self.metric = metric
    }

    /// The order of routes in a plan: by what the kernel allows only once.
    public static func isBefore(_ a: Route, _ b: Route) -> Bool {
        if a.table != b.table { return a.table < b.table }
        if a.destination != b.destination { return a.destination < b.destination }
        return a.metric < b.metric
    }

    /// The routes in that order. Most lists are: nothing is moved then. Otherwise their numbers are sorted, which are easier
    /// to move than thousands of routes.
    public static func inOrder(_ routes: [Route]) -> [Route] {
        if zip(routes, routes.dropFirst()).allSatisfy({ !isBefore($1, $0) }) { return routes }
        return routes.indices.sorted { isBefore(routes[$0], routes[$1]) }.map { routes[$0] }
    }
}

/// A policy-routing rule.
public struct Rule: Hashable, Sendable {
    /// Bits of a packet's firewall mark: the rule holds where `mark & mask == value`.
    public struct Mark: Hashable, Sendable {
        public let value: UInt32
        public let mask: UInt32
        public init(value: UInt32, mask: UInt32) {
            self.value = value
            self.mask = mask
        }
    }
    public enum Action: Hashable, Sendable {
        case lookup(UInt32)
        /// The packet is dropped, and its sender gets an ICMP error.
        case unreachable
    }
    public let priority: UInt32
    /// nil: from all.
    public let source: IPNetwork?
    public let incoming: String?
    public let mark: Mark?
    /// Destination port of UDP; nil: any packet.
    public let udpPort: UInt16?
    public let action: Action
    public static let mainTable: UInt32 = 254

    public init(
        priority: UInt32, source: IPNetwork? = nil, incoming: String? = nil, mark: Mark? = nil, udpPort: UInt16? = nil,
        action: Action
    ) {
        self.udpPort = udpPort
        self.priority = priority
        self.source = source
        self.incoming = incoming
        self.mark = mark
        self.action = action
    }
    public init(
        priority: UInt32, source: IPNetwork? = nil, incoming: String? = nil, mark: Mark? = nil, table: UInt32
    ) {
        self.init(priority: priority, source: source, incoming: incoming, mark: mark, action: .lookup(table))
    }

    /// The table that it looks up; nil where it decides itself.
    public var table: UInt32? { if case .lookup(let table) = action { table } else { nil } }
    public var family: IPAddress.Family { source?.family ?? .v4 }
    /// The rule without its action, as in `ip rule`.
    public var selector: String {
        (source.map { "from \($0.routeText)" } ?? "from all") + (incoming.map { " iif \($0)" } ?? "")
            + (mark.map {
                " fwmark 0x\(String($0.value, radix: 16))/0x\(String($0.mask, radix: 16))"
            } ?? "") + (udpPort.map { " ipproto udp dport \($0)" } ?? "")
    }

    /// The rules in order (`isBefore`). A node has two for each pod: what they differ by at first is compared as one number.
    public static func inOrder(_ rules: [Rule]) -> [Rule] {
        let keys = rules.map { rule -> UInt64 in
            let key = UInt64(rule.priority) << 34
            if rule.incoming != nil { return key | 1 << 33 }
            guard let source = rule.source else { return key }
            return key | 1 << 32 | (source.family == .v4 ? UInt64(source.address.v4Value) : 0xFFFF_FFFF)
        }
        return rules.indices.sorted { a, b in
            keys[a] != keys[b] ? keys[a] < keys[b] : isBefore(rules[a], rules[b])
        }.map { rules[$0] }
    }

    /// The order of rules in a plan: as the kernel asks them, and those of one priority by what they select.
    public static func isBefore(_ a: Rule, _ b: Rule) -> Bool {
        if a.priority != b.priority { return a.priority < b.priority }
        if a.incoming != b.incoming { return (a.incoming ?? "") < (b.incoming ?? "") }
        if a.source != b.source {
            guard let one = a.source else { return true }
            guard let other = b.source else { return false }
            return one < other
        }
        if a.mark != b.mark { return (a.mark?.value ?? 0) > (b.mark?.value ?? 0) }
        return (a.table ?? 0) < (b.table ?? 0)
    }
}

/// Where a peer is on a VXLAN device: a permanent neighbour and a forwarding entry.
public struct Neighbour: Hashable, Sendable {
    public let device: String
    public let peer: IPAddress
    public let mac: MACAddress
    /// Outer destination of the forwarding entry.
    public let remote: IPAddress
    /// VNI to send with, where it is not the device's own.
    public let vni: UInt32?
    /// UDP port to send to, where it is not the device's own.
    public let port: UInt16?
    public init(
        device: String, peer: IPAddress, mac: MACAddress, remote: IPAddress, vni: UInt32? = nil, port: UInt16? = nil
    ) {
        self.device = device
        self.peer = peer
        self.mac = mac
        self.remote = remote
        self.vni = vni
        self.port = port
    }
}

/// A UDP port that the kernel decapsulates (`ip fou`).
public struct FOUPort: Hashable, Sendable {
    public let port: UInt16
    /// IP protocol inside: 4 or 47.
    public let ipProtocol: UInt8
    public let local: IPAddress
    public init(port: UInt16, ipProtocol: UInt8, local: IPAddress) {
        self.port = port
        self.ipProtocol = ipProtocol
        self.local = local
    }
}

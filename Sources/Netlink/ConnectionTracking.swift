import CLinux
import CMnl
import Model

/// The kernel's connection tracking, by ctnetlink (linux/netfilter/nfnetlink_conntrack.h). Connections of IPv4 only. Not for use
/// by two threads at once.
public final class ConnectionTracking {
    private let socket: NetlinkSocket

    /// - Throws: where a netlink socket cannot be had.
    public init() throws { socket = try NetlinkSocket(bus: NETLINK_NETFILTER) }

    /// One connection, as far as it is looked at.
    private struct Connection {
        /// Who opened it.
        let source: IPAddress
        /// Who answers, and to whom: after translation.
        let answeredBy: IPAddress
        let answeredTo: IPAddress
        /// Zone of the direction in which it was opened; 0: the usual one.
        let zone: UInt16
        /// What names it in a request.
        let tuple: [UInt8]
        let zoneOfBoth: [UInt8]
        let id: [UInt8]

        /// One of these addresses has opened it or answers it.
        func isOf(_ addresses: Set<IPAddress>) -> Bool {
            addresses.contains(source) || addresses.contains(answeredBy)
        }
    }

    /// nfnetlink_conntrack.h: messages and attributes.
    private enum Message {
        static let subsystem: UInt16 = 1 << 8
        static let get = subsystem | 1
        static let delete = subsystem | 2
    }
    private enum Attribute {
        static let tupleOriginal = 1
        static let tupleReply = 2
        static let id = 12
        static let zone = 18
        static let filter = 25
        static let tupleAddresses = 1
        static let tupleProtocol = 2
        static let protocolNumber = 1
        static let protocolSourcePort = 2
        static let protocolDestinationPort = 3
        static let tupleZone = 3
        static let addressSource = 1
        static let addressDestination = 2
        static let filterOriginal = 1
        static let filterReply = 2
        /// `NLA_F_NESTED`
        static let nested = 0x8000
    }
    /// linux/netfilter/nfnetlink.h, `nfgenmsg`
    private struct Header: BitwiseCopyable {
        var family = UInt8(AF_INET)
        var version: UInt8 = 0
        var resource: UInt16 = 0
    }
    /// `CTA_FILTER_F_CTA_IP_SRC`, of libnetfilter_conntrack and net/netfilter/nf_conntrack_netlink.c
    private static let bySource: UInt32 = 1

    /// Which connections the kernel is to list. Linux before 5.8 lists all of them.
    private enum Filter {
        case all
        case openedBy(IPAddress)
        case answeredBy(IPAddress)
    }

    /// Forgets connections that one of these addresses has opened or answers, whatever they are translated to.
    ///
    /// - Returns: how many there were.
    @discardableResult
    public func forget(of addresses: Set<IPAddress>) throws -> Int {
        try forget(
            of: addresses,
            isFiltered: Self.isFilteredSooner(addresses: addresses.count, connections: count, buckets: buckets))
    }

    /// - Parameter isFiltered: the kernel looks for each address, rather than this program for all of them.
    func forget(of addresses: Set<IPAddress>, isFiltered: Bool) throws -> Int {
        let addresses = addresses.filter { $0.family == .v4 }
        if addresses.isEmpty { return 0 }
        var found: [Connection] = []
        if isFiltered {
            for address in addresses {
                found += try list(.openedBy(address)) { $0.source == address }
                found += try list(.answeredBy(address)) { $0.answeredBy == address && $0.source != address }
            }
        } else {
            found = try list(.all) { $0.isOf(addresses) }
        }
        try delete(found)
        return found.count
    }

    /// Whether it takes less time to have the kernel look for each address than to have all connections listed.
    ///
    /// The kernel goes through its whole table for each of the two lists of an address, but copies only what is wanted.
    ///
    /// - Parameters:
    ///   - connections: how many there are; nil: not known.
    ///   - buckets: of the kernel's table, which it goes through even where they are empty.
    static func isFilteredSooner(addresses: Int, connections: Int?, buckets: Int?) -> Bool {
        guard let connections, let buckets else { return addresses <= 8 }
        // Nanoseconds, as measured: a bucket, a connection that is passed over, one that is copied and read.
        let (bucket, passed, copied) = (8, 50, 3000)
        return 2 * addresses * (buckets * bucket + connections * passed) < buckets * bucket + connections * copied
    }

    /// Connections in this network namespace.
    private var count: Int? { Self.number("nf_conntrack_count") }
    private var buckets: Int? { Self.number("nf_conntrack_buckets") }

    private static func number(_ name: String) -> Int? {
        let file = culvert_open_read("/proc/sys/net/netfilter/\(name)")
        guard file >= 0 else { return nil }
        defer { close(file) }
        var bytes = [UInt8](repeating: 0, count: 32)
        let length = read(file, &bytes, bytes.count)
        guard length > 0 else { return nil }
        return Int(String(decoding: bytes[..<length].filter { $0 > 0x20 }, as: UTF8.self))
    }

    /// Forgets connections of our own zones that are translated to something else than is said here.
    ///
    /// - Parameter translations: the source address of each zone that is in use.
    /// - Returns: how many there were.
    @discardableResult
    public func forget(notTranslatedAs translations: [UInt16: IPAddress]) throws -> Int {
        // What was not translated ended on this node. And others may have zones of their own behind ours.
        let first = Ownership.firstZone
        let last = UInt16(clamping: UInt32(first) + Ownership.mostTunnels)
        let stale = try list(.all) {
            (first...last).contains($0.zone) && $0.answeredTo != $0.source && translations[$0.zone] != $0.answeredTo
        }
        try delete(stale)
        return stale.count
    }

    /// Connections of the usual zone whose source was translated, as keys of the firewall's sets of flows: source,
    /// destination, protocol, and both ports, each from a multiple of four bytes on. TCP and UDP only.
    ///
    /// - Parameter most: so many, and no more.
    public func translatedFlows(most: Int) throws -> [[UInt8]] {
        var flows: [[UInt8]] = []
        let request = NetlinkMessage(
            "conntrack -L", type: Message.get, flags: UInt16(NLM_F_DUMP), header: Header())
        try socket.dump(request, restart: flows.removeAll()) { reply in
            guard flows.count < most, let connection = Self.parse(reply), connection.zone == 0,
                connection.zoneOfBoth.isEmpty, connection.answeredTo != connection.source
            else { return }
            for attribute in reply.attributes(after: MemoryLayout<Header>.size)
            where attribute.type == Attribute.tupleOriginal {
                if let flow = Self.flow(attribute.nested) { flows.append(flow) }
            }
        }
        return flows
    }

    private static func flow(_ tuple: NetlinkAttributes) -> [UInt8]? {
        var addresses: [Int: [UInt8]] = [:]
        var ends: [Int: [UInt8]] = [:]
        for attribute in tuple {
            if attribute.type == Attribute.tupleAddresses {
                for part in attribute.nested { addresses[part.type] = part.bytes }
            } else if attribute.type == Attribute.tupleProtocol {
                for part in attribute.nested { ends[part.type] = part.bytes }
            }
        }
        guard let source = addresses[Attribute.addressSource],
            let destination = addresses[Attribute.addressDestination],
            let transport = ends[Attribute.protocolNumber], transport == [UInt8(IPPROTO_TCP)] || transport == [17],
            let from = ends[Attribute.protocolSourcePort], let to = ends[Attribute.protocolDestinationPort],
            source.count == 4, destination.count == 4, from.count == 2, to.count == 2
        else { return nil }
        return source + destination + transport + [0, 0, 0] + from + [0, 0] + to + [0, 0]
    }

    /// - Parameter isWanted: of what the kernel lists; there may be millions.
    private func list(_ filter: Filter, _ isWanted: (Connection) -> Bool = { _ in true }) throws -> [Connection] {
        do { return try dump(filter, isWanted) } catch let error as NetlinkError
            where error.code == EOPNOTSUPP || error.code == EINVAL
        {
            if case .all = filter { throw error }
            return try dump(.all, isWanted)
        }
    }

    private func dump(_ filter: Filter, _ isWanted: (Connection) -> Bool) throws -> [Connection] {
        var result: [Connection] = []
        let request = NetlinkMessage(
            "conntrack -L", type: Message.get, flags: UInt16(NLM_F_DUMP), header: Header()
        ) { attributes in
            func by(_ address: IPAddress, tuple: Int, flags: Int) {
                attributes.nested(tuple | Attribute.nested) {
                    $0.nested(Attribute.tupleAddresses | Attribute.nested) {
                        $0.address(Attribute.addressSource, address)
                    }
                }
                attributes.nested(Attribute.filter | Attribute.nested) {
                    $0.u32(Attribute.filterOriginal, flags == Attribute.filterOriginal ? Self.bySource : 0)
                    $0.u32(Attribute.filterReply, flags == Attribute.filterReply ? Self.bySource : 0)
                }
            }
            switch filter {
            case .all: break
            case .openedBy(let address):
                by(address, tuple: Attribute.tupleOriginal, flags: Attribute.filterOriginal)
            case .answeredBy(let address): by(address, tuple: Attribute.tupleReply, flags: Attribute.filterReply)
            }
        }
        // What changes while the kernel is listing is no matter: a list of connections always changes.
        try socket.dump(request, restart: result.removeAll()) { reply in
            if let connection = Self.parse(reply), isWanted(connection) { result.append(connection) }
        }
        return result
    }

    private static func parse(_ reply: NetlinkReply) -> Connection? {
        var original: Ends?
        var answer: Ends?
        var tuple: [UInt8] = []
        var zoneOfBoth: [UInt8] = []
        var id: [UInt8] = []
        for attribute in reply.attributes(after: MemoryLayout<Header>.size) {
            switch attribute.type {
            case Attribute.tupleOriginal:
                original = ends(attribute.nested)
                tuple = attribute.bytes
            case Attribute.tupleReply: answer = ends(attribute.nested)
            case Attribute.zone: zoneOfBoth = attribute.bytes
            case Attribute.id: id = attribute.bytes
            default: break
            }
        }
        guard let original, let answer else { return nil }
        return Connection(
            source: original.source, answeredBy: answer.source, answeredTo: answer.destination, zone: original.zone,
            tuple: tuple, zoneOfBoth: zoneOfBoth, id: id)
    }

    /// One direction of a connection.
    private typealias Ends = (source: IPAddress, destination: IPAddress, zone: UInt16)

    private static func ends(_ tuple: NetlinkAttributes) -> Ends? {
        var source: IPAddress?
        var destination: IPAddress?
        var zone: UInt16 = 0
        for attribute in tuple {
            switch attribute.type {
            case Attribute.tupleAddresses:
                for address in attribute.nested {
                    switch address.type {
                    case Attribute.addressSource: source = address.address
                    case Attribute.addressDestination: destination = address.address
                    default: break
                    }
                }
            case Attribute.tupleZone: zone = UInt16(bigEndian: attribute.u16)
            default: break
            }
        }
        guard let source, let destination, source.family == .v4 else { return nil }
        return (source, destination, zone)
    }

    private func delete(_ connections: [Connection]) throws {
        let requests = connections.map { connection in
            NetlinkMessage("conntrack -D", type: Message.delete, flags: 0, header: Header()) {
                $0.bytes(Attribute.tupleOriginal | Attribute.nested, connection.tuple)
                if !connection.zoneOfBoth.isEmpty { $0.bytes(Attribute.zone, connection.zoneOfBoth) }
                // Not another one that has come to have the same ends meanwhile.
                $0.bytes(Attribute.id, connection.id)
            }
        }
        for failure in try socket.execute(requests) where failure.error.code != ENOENT { throw failure.error }
    }
}

import CLinux
import Model

extension NetlinkSocket {
    /// `ip nexthop show`: ours, and the ids in our range that belong to somebody else.
    ///
    /// - Parameter names: device names by index.
    public func nextHops(names: [Int32: String]) throws -> (ours: [UInt32: NextHop], foreign: Set<UInt32>) {
        var ours: [UInt32: NextHop] = [:]
        var foreign: Set<UInt32> = []
        let request = NetlinkMessage(
            "ip nexthop show", type: UInt16(RTM_GETNEXTHOP), flags: UInt16(NLM_F_DUMP), header: nhmsg())
        func forget() {
            ours.removeAll()
            foreign.removeAll()
        }
        do {
            try dump(request, restart: forget()) { reply in
                guard let header = reply.fixed(nhmsg.self) else { return }
                var id: UInt32 = 0
                var device: String?
                var gateway: IPAddress?
                var blackhole = false
                var members: [UInt32] = []
                var isResilient = false
                for attribute in reply.attributes(after: MemoryLayout<nhmsg>.size) {
                    switch attribute.type {
                    case Int(NHA_ID): id = attribute.u32
                    case Int(NHA_OIF):
                        device = names[Int32(bitPattern: attribute.u32)] ?? "if\(attribute.u32)"
                    case Int(NHA_GATEWAY): gateway = attribute.address
                    case Int(NHA_BLACKHOLE): blackhole = true
                    case Int(NHA_GROUP_TYPE): isResilient = attribute.u16 == UInt16(NEXTHOP_GRP_TYPE_RES)
                    case Int(NHA_GROUP):
                        let bytes = attribute.bytes
                        for offset in stride(from: 0, to: bytes.count - 7, by: 8) {
                            members.append(
                                bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self) })
                        }
                    default: break
                    }
                }
                guard header.nh_protocol == Ownership.routeProtocol else {
                    foreign.insert(id)
                    return
                }
                let target: NextHop.Target =
                    blackhole
                    ? .blackhole
                    : !members.isEmpty
                        ? isResilient || members.count > 1
                            ? .pair(used: members[0], named: members.count > 1 ? members[1] : nil) : .group(members[0])
                        : gateway.map { .via($0, device: device ?? "") } ?? .device(device ?? "")
                ours[id] = NextHop(id: id, target: target)
            }
        } catch let error as NetlinkError where error.code == EOPNOTSUPP {
            throw NetlinkError(
                operation: "ip nexthop show", code: error.code,
                kernelMessage: "this kernel has no next-hop objects; Linux 5.3 or later is needed")
        }
        return (ours, foreign)
    }
}

public enum NextHopRequest {
    /// struct nexthop_grp: id, weight - 1, reserved.
    private static func member(_ id: UInt32, _ weight: UInt8) -> [UInt8] {
        withUnsafeBytes(of: id) { Array($0) } + [weight - 1, 0, 0, 0]
    }

    /// `ip nexthop add|replace id ID …`. `replace` keeps every route that names the id.
    public static func set(
        _ hop: NextHop, indexes: [String: Int32], replace: Bool, create: Bool = true
    ) -> NetlinkMessage {
        var header = nhmsg()
        header.nh_family = UInt8(AF_INET)
        header.nh_protocol = Ownership.routeProtocol
        var replace = replace
        if hop.target.kind != .single {
            header.nh_family = UInt8(AF_UNSPEC)
            // A group outlives its members, so it may be there already.
            replace = true
        }
        if case .via = hop.target { header.nh_flags = culvert_rtnh_onlink() }
        return NetlinkMessage(
            "ip nexthop \(replace ? "replace" : "add") id \(hop.id) \(hop.target.text)", type: UInt16(RTM_NEWNEXTHOP),
            flags: UInt16((create ? NLM_F_CREATE : 0) | (replace ? NLM_F_REPLACE : NLM_F_EXCL)), header: header
        ) { attributes in
            attributes.u32(NHA_ID, hop.id)
            switch hop.target {
            case .device(let name): attributes.u32(NHA_OIF, UInt32(indexes[name] ?? 0))
            case .via(let gateway, let name):
                attributes.address(NHA_GATEWAY, gateway)
                attributes.u32(NHA_OIF, UInt32(indexes[name] ?? 0))
            case .blackhole: attributes.flag(NHA_BLACKHOLE)
            case .group(let id): attributes.bytes(NHA_GROUP, member(id, 1))
            case .pair(let used, let named):
                // Of one bucket a weight of 255 to 1 leaves none over.
                attributes.bytes(NHA_GROUP, member(used, 255) + (named.map { member($0, 1) } ?? []))
                attributes.u16(NHA_GROUP_TYPE, UInt16(NEXTHOP_GRP_TYPE_RES))
                attributes.nested(NHA_RES_GROUP) { $0.u16(NHA_RES_GROUP_BUCKETS, 1) }
            }
        }
    }

    /// `ip nexthop replace id ID group …` of a group that is there. Makes none.
    public static func move(_ hop: NextHop) -> NetlinkMessage {
        set(hop, indexes: [:], replace: true, create: false)
    }

    /// `ip nexthop del id ID`, which takes the routes that name it along.
    public static func delete(_ id: UInt32) -> NetlinkMessage {
        NetlinkMessage("ip nexthop del id \(id)", type: UInt16(RTM_DELNEXTHOP), flags: 0, header: nhmsg()) {
            $0.u32(NHA_ID, id)
        }
    }
}

extension NextHop.Target {
    /// As in an `ip` command.
    public var text: String {
        switch self {
        case .device(let name): "dev \(name)"
        case .via(let gateway, let name): "via \(gateway) dev \(name) onlink"
        case .blackhole: "blackhole"
        case .group(let member): "group \(member)"
        case .pair(let used, let named):
            "group \(used)\(named.map { ",255/\($0)" } ?? "") type resilient buckets 1"
        }
    }
}

import CLinux
import Model

extension NetlinkSocket {
    /// `ip route show table all proto 110` of both families, in the kernel's order: by table and address.
    public func ownRoutes(names: [Int32: String]) throws -> [Route] {
        var all: [Route] = []
        for family in [AF_INET, AF_INET6] {
            var routes: [Route] = []
            var header = rtmsg()
            header.rtm_family = UInt8(family)
            header.rtm_protocol = Ownership.routeProtocol
            let request = NetlinkMessage(
                "ip \(family == AF_INET ? "-4" : "-6") route show table all proto \(Ownership.routeProtocol)",
                type: UInt16(RTM_GETROUTE), flags: UInt16(NLM_F_DUMP), header: header)
            do {
                try dump(request, restart: routes.removeAll()) { reply in
                    if let route = KernelRoute(reply, family: family),
                        route.routeProtocol == Ownership.routeProtocol, let ours = route.own(names: names)
                    {
                        routes.append(ours)
                    }
                }
            } catch let error as NetlinkError where error.code == ENOENT {
                // No table has such a route.
            } catch let error as NetlinkError
                where family == AF_INET6 && [EAFNOSUPPORT, EOPNOTSUPP].contains(error.code)
            {
                // This kernel has no IPv6.
            }
            all += routes
        }
        return all
    }

    /// `ip -4 route show table all`, everybody's (for defaults of other interfaces, and inside pods).
    public func allRoutesV4() throws -> [KernelRoute] {
        var routes: [KernelRoute] = []
        var header = rtmsg()
        header.rtm_family = UInt8(AF_INET)
        let request = NetlinkMessage(
            "ip -4 route show table all", type: UInt16(RTM_GETROUTE), flags: UInt16(NLM_F_DUMP), header: header)
        try dump(request, restart: routes.removeAll()) { reply in
            if let route = KernelRoute(reply) { routes.append(route) }
        }
        return routes
    }

    /// `ip -4 route show type unicast`: others' routes of the main table, and default routes of every table, without the rest
    /// of what may be very many routes. Those of devices that are down are left out.
    public func uplinkRoutesV4() throws -> [KernelRoute] {
        var routes: [KernelRoute] = []
        var header = rtmsg()
        header.rtm_family = UInt8(AF_INET)
        header.rtm_type = UInt8(RTN_UNICAST)
        let request = NetlinkMessage(
            "ip -4 route show table all type unicast", type: UInt16(RTM_GETROUTE), flags: UInt16(NLM_F_DUMP),
            header: header)
        try dump(request, restart: routes.removeAll()) { reply in
            // RTNH_F_DEAD and RTNH_F_LINKDOWN (linux/rtnetlink.h)
            if let route = KernelRoute(reply), Int(route.type) == RTN_UNICAST, route.flags & 0x11 == 0,
                route.destination.prefixLength == 0 || route.table == Rule.mainTable,
                route.routeProtocol != Ownership.routeProtocol
            {
                routes.append(route)
            }
        }
        return routes
    }
}

/// What the kernel says becomes of one packet.
public enum RouteLookup: Equatable, Sendable {
    case route(device: Int32, gateway: IPAddress?, table: UInt32)
    /// Nowhere: the error's number, e.g. `EHOSTUNREACH`.
    case refused(Int32)
}

extension NetlinkSocket {
    /// `ip route get DESTINATION from SOURCE iif DEVICE`: for a packet that comes in by a device and is forwarded.
    public func lookUp(_ destination: IPAddress, from source: IPAddress, incoming: Int32) throws -> RouteLookup {
        var header = rtmsg()
        header.rtm_family = UInt8(destination.family == .v4 ? AF_INET : AF_INET6)
        header.rtm_dst_len = UInt8(destination.family.bits)
        header.rtm_src_len = UInt8(destination.family.bits)
        // IPv6 tells the table unasked, and refuses the flag.
        if destination.family == .v4 { header.rtm_flags = UInt32(RTM_F_LOOKUP_TABLE) }
        var found: RouteLookup?
        let request = NetlinkMessage(
            "ip route get \(destination) from \(source) iif \(incoming)", type: UInt16(RTM_GETROUTE), flags: 0,
            header: header
        ) {
            $0.address(RTA_DST.rawValue, destination)
            $0.address(RTA_SRC.rawValue, source)
            $0.u32(RTA_IIF.rawValue, UInt32(incoming))
        }
        do {
            try get(request) { reply in
                var (device, gateway, table): (Int32, IPAddress?, UInt32) = (0, nil, 0)
                for attribute in reply.attributes(after: MemoryLayout<rtmsg>.size) {
                    switch attribute.type {
                    case Int(RTA_OIF.rawValue): device = Int32(bitPattern: attribute.u32)
                    case Int(RTA_GATEWAY.rawValue): gateway = attribute.address
                    case Int(RTA_TABLE.rawValue): table = attribute.u32
                    default: break
                    }
                }
                found = .route(device: device, gateway: gateway, table: table)
            }
        } catch let error as NetlinkError { return .refused(error.code) }
        return found ?? .refused(ENODATA)
    }
}

/// A route as the kernel has it.
public struct KernelRoute: Equatable, Sendable {
    public var table: UInt32 = 0
    public var destination: IPNetwork
    public var type: UInt8 = 0
    public var routeProtocol: UInt8 = 0
    public var scope: UInt8 = 0
    public var flags: UInt32 = 0
    public var metric: UInt32 = 0
    public var gateway: IPAddress?
    public var index: Int32 = 0
    public var nextHopID: UInt32 = 0
    /// It has several next hops of its own.
    public var isMultipath = false
    public var mtu: UInt32 = 0
    public var source: IPAddress?

    /// nil: of another family, or no route but an entry of the cache.
    public init?(_ reply: NetlinkReply, family: Int32 = AF_INET) {
        guard let header = reply.fixed(rtmsg.self), header.rtm_family == UInt8(family) else { return nil }
        // Exceptions of the route cache are no routes.
        if header.rtm_flags & UInt32(RTM_F_CLONED) != 0 { return nil }
        type = header.rtm_type
        routeProtocol = header.rtm_protocol
        scope = header.rtm_scope
        flags = header.rtm_flags
        table = UInt32(header.rtm_table)
        var address = family == AF_INET ? IPAddress(v4: 0) : IPAddress(family: .v6, high: 0, low: 0)
        for attribute in reply.attributes(after: MemoryLayout<rtmsg>.size) {
            switch attribute.type {
            case Int(RTA_DST.rawValue): address = attribute.address ?? address
            case Int(RTA_TABLE.rawValue): table = attribute.u32
            case Int(RTA_PRIORITY.rawValue): metric = attribute.u32
            case Int(RTA_GATEWAY.rawValue): gateway = attribute.address
            case Int(RTA_OIF.rawValue): index = Int32(bitPattern: attribute.u32)
            case Int(RTA_NH_ID.rawValue): nextHopID = attribute.u32
            case Int(RTA_MULTIPATH.rawValue): isMultipath = true
            case Int(RTA_PREFSRC.rawValue): source = attribute.address
            case Int(RTA_METRICS.rawValue):
                for entry in attribute.nested where entry.type == Int(RTAX_MTU) { mtu = entry.u32 }
            default: break
            }
        }
        destination = IPNetwork(address, prefixLength: Int(header.rtm_dst_len))
    }

    func own(names: [Int32: String]) -> Route? {
        let kind: Route.Kind
        switch Int(type) {
        case RTN_UNREACHABLE: kind = .unreachable
        case RTN_THROW: kind = .throwOn
        case RTN_UNICAST, RTN_BLACKHOLE:
            if nextHopID != 0 {
                kind = .nextHop(nextHopID)
            } else {
                let name = names[index] ?? "if\(index)"
                kind = gateway.map { .via($0, device: name) } ?? .device(name)
            }
        default: return nil
        }
        return Route(table: table, destination: destination, kind: kind, metric: metric, source: source)
    }
}

public enum RouteRequest {
    /// `ip route add …`
    public static func add(_ route: Route, indexes: [String: Int32]) -> NetlinkMessage {
        message("add", type: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_EXCL, route, indexes: indexes)
    }
    /// `ip route replace …`
    public static func replace(_ route: Route, indexes: [String: Int32]) -> NetlinkMessage {
        message("replace", type: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, route, indexes: indexes)
    }
    /// `ip route del …`
    public static func delete(_ route: Route, indexes: [String: Int32]) -> NetlinkMessage {
        message("del", type: RTM_DELROUTE, flags: 0, route, indexes: indexes)
    }

    private static func message(
        _ verb: String, type: Int, flags: Int32, _ route: Route, indexes: [String: Int32]
    ) -> NetlinkMessage {
        var header = rtmsg()
        header.rtm_family = UInt8(route.destination.family == .v4 ? AF_INET : AF_INET6)
        header.rtm_dst_len = UInt8(route.destination.prefixLength)
        header.rtm_protocol = Ownership.routeProtocol
        header.rtm_scope = UInt8(RT_SCOPE_UNIVERSE.rawValue)
        header.rtm_table = route.table < 256 ? UInt8(route.table) : UInt8(RT_TABLE_UNSPEC.rawValue)
        switch route.kind {
        case .throwOn: header.rtm_type = UInt8(RTN_THROW)
        case .unreachable: header.rtm_type = UInt8(RTN_UNREACHABLE)
        case .via:
            header.rtm_type = UInt8(RTN_UNICAST)
            header.rtm_flags = culvert_rtnh_onlink()
        case .device:
            header.rtm_type = UInt8(RTN_UNICAST)
            header.rtm_scope = UInt8(RT_SCOPE_LINK.rawValue)
        case .nextHop: header.rtm_type = UInt8(RTN_UNICAST)
        }
        if type == RTM_DELROUTE { header.rtm_scope = UInt8(RT_SCOPE_NOWHERE.rawValue) }
        return NetlinkMessage(
            route.command(verb), type: UInt16(type),
            flags: UInt16(flags), header: header, capacity: 256
        ) { attributes in
            if route.destination.prefixLength > 0 {
                attributes.address(RTA_DST.rawValue, route.destination.address)
            }
            attributes.u32(RTA_TABLE.rawValue, route.table)
            if route.metric != 0 { attributes.u32(RTA_PRIORITY.rawValue, route.metric) }
            if let source = route.source { attributes.address(RTA_PREFSRC.rawValue, source) }
            switch route.kind {
            case .nextHop(let id): attributes.u32(RTA_NH_ID.rawValue, id)
            case .device(let name): attributes.u32(RTA_OIF.rawValue, UInt32(indexes[name] ?? 0))
            case .via(let gateway, let name):
                attributes.address(RTA_GATEWAY.rawValue, gateway)
                attributes.u32(RTA_OIF.rawValue, UInt32(indexes[name] ?? 0))
            case .throwOn, .unreachable: break
            }
        }
    }
}

extension Route {
    /// The `ip` command with this verb.
    public func command(_ verb: String) -> String {
        let what =
            switch kind {
            case .nextHop(let id): "\(destination.routeText) nhid \(id)"
            case .device(let name): "\(destination.routeText) dev \(name)"
            case .via(let gateway, let name): "\(destination.routeText) via \(gateway) dev \(name) onlink"
            case .throwOn: "throw \(destination.routeText)"
            case .unreachable: "unreachable \(destination.routeText)"
            }
        return "ip \(destination.family == .v4 ? "" : "-6 ")route \(verb) \(what) table \(table)"
            + (metric == 0 ? "" : " metric \(metric)")
    }
}

import CLinux
import Model

/// A pod's network namespace, through the netlink socket that the plugin opened there and passed along.
public struct PodNetwork {
    private let socket: NetlinkSocket
    public init(adopting descriptor: Int32) throws { socket = try NetlinkSocket(adopting: descriptor) }

    /// A route that was put into the pod.
    public struct AddedRoute: Equatable, Sendable {
        public let destination: IPNetwork
        public let gateway: IPAddress?
        public let mtu: Int
    }

    /// The pod's interface, with the index of its peer on the host for a veth or netkit.
    public func interface(_ name: String) throws -> KernelLink? { try socket.link(named: name) }

    /// `ip -4 address show dev …`
    public func addresses(index: Int32) throws -> [IPAddress] {
        try socket.addressesV4().filter { $0.index == index }.map(\.address)
    }

    /// The pod's routes that carry our protocol number.
    public func ownRoutes() throws -> [KernelRoute] {
        try socket.allRoutesV4().filter { $0.routeProtocol == Ownership.routeProtocol }
    }

    /// Makes the routes with the smaller MTU exactly these: each a copy of the pod's own route for that destination
    /// (`ip route replace DESTINATION via … dev … mtu MTU`). A destination that the pod has a route of its own for,
    /// such as the default route, is covered by its two halves instead.
    public func setRoutes(_ wanted: [(destination: IPNetwork, mtu: Int)], interface index: Int32) throws -> [AddedRoute]
    {
        let existing = try socket.allRoutesV4()
        let theirs = existing.filter { $0.routeProtocol != Ownership.routeProtocol && $0.table == Rule.mainTable }
        var added: [AddedRoute] = []
        var messages: [NetlinkMessage] = []
        var keep: Set<IPNetwork> = []
        func add(_ destination: IPNetwork, mtu: Int) {
            if theirs.contains(where: { $0.destination == destination }) {
                if let (lower, upper) = destination.halves {
                    add(lower, mtu: mtu)
                    add(upper, mtu: mtu)
                }
                return
            }
            let cover = theirs.filter { $0.destination.contains(destination) && Int($0.type) == RTN_UNICAST }
                .max { $0.destination.prefixLength < $1.destination.prefixLength }
            guard let cover, cover.index == index, keep.insert(destination).inserted else { return }
            var header = rtmsg()
            header.rtm_family = UInt8(AF_INET)
            header.rtm_dst_len = UInt8(destination.prefixLength)
            header.rtm_protocol = Ownership.routeProtocol
            header.rtm_scope = cover.scope
            header.rtm_type = UInt8(RTN_UNICAST)
            header.rtm_table = UInt8(Rule.mainTable)
            header.rtm_flags = cover.flags & culvert_rtnh_onlink()
            messages.append(
                NetlinkMessage(
                    "ip -n pod route replace \(destination.routeText) mtu \(mtu)", type: UInt16(RTM_NEWROUTE),
                    flags: UInt16(NLM_F_CREATE | NLM_F_REPLACE), header: header, capacity: 256
                ) { attributes in
                    attributes.address(RTA_DST.rawValue, destination.address)
                    attributes.u32(RTA_OIF.rawValue, UInt32(index))
                    if let gateway = cover.gateway { attributes.address(RTA_GATEWAY.rawValue, gateway) }
                    if let source = cover.source { attributes.address(RTA_PREFSRC.rawValue, source) }
                    attributes.nested(RTA_METRICS.rawValue) { $0.u32(RTAX_MTU, UInt32(mtu)) }
                })
            added.append(AddedRoute(destination: destination, gateway: cover.gateway, mtu: mtu))
        }
        for (destination, mtu) in wanted { add(destination, mtu: mtu) }
        for stale in existing
        where stale.routeProtocol == Ownership.routeProtocol && !keep.contains(stale.destination) {
            messages.append(
                RouteRequest.delete(
                    Route(table: stale.table, destination: stale.destination, kind: .unreachable), indexes: [:]
                ).asUnicastDelete)
        }
        if let failure = try socket.execute(messages).first { throw failure.error }
        return added
    }
}

extension NetlinkMessage {
    /// `rtm_type` 0: whatever type it has.
    var asUnicastDelete: NetlinkMessage {
        var copy = self
        copy.clearRouteType()
        return copy
    }
    private mutating func clearRouteType() { setByte(at: 16 + 7, to: 0) }
}

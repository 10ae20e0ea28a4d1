import CLinux
import Model

/// Changes in the kernel that were made by others than this program.
public enum HostEvent: Hashable, Sendable {
    /// `RTM_DELLINK`: the host side of a pod, perhaps.
    case linkDeleted(index: Int32)
    /// Of ours, or of those that look like ours, something was changed.
    case ourLinks
    case ourNextHops
    case ourRoutes
    case ourRules
    case neighbours
    /// Addresses, devices, their forwarding, or default routes, which the local facts depend on.
    case facts
    /// Notifications were lost: everything has to be looked at.
    case overrun
}

/// Listens to routing netlink in this namespace.
public final class HostEvents {
    private let socket: NetlinkSocket
    private let ownPorts: Set<UInt32>
    /// Links that have had an address of the node: no pod's, even where the node's uplink is a veth (kind, LXC).
    private var ofTheNode: Set<Int32> = []

    /// - Parameter ownPorts: of sockets whose notifications are our own changes.
    public init(ownPorts: Set<UInt32>) throws {
        self.ownPorts = ownPorts
        socket = try NetlinkSocket(bus: NETLINK_ROUTE)
        // linux/rtnetlink.h: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_ROUTE, _IPV6_RULE,
        // _IPV4_NETCONF, _NEXTHOP
        for group: UInt32 in [1, 3, 5, 7, 8, 11, 19, 24, 32] { try socket.join(group: group) }
        _ = culvert_receive_timeout(socket.descriptor, 0)
        // A next hop that is switched is told once for each route that names it: thousands. Where the kernel does not take the
        // filter, they are sorted out one by one below.
        _ = culvert_netlink_ignore(socket.descriptor, Array(ownPorts), Int32(ownPorts.count))
        _ = culvert_receive_room(socket.descriptor, 8 << 20)
        ofTheNode = Set(try NetlinkSocket(bus: NETLINK_ROUTE).addressesV4().map(\.index))
    }

    /// Blocks until something happens.
    public func next() throws -> [HostEvent] {
        var events: [HostEvent] = []
        do {
            try socket.receive { reply in
                if let event = self.event(reply), !events.contains(event) { events.append(event) }
                return true
            }
        } catch let error as NetlinkError where error.code == ENOBUFS {
            return [.overrun]
        }
        return events
    }

    private func event(_ reply: NetlinkReply) -> HostEvent? {
        let isOurs = ownPorts.contains(reply.port)
        switch Int(reply.type) {
        case RTM_DELLINK:
            guard let link = KernelLink(reply) else { return nil }
            if link.name.hasPrefix(Ownership.linkPrefix) { return isOurs ? nil : .ourLinks }
            // A bridge says DELLINK for a port that only leaves it.
            guard let header = reply.fixed(ifinfomsg.self), header.ifi_family == 0 else { return nil }
            ofTheNode.remove(link.index)
            return link.isOfAPod ? .linkDeleted(index: link.index) : .facts
        case RTM_NEWLINK:
            guard !isOurs, let link = KernelLink(reply) else { return nil }
            if link.name.hasPrefix(Ownership.linkPrefix) { return .ourLinks }
            let isOfAPod = link.isOfAPod && !link.name.hasPrefix("cilium_") && !ofTheNode.contains(link.index)
            return isOfAPod ? nil : .facts
        case RTM_NEWADDR, RTM_DELADDR:
            guard !isOurs else { return nil }
            if let header = reply.fixed(ifaddrmsg.self) { ofTheNode.insert(Int32(header.ifa_index)) }
            let label = reply.attributes(after: MemoryLayout<ifaddrmsg>.size).first { $0.type == Int(IFA_LABEL) }?
                .string
            return label?.hasPrefix(Ownership.linkPrefix) == true ? .ourLinks : .facts
        case RTM_NEWROUTE, RTM_DELROUTE:
            guard !isOurs, let header = reply.fixed(rtmsg.self),
                let route = KernelRoute(reply, family: Int32(header.rtm_family))
            else { return nil }
            if route.routeProtocol == Ownership.routeProtocol { return .ourRoutes }
            // Of the two halves that VPNs use for a default, each counts. Whether a narrower one is a way out is looked at
            // every 30 s: there may be thousands, which come and go.
            return route.destination.address.family == .v4 && route.destination.prefixLength <= 1 ? .facts : nil
        case RTM_NEWNEXTHOP, RTM_DELNEXTHOP:
            guard !isOurs, let header = reply.fixed(nhmsg.self) else { return nil }
            return header.nh_protocol == Ownership.routeProtocol ? .ourNextHops : nil
        case RTM_NEWRULE, RTM_DELRULE:
            guard !isOurs, let header = reply.fixed(fib_rule_hdr.self) else { return nil }
            return Rule(reply, family: Int32(header.family)) == nil ? nil : .ourRules
        case RTM_NEWNETCONF:
            // The event of a new device contains all of its settings. The event of a changed forwarding setting
            // contains only that setting.
            let told = reply.attributes(after: MemoryLayout<netconfmsg>.size).map { UInt32($0.type) }
            return told.contains(UInt32(NETCONFA_FORWARDING)) && !told.contains(UInt32(NETCONFA_RP_FILTER))
                ? .facts : nil
        case RTM_DELNEIGH: return isOurs ? nil : .neighbours
        default: return nil
        }
    }
}

extension KernelLink {
    /// Of a kind that pods have, of which there are many.
    fileprivate var isOfAPod: Bool { kind == "veth" || kind == "netkit" }
}

import CLinux
import Model

/// What the kernel says has happened that is none of our own doing.
public enum HostEvent: Equatable, Sendable {
    /// `RTM_DELLINK`: the host side of a pod, perhaps.
    case linkDeleted(index: Int32)
    /// Something of ours, or something that the local facts depend on, may have changed.
    case drift
    /// Notifications were lost: everything has to be looked at.
    case overrun
}

/// Listens to routing netlink in this namespace.
public final class HostEvents {
    private let socket: NetlinkSocket
    private let ownPorts: Set<UInt32>

    /// - Parameter ownPorts: of sockets whose notifications are our own changes.
    public init(ownPorts: Set<UInt32>) throws {
        self.ownPorts = ownPorts
        socket = try NetlinkSocket(bus: NETLINK_ROUTE)
        // linux/rtnetlink.h: RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _NEXTHOP, _NEIGH
        for group: UInt32 in [1, 5, 7, 8, 32, 3] { try socket.join(group: group) }
        _ = culvert_receive_timeout(socket.descriptor, 0)
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
            if link.name.hasPrefix(Ownership.linkPrefix) { return isOurs ? nil : .drift }
            // A bridge says DELLINK for a port that only leaves it.
            guard let header = reply.fixed(ifinfomsg.self), header.ifi_family == 0 else { return nil }
            return .linkDeleted(index: link.index)
        case RTM_NEWLINK:
            guard !isOurs, let link = KernelLink(reply) else { return nil }
            return link.name.hasPrefix("cni-") || link.name.hasPrefix("cilium_") || link.kind.isEmpty ? .drift : nil
        case RTM_NEWADDR, RTM_DELADDR: return isOurs ? nil : .drift
        case RTM_NEWROUTE, RTM_DELROUTE:
            guard !isOurs, let route = KernelRoute(reply) else { return nil }
            return route.routeProtocol == Ownership.routeProtocol || route.destination.prefixLength == 0 ? .drift : nil
        case RTM_NEWNEXTHOP, RTM_DELNEXTHOP:
            guard !isOurs, let header = reply.fixed(nhmsg.self) else { return nil }
            return header.nh_protocol == Ownership.routeProtocol ? .drift : nil
        case RTM_NEWRULE, RTM_DELRULE: return isOurs ? nil : .drift
        case RTM_DELNEIGH: return isOurs ? nil : .drift
        default: return nil
        }
    }
}

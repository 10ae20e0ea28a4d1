import CLinux
import CNftnl
import Model
import Netlink

/// Listens to nftables: somebody else's transaction may have hit our table.
public final class FirewallEvents {
    private let socket: NetlinkSocket
    private let ownPorts: Set<UInt32>

    /// - Parameter ownPorts: of sockets whose transactions are our own.
    public init(ownPorts: Set<UInt32>) throws {
        self.ownPorts = ownPorts
        socket = try NetlinkSocket(bus: NETLINK_NETFILTER)
        try socket.join(group: 7)  // NFNLGRP_NFTABLES
        _ = culvert_receive_timeout(socket.descriptor, 0)
        // All of a transaction is told at once. Our own would leave no room, and the whole table would be read for it.
        _ = culvert_netlink_ignore(socket.descriptor, Array(ownPorts), Int32(ownPorts.count))
        _ = culvert_receive_room(socket.descriptor, 8 << 20)
    }

    /// Blocks until somebody's transaction; true when it was not ours and has touched our table.
    public func next() throws -> Bool {
        var foreign = false
        do {
            try socket.receive { reply in
                if !self.ownPorts.contains(reply.port) && self.isOfOurTable(reply) { foreign = true }
                return true
            }
        } catch let error as NetlinkError where error.code == ENOBUFS {
            return true
        }
        return foreign
    }

    /// Every message about a table, chain, rule, set or element has the table's name as its first attribute
    /// (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, … are all 1). Other messages (a new generation, trace) are about no table.
    private func isOfOurTable(_ reply: NetlinkReply) -> Bool {
        guard Int(reply.type >> 8) == Int(NFNL_SUBSYS_NFTABLES), Int(reply.type & 0xFF) != Int(NFT_MSG_NEWGEN.rawValue)
        else { return false }
        // struct nfgenmsg: family, version, resource id.
        return reply.attributes(after: 4).contains {
            $0.type == Int(NFTA_TABLE_NAME.rawValue) && $0.string == Ownership.firewallTable
        }
    }
}

extension FirewallSocket {
    /// The port that our own transactions are notified with.
    public var port: UInt32 { portOfSocket }
}

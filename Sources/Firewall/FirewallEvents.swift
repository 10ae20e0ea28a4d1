import CLinux
import Model
import Netlink

/// Listens to nftables: somebody else's transaction may have hit our table.
public final class FirewallEvents {
    private let socket: NetlinkSocket
    private let ownPort: UInt32

    public init(ownPort: UInt32) throws {
        self.ownPort = ownPort
        socket = try NetlinkSocket(bus: NETLINK_NETFILTER)
        try socket.join(group: 7)  // NFNLGRP_NFTABLES
        _ = culvert_receive_timeout(socket.descriptor, 0)
    }

    /// Blocks until a transaction that is not ours; true when one may have touched us.
    public func next() throws -> Bool {
        var foreign = false
        do {
            try socket.receive { reply in
                if reply.port != self.ownPort { foreign = true }
                return true
            }
        } catch let error as NetlinkError where error.code == ENOBUFS {
            return true
        }
        return foreign
    }
}

extension FirewallSocket {
    /// The port that our own transactions are notified with.
    public var port: UInt32 { portOfSocket }
}

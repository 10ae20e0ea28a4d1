import CLinux

/// Families of generic netlink (linux/genetlink.h).
public enum GenericNetlink {
    /// The number of a family; nil where the kernel has none of this name (and could not load it).
    public static func family(_ name: String, socket: NetlinkSocket) throws -> UInt16? {
        var found: UInt16?
        let header = genlmsghdr(cmd: UInt8(CTRL_CMD_GETFAMILY), version: 1, reserved: 0)
        let request = NetlinkMessage(
            "genl ctrl get name \(name)", type: UInt16(GENL_ID_CTRL), flags: 0, header: header
        ) { $0.string(CTRL_ATTR_FAMILY_NAME, name) }
        do {
            try socket.get(request) { reply in
                for attribute in reply.attributes(after: MemoryLayout<genlmsghdr>.size)
                where attribute.type == Int(CTRL_ATTR_FAMILY_ID) {
                    found = attribute.u16
                }
            }
        } catch let error as NetlinkError where error.code == ENOENT {
            return nil
        }
        return found
    }
}

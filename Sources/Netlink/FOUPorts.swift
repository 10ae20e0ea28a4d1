import CLinux
import Model

/// Generic netlink family `fou` (linux/fou.h).
public final class FOUSocket {
    private let socket: NetlinkSocket
    private var family: UInt16?

    public init() throws { socket = try NetlinkSocket(bus: NETLINK_GENERIC) }

    /// The family's number; nil where the kernel has no FOU (and could not load it).
    private func resolve() throws -> UInt16? {
        if let family { return family }
        family = try GenericNetlink.family("fou", socket: socket)
        return family
    }

    /// `ip fou show`, of the ports that could be ours. Empty where there is no FOU.
    public func ports() throws -> Set<FOUPort> {
        guard let family = try resolve() else { return [] }
        var ports: Set<FOUPort> = []
        let header = genlmsghdr(cmd: UInt8(FOU_CMD_GET), version: 1, reserved: 0)
        try socket.dump(
            NetlinkMessage("ip fou show", type: family, flags: UInt16(NLM_F_DUMP), header: header),
            restart: ports.removeAll()
        ) { reply in
            var port: UInt16 = 0
            var ipProtocol: UInt8 = 0
            var local = IPAddress(v4: 0)
            for attribute in reply.attributes(after: MemoryLayout<genlmsghdr>.size) {
                switch attribute.type {
                case Int(FOU_ATTR_PORT): port = UInt16(bigEndian: attribute.u16)
                case Int(FOU_ATTR_IPPROTO): ipProtocol = attribute.u8
                case Int(FOU_ATTR_LOCAL_V4): local = attribute.address ?? local
                default: break
                }
            }
            if port == Ownership.fouIPIPPort || port == Ownership.fouGREPort {
                ports.insert(FOUPort(port: port, ipProtocol: ipProtocol, local: local))
            }
        }
        return ports
    }

    /// `ip fou add port PORT ipproto PROTOCOL local ADDRESS`
    public func add(_ port: FOUPort) throws { try change(port, FOU_CMD_ADD, "add") }
    /// `ip fou del port PORT local ADDRESS`
    public func delete(_ port: FOUPort) throws { try change(port, FOU_CMD_DEL, "del") }

    private func change<Command: BinaryInteger>(_ port: FOUPort, _ command: Command, _ verb: String) throws {
        guard let family = try resolve() else {
            throw NetlinkError(
                operation: "ip fou add port \(port.port)", code: EOPNOTSUPP,
                kernelMessage: "this kernel has no FOU, and it cannot be loaded (modprobe fou)")
        }
        let header = genlmsghdr(cmd: UInt8(command), version: 1, reserved: 0)
        try socket.execute(
            NetlinkMessage("ip fou \(verb) port \(port.port)", type: family, flags: 0, header: header) {
                $0.u8(FOU_ATTR_AF, UInt8(AF_INET))
                $0.u16(FOU_ATTR_PORT, port.port.bigEndian)
                $0.u8(FOU_ATTR_IPPROTO, port.ipProtocol)
                $0.u8(FOU_ATTR_TYPE, UInt8(FOU_ENCAP_DIRECT))
                $0.address(FOU_ATTR_LOCAL_V4, port.local)
            })
    }
}

import CLinux
import Model

/// One half of a `Neighbour` as the kernel keeps it.
public enum KernelNeighbour: Hashable, Sendable {
    /// `ip neigh`: who has the address.
    case address(index: Int32, IPAddress, MACAddress)
    /// `bridge fdb`: where the MAC is.
    case forwarding(index: Int32, MACAddress, remote: IPAddress, vni: UInt32?, port: UInt16?)
}

extension Neighbour {
    /// Both halves, for a device of this index.
    public func halves(index: Int32) -> [KernelNeighbour] {
        [.address(index: index, peer, mac), .forwarding(index: index, mac, remote: remote, vni: vni, port: port)]
    }
}

extension NetlinkSocket {
    /// `ip neigh show` and `bridge fdb show`, permanent entries of these devices.
    public func neighbours(indexes: Set<Int32>) throws -> Set<KernelNeighbour> {
        var found: Set<KernelNeighbour> = []
        for family in [AF_INET, PF_BRIDGE] {
            var header = ndmsg()
            header.ndm_family = UInt8(family)
            let request = NetlinkMessage(
                family == AF_INET ? "ip neigh show" : "bridge fdb show", type: UInt16(RTM_GETNEIGH),
                flags: UInt16(NLM_F_DUMP), header: header)
            let before = found
            try dump(request, restart: found.formIntersection(before)) { reply in
                guard let header = reply.fixed(ndmsg.self), indexes.contains(header.ndm_ifindex),
                    header.ndm_state & UInt16(NUD_PERMANENT) != 0
                else { return }
                var destination: IPAddress?
                var mac = MACAddress(0)
                var vni: UInt32?
                var port: UInt16?
                for attribute in reply.attributes(after: MemoryLayout<ndmsg>.size) {
                    switch attribute.type {
                    case Int(NDA_DST): destination = attribute.address
                    case Int(NDA_LLADDR): mac = MACAddress(attribute.bytes.reduce(0) { $0 << 8 | UInt64($1) })
                    case Int(NDA_VNI): vni = attribute.u32
                    case Int(NDA_PORT): port = UInt16(bigEndian: attribute.u16)
                    default: break
                    }
                }
                guard let destination else { return }
                if family == AF_INET {
                    found.insert(.address(index: header.ndm_ifindex, destination, mac))
                } else {
                    found.insert(.forwarding(index: header.ndm_ifindex, mac, remote: destination, vni: vni, port: port))
                }
            }
        }
        return found
    }
}

public enum NeighbourRequest {
    public static func add(_ neighbour: KernelNeighbour) -> NetlinkMessage {
        message(neighbour, type: RTM_NEWNEIGH, flags: NLM_F_CREATE | NLM_F_REPLACE, verb: "replace")
    }
    public static func delete(_ neighbour: KernelNeighbour) -> NetlinkMessage {
        message(neighbour, type: RTM_DELNEIGH, flags: 0, verb: "del")
    }

    private static func message(_ neighbour: KernelNeighbour, type: Int, flags: Int32, verb: String) -> NetlinkMessage {
        var header = ndmsg()
        header.ndm_state = UInt16(NUD_PERMANENT)
        switch neighbour {
        case .address(let index, let address, let mac):
            // `ip neigh replace ADDRESS lladdr MAC dev INDEX nud permanent`
            header.ndm_family = UInt8(AF_INET)
            header.ndm_ifindex = index
            return NetlinkMessage(
                "ip neigh \(verb) \(address) lladdr \(mac) dev \(index)", type: UInt16(type), flags: UInt16(flags),
                header: header
            ) {
                $0.address(NDA_DST, address)
                $0.bytes(NDA_LLADDR, mac.bytes)
            }
        case .forwarding(let index, let mac, let remote, let vni, let port):
            // `bridge fdb replace MAC dev INDEX dst REMOTE vni VNI self permanent`
            header.ndm_family = UInt8(PF_BRIDGE)
            header.ndm_ifindex = index
            header.ndm_flags = UInt8(NTF_SELF)
            return NetlinkMessage(
                "bridge fdb \(verb) \(mac) dst \(remote) dev \(index)", type: UInt16(type), flags: UInt16(flags),
                header: header
            ) {
                $0.address(NDA_DST, remote)
                $0.bytes(NDA_LLADDR, mac.bytes)
                if let vni { $0.u32(NDA_VNI, vni) }
                if let port { $0.u16(NDA_PORT, port.bigEndian) }
            }
        }
    }
}

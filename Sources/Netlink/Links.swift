import CLinux
import Model

/// A link as the kernel has it.
public struct KernelLink: Equatable, Sendable {
    public var index: Int32 = 0
    public var name = ""
    public var isUp = false
    /// It is up, and what it is connected to is there.
    public var hasCarrier: Bool { isUp && carrier }
    var carrier = true
    /// There is only one other end on it, or none that is asked for by ARP: a route over it needs no next hop.
    public var isPointToPoint = false
    public var mtu = 0
    public var alias = ""
    public var kind = ""
    /// The tunnel, where the kind is one of ours and was understood.
    public var tunnel: Link.Kind?
    /// `rp_filter` and `forwarding` of the device; nil where not told.
    public var reversePathFilter: UInt32?
    public var forwarding: UInt32?
    /// Peer of a veth or netkit (`IFLA_LINK`), as seen from the namespace of the socket.
    public var peerIndex: Int32 = 0
    public var isInOtherNamespace = false
}

/// Numbers of `IPV4_DEVCONF_…` (linux/ip.h, which cannot be included beside netinet/ip.h).
private enum DeviceSetting {
    static let forwarding = 1
    static let reversePathFilter = 8
}

/// `IFLA_VXLAN_LOCALBYPASS` (linux/if_link.h of 6.5), which older headers lack.
private let vxlanLocalBypass = 31

/// linux/if_tunnel.h: flags of a GRE header in network order.
private let greKeyFlag: UInt16 = UInt16(0x2000).bigEndian

extension NetlinkSocket {
    /// `ip -d link show`
    public func links() throws -> [KernelLink] {
        var links: [Int32: KernelLink] = [:]
        let request = NetlinkMessage(
            "ip link show", type: UInt16(RTM_GETLINK), flags: UInt16(NLM_F_DUMP), header: ifinfomsg())
        try dump(request, restart: links.removeAll()) { reply in
            if let link = KernelLink(reply) { links[link.index] = link }
        }
        return links.values.sorted { $0.index < $1.index }
    }

    /// `ip link show dev NAME`, or nil.
    public func link(named name: String) throws -> KernelLink? {
        var found: KernelLink?
        let request = NetlinkMessage(
            "ip link show dev \(name)", type: UInt16(RTM_GETLINK), flags: 0, header: ifinfomsg()
        ) { $0.string(IFLA_IFNAME, name) }
        do { try get(request) { found = KernelLink($0) } } catch let error as NetlinkError where error.code == ENODEV {
            return nil
        }
        return found
    }
}

extension KernelLink {
    /// From `RTM_NEWLINK` or `RTM_DELLINK`.
    public init?(_ reply: NetlinkReply) {
        guard let header = reply.fixed(ifinfomsg.self) else { return nil }
        index = header.ifi_index
        isUp = header.ifi_flags & 1 != 0
        // IFF_POINTOPOINT and IFF_NOARP (linux/if.h)
        isPointToPoint = header.ifi_flags & 0x90 != 0
        for attribute in reply.attributes(after: MemoryLayout<ifinfomsg>.size) {
            switch UInt32(attribute.type) {
            case UInt32(IFLA_IFNAME): name = attribute.string
            case UInt32(IFLA_CARRIER): carrier = attribute.u8 != 0
            case UInt32(IFLA_MTU): mtu = Int(attribute.u32)
            case UInt32(IFLA_IFALIAS): alias = attribute.string
            case UInt32(IFLA_LINK): peerIndex = Int32(bitPattern: attribute.u32)
            case UInt32(IFLA_LINK_NETNSID): isInOtherNamespace = true
            case UInt32(IFLA_LINKINFO): readInfo(attribute.nested)
            case UInt32(IFLA_AF_SPEC):
                for family in attribute.nested where family.type == Int(AF_INET) {
                    for part in family.nested where part.type == Int(IFLA_INET_CONF) {
                        let bytes = part.bytes
                        func setting(_ number: Int) -> UInt32? {
                            let offset = (number - 1) * 4
                            guard bytes.count >= offset + 4 else { return nil }
                            return bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
                        }
                        reversePathFilter = setting(DeviceSetting.reversePathFilter)
                        forwarding = setting(DeviceSetting.forwarding)
                    }
                }
            default: break
            }
        }
    }

    /// Kinds, by the kernel's names, of which a device of ours may be.
    public static let possibleKinds: Set<String> = ["ipip", "gre", "vxlan", "wireguard", "tun"]

    private mutating func readInfo(_ info: NetlinkAttributes) {
        var data: NetlinkAttributes?
        for attribute in info {
            if attribute.type == Int(IFLA_INFO_KIND) { kind = attribute.string }
            if attribute.type == Int(IFLA_INFO_DATA) { data = attribute.nested }
        }
        // A program in user space that speaks WireGuard has a tun device.
        if kind == "wireguard" || kind == "tun" { tunnel = .wireguard }
        guard let data else { return }
        var values: [Int: NetlinkAttributes.Attribute] = [:]
        for attribute in data { values[attribute.type] = attribute }
        func address(_ type: Int) -> IPAddress? { values[type]?.address.flatMap { $0.low == 0 ? nil : $0 } }
        func big16(_ type: Int) -> UInt16? { values[type].map { UInt16(bigEndian: $0.u16) } }
        switch kind {
        case "ipip":
            guard let local = address(Int(IFLA_IPTUN_LOCAL)) else { return }
            let fou = values[Int(IFLA_IPTUN_ENCAP_TYPE)]?.u16 == UInt16(TUNNEL_ENCAP_FOU.rawValue)
            tunnel = .ipip(
                local: local, remote: address(Int(IFLA_IPTUN_REMOTE)),
                fouPort: fou ? big16(Int(IFLA_IPTUN_ENCAP_DPORT)) : nil)
        case "gre":
            guard let local = address(Int(IFLA_GRE_LOCAL)), let key = values[Int(IFLA_GRE_IKEY)] else {
                return
            }
            let fou = values[Int(IFLA_GRE_ENCAP_TYPE)]?.u16 == UInt16(TUNNEL_ENCAP_FOU.rawValue)
            tunnel = .gre(
                local: local, remote: address(Int(IFLA_GRE_REMOTE)), key: UInt32(bigEndian: key.u32),
                fouPort: fou ? big16(Int(IFLA_GRE_ENCAP_DPORT)) : nil)
        case "vxlan":
            guard let local = address(Int(IFLA_VXLAN_LOCAL)), let id = values[Int(IFLA_VXLAN_ID)] else { return }
            // The MAC is not told by the tunnel's own attributes; it follows from the local address.
            tunnel = .vxlan(
                local: local, vni: id.u32, port: big16(Int(IFLA_VXLAN_PORT)) ?? 0, mac: MACAddress(0))
        default: break
        }
    }
}

/// What the kernel is asked for a link. Every operation's first line is the command that it stands for.
public enum LinkRequest {
    /// `ip link add NAME mtu MTU alias culvert type KIND …`, down.
    public static func add(_ link: Link) -> NetlinkMessage {
        NetlinkMessage(
            "ip link add \(link.name) type \(link.kind.name)", type: UInt16(RTM_NEWLINK),
            flags: UInt16(NLM_F_CREATE | NLM_F_EXCL), header: ifinfomsg()
        ) { attributes in
            attributes.string(IFLA_IFNAME, link.name)
            attributes.u32(IFLA_MTU, UInt32(link.mtu))
            if let mac = link.kind.macAddress { attributes.bytes(IFLA_ADDRESS, mac.bytes) }
            attributes.nested(IFLA_LINKINFO) { info in
                info.string(IFLA_INFO_KIND, link.kind.name)
                info.nested(IFLA_INFO_DATA) { put(link.kind, $0) }
            }
        }
    }

    private static func put(_ kind: Link.Kind, _ data: NetlinkMessage.Attributes) {
        switch kind {
        case .ipip(let local, let remote, let fou):
            data.address(IFLA_IPTUN_LOCAL, local)
            if let remote { data.address(IFLA_IPTUN_REMOTE, remote) }
            data.u8(IFLA_IPTUN_PMTUDISC, 1)
            if let fou {
                data.u16(IFLA_IPTUN_ENCAP_TYPE, UInt16(TUNNEL_ENCAP_FOU.rawValue))
                data.u16(IFLA_IPTUN_ENCAP_SPORT, 0)
                data.u16(IFLA_IPTUN_ENCAP_DPORT, fou.bigEndian)
            }
        case .gre(let local, let remote, let key, let fou):
            data.address(IFLA_GRE_LOCAL, local)
            if let remote { data.address(IFLA_GRE_REMOTE, remote) }
            data.u16(IFLA_GRE_IFLAGS, greKeyFlag)
            data.u16(IFLA_GRE_OFLAGS, greKeyFlag)
            data.u32(IFLA_GRE_IKEY, key.bigEndian)
            data.u32(IFLA_GRE_OKEY, key.bigEndian)
            data.u8(IFLA_GRE_PMTUDISC, 1)
            if let fou {
                data.u16(IFLA_GRE_ENCAP_TYPE, UInt16(TUNNEL_ENCAP_FOU.rawValue))
                data.u16(IFLA_GRE_ENCAP_SPORT, 0)
                data.u16(IFLA_GRE_ENCAP_DPORT, fou.bigEndian)
            }
        case .wireguard: break
        case .vxlan(let local, let vni, let port, _):
            data.u32(IFLA_VXLAN_ID, vni)
            data.address(IFLA_VXLAN_LOCAL, local)
            data.u16(IFLA_VXLAN_PORT, port.bigEndian)
            data.u8(IFLA_VXLAN_LEARNING, 0)
            // Between two devices of one host the kernel takes a short cut, on which a packet keeps its route and loops.
            // Linux 6.5 and later can leave it out; earlier ones ignore the attribute.
            if port == Ownership.vxlanSelfPort { data.u8(vxlanLocalBypass, 0) }
            // The outer checksum is the overlay's business.
            data.u8(IFLA_VXLAN_UDP_CSUM, 0)
        }
    }

    /// `ip link set dev NAME mtu MTU alias culvert up` with `rp_filter` and `forwarding` of the device.
    ///
    /// - Parameter hasIPv6: false where the kernel has refused the settings of IPv6 before.
    public static func configure(_ link: Link, index: Int32, hasIPv6: Bool = true) -> NetlinkMessage {
        var header = ifinfomsg()
        header.ifi_index = index
        header.ifi_flags = 1  // IFF_UP
        header.ifi_change = 1
        return NetlinkMessage("ip link set dev \(link.name) up", type: UInt16(RTM_NEWLINK), flags: 0, header: header) {
            attributes in
            attributes.u32(IFLA_MTU, UInt32(link.mtu))
            attributes.string(IFLA_IFALIAS, Ownership.linkAlias)
            attributes.nested(IFLA_AF_SPEC) { families in
                families.nested(AF_INET) { inet in
                    inet.nested(IFLA_INET_CONF) { settings in
                        settings.u32(DeviceSetting.forwarding, 1)
                        settings.u32(DeviceSetting.reversePathFilter, link.reversePathFilter)
                    }
                }
                // No link-local address, no router solicitations (IN6_ADDR_GEN_MODE_NONE). A link with an MTU below IPv6's
                // least has no IPv6, and refuses its settings (EAFNOSUPPORT); so does a kernel without IPv6.
                if hasIPv6 && link.mtu >= 1280 {
                    families.nested(AF_INET6) { $0.u8(IFLA_INET6_ADDR_GEN_MODE, 1) }
                }
            }
        }
    }

    /// `ip link set dev NAME down`
    static func setDown(index: Int32, name: String) -> NetlinkMessage {
        var header = ifinfomsg()
        header.ifi_index = index
        header.ifi_change = 1  // IFF_UP
        return NetlinkMessage("ip link set dev \(name) down", type: UInt16(RTM_NEWLINK), flags: 0, header: header)
    }

    /// `ip link del dev NAME`
    public static func delete(index: Int32, name: String) -> NetlinkMessage {
        var header = ifinfomsg()
        header.ifi_index = index
        return NetlinkMessage("ip link del dev \(name)", type: UInt16(RTM_DELLINK), flags: 0, header: header)
    }
}

extension NetlinkSocket {
    /// `ip link show` by index, or nil.
    public func link(index: Int32) throws -> KernelLink? {
        var found: KernelLink?
        var header = ifinfomsg()
        header.ifi_index = index
        let request = NetlinkMessage("ip link show index \(index)", type: UInt16(RTM_GETLINK), flags: 0, header: header)
        do { try get(request) { found = KernelLink($0) } } catch let error as NetlinkError where error.code == ENODEV {
            return nil
        }
        return found
    }
}

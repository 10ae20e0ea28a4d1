/// What the kinds of tunnel device have in common.
extension Link.Kind {
    /// This node's end of the tunnel; nil for WireGuard, whose device has none.
    public var localAddress: IPAddress? {
        switch self {
        case .ipip(let local, _, _), .gre(let local, _, _, _), .vxlan(let local, _, _, _): local
        case .wireguard: nil
        }
    }

    /// The UDP port that it sends to through FOU; nil: it does not use FOU.
    public var fouPort: UInt16? {
        switch self {
        case .ipip(_, _, let port), .gre(_, _, _, let port): port
        case .vxlan, .wireguard: nil
        }
    }

    /// The address of an Ethernet device, which finds its peers by neighbour entries; nil: it has no Ethernet header.
    public var macAddress: MACAddress? {
        switch self {
        case .vxlan(_, _, _, let mac): mac
        case .ipip, .gre, .wireguard: nil
        }
    }

    /// Whether two devices are alike but for their MAC addresses, which are not among the attributes of a tunnel.
    public func equalsIgnoringMACAddress(_ other: Link.Kind?) -> Bool {
        if case .vxlan(let local, let vni, let port, _) = self,
            case .vxlan(let otherLocal, let otherVNI, let otherPort, _)? = other
        {
            return (local, vni, port) == (otherLocal, otherVNI, otherPort)
        }
        return self == other
    }
}

import Model

/// VXLAN (RFC 7348): one Ethernet device for each identity, which sends to all peers and receives from them. Peers are
/// found by permanent neighbour and forwarding entries.
struct VXLANEncapsulation: Encapsulation {
    var name: Configuration.TunnelProtocol { .vxlan }
    var kernelModules: [String] { ["vxlan"] }

    /// The VNI: the key folded by exclusive or to 23 bits, and 1 instead of 0, because a forwarding entry takes VNI 0 for
    /// "the device's own" (drivers/net/vxlan: `rdst->remote_vni ? : default_vni`).
    func wireKey(of identity: EgressIdentity) -> UInt32 {
        max(1, (identity.key >> 23) ^ (identity.key & 0x7F_FFFF))
    }
    /// The highest bit of a VNI marks the sending device of a node's tunnel to itself.
    private static let selfVNIBit: UInt32 = 0x80_0000

    /// IPv4 20, UDP 8, VXLAN 8 and Ethernet 14 bytes.
    func overhead(of identity: EgressIdentity) -> Int { 50 }
    /// An Ethernet device's MTU is compared with the packet as it is.
    var ebpfAllowance: Int { 0 }

    // A VXLAN frame whose source MAC is the receiving device's own is dropped, so the way to self needs a second device.
    // Its forwarding entry sends with the receiver's VNI and to the receiver's port.

    func senderKey(_ path: TunnelPath) -> String {
        path.isToSelf ? "vxlan/\(path.identity.key)>self" : receiverKey(path.identity)
    }
    func receiverKey(_ identity: EgressIdentity) -> String { "vxlan/\(identity.key)" }
    func numberedKeys(_ path: TunnelPath) -> [String] {
        path.isToSelf ? [senderKey(path), receiverKey(path.identity)] : [senderKey(path)]
    }

    func sender(_ path: TunnelPath) -> Link.Kind {
        guard path.isToSelf else { return receiver(local: path.local, path.identity) }
        return .vxlan(
            local: path.local, vni: wireKey(of: path.identity) | VXLANEncapsulation.selfVNIBit,
            port: Ownership.vxlanSelfPort, mac: VXLANEncapsulation.mac(path.local, ofSelfSender: true))
    }
    func receiver(local: IPAddress, _ identity: EgressIdentity) -> Link.Kind {
        .vxlan(
            local: local, vni: wireKey(of: identity), port: Ownership.vxlanPort, mac: VXLANEncapsulation.mac(local))
    }

    /// Gateway address on a tunnel to self: a route's gateway may not be one of the node's own addresses, and this one
    /// exists only as a permanent neighbour entry.
    static let selfGateway = IPAddress(v4: 0xA9FE_2F01)

    func nextHop(_ path: TunnelPath, device: String) -> NextHop.Target {
        .via(path.isToSelf ? VXLANEncapsulation.selfGateway : path.gateway, device: device)
    }

    func neighbour(_ path: TunnelPath, device: String) -> Neighbour? {
        Neighbour(
            device: device, peer: path.isToSelf ? VXLANEncapsulation.selfGateway : path.gateway,
            mac: VXLANEncapsulation.mac(path.gateway), remote: path.gateway,
            vni: path.isToSelf ? wireKey(of: path.identity) : nil, port: path.isToSelf ? Ownership.vxlanPort : nil)
    }

    /// A locally administered MAC address that every node can work out: 02:c7 and the overlay address; 06:c7 for the
    /// sending device of a tunnel to self.
    private static func mac(_ address: IPAddress, ofSelfSender: Bool = false) -> MACAddress {
        MACAddress((ofSelfSender ? 0x06C7 : 0x02C7) << 32 | UInt64(address.v4Value))
    }

    var envelopes: [TunnelEnvelope] {
        [
            // UDP 8, VXLAN 8, Ethernet 14 bytes; the type field is the last two of them.
            TunnelEnvelope(
                name: "vxlan", match: TunnelEnvelope.udp(Ownership.vxlanPort),
                wellFormed: [.match(.transport(offset: (8 + 8 + 12) * 8, bits: 16), 0x0800, negated: false)],
                innerSource: .transport(offset: (8 + 8 + 14 + 12) * 8, bits: 32), carries: { _ in true }),
            // No node sends to the port of the sending device of a tunnel to self.
            TunnelEnvelope(
                name: "vxlan to self", match: TunnelEnvelope.udp(Ownership.vxlanSelfPort), wellFormed: [],
                innerSource: .sourceAddress, carries: { _ in false }),
        ]
    }
}

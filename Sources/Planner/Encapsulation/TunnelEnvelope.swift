import Model

/// One kind of tunnel packet as the gateway's input hook sees it, with both headers.
struct TunnelEnvelope: Sendable {
    /// Begins the comment of its rules, by which their counters are shown.
    let name: String
    /// Tells packets of this kind from all others.
    let match: [FirewallStatement]
    /// What a good packet has besides.
    let wellFormed: [FirewallStatement]
    /// Where the inner IPv4 source is.
    let innerSource: PacketField
    /// Whether packets of an identity come in this envelope.
    let carries: @Sendable (EgressIdentity) -> Bool

    /// Whether any such packet is let in.
    ///
    /// - Parameter identities: those that this node receives; a member of a mesh receives the default one.
    func isOpen(receiving identities: [EgressIdentity]) -> Bool { identities.contains(where: carries) }

    // MARK: parts

    /// By the IPv4 header's field: nft 1.0.6 aborts when it lists `meta l4proto 4` before a raw match in a concatenation.
    static func ipProtocol(_ number: UInt32) -> [FirewallStatement] { [.match(.ipProtocol, number, negated: false)] }

    static func udp(_ port: UInt16) -> [FirewallStatement] {
        [.match(.layer4Protocol, 17, negated: false), .match(.udpDestinationPort, UInt32(port), negated: false)]
    }

    /// IPv4 in IPv4 (RFC 2003), which carries the default identity.
    ///
    /// - Parameter offset: where the inner header begins, in bits from the transport header.
    static func ipip(_ match: [FirewallStatement], offset: Int) -> TunnelEnvelope {
        TunnelEnvelope(
            name: "ipip", match: match, wellFormed: [], innerSource: .transport(offset: offset + 96, bits: 32),
            carries: { $0 == .defaultAddress })
    }

    /// GRE with nothing but a key (RFC 2890) that this gateway knows, and IPv4 inside. It carries all other identities.
    ///
    /// - Parameter offset: where the GRE header begins, in bits from the transport header.
    static func gre(_ match: [FirewallStatement], offset: Int) -> TunnelEnvelope {
        TunnelEnvelope(
            name: "gre", match: match,
            wellFormed: [
                .match(.transport(offset: offset, bits: 32), 0x2000_0800, negated: false),
                .lookup([.transport(offset: offset + 32, bits: 32)], set: "egress_keys", negated: false),
            ],
            innerSource: .transport(offset: offset + 64 + 96, bits: 32), carries: { $0 != .defaultAddress })
    }
}

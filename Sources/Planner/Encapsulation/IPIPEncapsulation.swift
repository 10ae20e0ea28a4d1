import Model

/// IPIP (RFC 2003) for the default identity, GRE with a key (RFC 2784 and 2890) for every other.
struct IPIPEncapsulation: Encapsulation {
    var name: Configuration.TunnelProtocol { .ipip }
    var kernelModules: [String] { ["ipip", "ip_gre"] }

    /// An IPv4 header of 20 bytes; GRE adds 4 bytes and the key 4.
    func overhead(of identity: EgressIdentity) -> Int { identity == .defaultAddress ? 20 : 28 }

    func senderKey(_ path: TunnelPath) -> String { "\(path.identity.key)>\(path.gateway)" }
    func receiverKey(_ identity: EgressIdentity) -> String { "\(identity.key)" }

    func sender(_ path: TunnelPath) -> Link.Kind { device(local: path.local, remote: path.gateway, path.identity) }
    func receiver(local: IPAddress, _ identity: EgressIdentity) -> Link.Kind {
        device(local: local, remote: nil, identity)
    }
    private func device(local: IPAddress, remote: IPAddress?, _ identity: EgressIdentity) -> Link.Kind {
        identity == .defaultAddress
            ? .ipip(local: local, remote: remote, fouPort: nil)
            : .gre(local: local, remote: remote, key: identity.key, fouPort: nil)
    }

    var envelopes: [TunnelEnvelope] {
        [.ipip(TunnelEnvelope.ipProtocol(4), offset: 0), .gre(TunnelEnvelope.ipProtocol(47), offset: 0)]
    }
}

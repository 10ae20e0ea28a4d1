import Model

/// The tunnels of `IPIPEncapsulation` in UDP (ip-fou(8)), each kind at a port of its own.
struct FOUEncapsulation: Encapsulation {
    private let inner = IPIPEncapsulation()
    private static let udpHeaderBytes = 8

    var name: Configuration.TunnelProtocol { .fou }
    var kernelModules: [String] { inner.kernelModules + ["fou"] }

    func overhead(of identity: EgressIdentity) -> Int {
        inner.overhead(of: identity) + FOUEncapsulation.udpHeaderBytes
    }

    func senderKey(_ path: TunnelPath) -> String { inner.senderKey(path) }
    func receiverKey(_ identity: EgressIdentity) -> String { inner.receiverKey(identity) }

    func sender(_ path: TunnelPath) -> Link.Kind { device(local: path.local, remote: path.gateway, path.identity) }
    func receiver(local: IPAddress, _ identity: EgressIdentity) -> Link.Kind {
        device(local: local, remote: nil, identity)
    }
    private func device(local: IPAddress, remote: IPAddress?, _ identity: EgressIdentity) -> Link.Kind {
        identity == .defaultAddress
            ? .ipip(local: local, remote: remote, fouPort: Ownership.fouIPIPPort)
            : .gre(local: local, remote: remote, key: identity.key, fouPort: Ownership.fouGREPort)
    }

    func fouPorts(local: IPAddress) -> [FOUPort] {
        [
            FOUPort(port: Ownership.fouIPIPPort, ipProtocol: 4, local: local),
            FOUPort(port: Ownership.fouGREPort, ipProtocol: 47, local: local),
        ]
    }

    var envelopes: [TunnelEnvelope] {
        let offset = FOUEncapsulation.udpHeaderBytes * 8
        return [
            .ipip(TunnelEnvelope.udp(Ownership.fouIPIPPort), offset: offset),
            .gre(TunnelEnvelope.udp(Ownership.fouGREPort), offset: offset),
        ]
    }
}

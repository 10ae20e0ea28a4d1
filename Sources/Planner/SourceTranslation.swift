import Model

/// With which source address packets leave this node, by the tunnel that they came out of.
enum SourceTranslation {
    /// Before Cilium's own translation (`srcnat`).
    static let priority: Int32 = 100 - 10

    static func chain(tunnels: TunnelLinks?, serving: [GatewayEgress], mesh: MeshPlan?) -> FirewallChain {
        FirewallChain(
            name: "postrouting", kind: .nat, hook: .postrouting, priority: priority,
            rules: devices(tunnels, serving).flatMap { tunnels, device, address -> [FirewallRule] in
                // Among `remote_pods` may be the addresses that echoes go back to.
                let echoes = mesh == nil ? [] : [EchoFirewall.translation(device, address)]
                return echoes + [
                    FirewallRule(leaving(device, local: tunnels.local, mesh: mesh != nil) + [.snat(address)])
                ]
            } + (mesh?.locationTranslation ?? []))
    }

    /// After all translation: what leaves with another source address than the one that it should have got does not leave. This
    /// is what connection tracking calls invalid (a lone RST, FIN, or SYN and ACK), what somebody has exempted from it, and
    /// what is part of a connection that was opened with an address that is not the egress address any more.
    static let checkPriority: Int32 = 300

    static func checkChain(tunnels: TunnelLinks?, serving: [GatewayEgress], mesh: Bool) -> FirewallChain {
        let ends = devices(tunnels, serving)
        return FirewallChain(
            name: "leaving", kind: .filter, hook: .postrouting, priority: checkPriority,
            rules: (ends.isEmpty ? [] : [EchoFirewall.onItsWayBack])
                + ends.map { tunnels, device, address in
                    FirewallRule(
                        leaving(device, local: tunnels.local, mesh: mesh) + [
                            .match(.sourceAddress, address.v4Value, negated: true), .counter, .drop,
                        ], comment: "egress: not translated, \(device)")
                }
                + devicesOfTheMeshOnly(tunnels, serving, mesh: mesh).map { local, device in
                    FirewallRule(
                        leaving(device, local: local, mesh: true) + [.counter, .drop],
                        comment: "egress: not a gateway, \(device)")
                })
    }

    /// A member of a mesh receives by the devices of the default identity whether it is somebody's gateway or not. Where it is
    /// none, what comes out of them ends here. (A source may not know yet that it is a gateway no more.)
    private static func devicesOfTheMeshOnly(
        _ tunnels: TunnelLinks?, _ serving: [GatewayEgress], mesh: Bool
    ) -> [(local: IPAddress, device: String)] {
        guard mesh, let tunnels, !serving.contains(where: { $0.identity == .defaultAddress }) else { return [] }
        return tunnels.devices(of: .defaultAddress).map { (tunnels.local, $0) }
    }

    /// Before connection tracking: what comes out of a tunnel is kept apart by egress identity, so that a pod that gets another
    /// policy, or an address that gets another pod, never goes on with a translation of before. (What the mesh brings for pods
    /// here comes with the default identity: there its connections stay where those that they answer are.)
    static func zones(tunnels: TunnelLinks?, serving: [GatewayEgress], mesh: Bool) -> [FirewallRule] {
        serving.flatMap { egress -> [FirewallRule] in
            guard let tunnels, let zone = zone(egress, tunnels: tunnels, mesh: mesh) else { return [] }
            return tunnels.devices(of: egress.identity).map {
                FirewallRule([
                    .incoming($0, prefix: false, negated: false), .ipv4Only,
                    .lookup(InboundFlows.ofArriving, set: Ownership.flowsWithoutZone, negated: true),
                    .originalZone(zone),
                ])
            }
        }
    }

    /// Connections that began under a release before zones were: in a zone they would be translated anew, with another port,
    /// and break. The helper puts them in when it makes the set (`FirewallSocket.apply`).
    static let flowsWithoutZone = FirewallSet(name: Ownership.flowsWithoutZone, key: .flow, dynamicSize: 131_072)

    /// The egress address of each zone of connection tracking that this node uses.
    static func translations(tunnels: TunnelLinks?, serving: [GatewayEgress], mesh: Bool) -> [UInt16: IPAddress] {
        var result: [UInt16: IPAddress] = [:]
        for egress in serving {
            guard let tunnels, let address = egress.address,
                let zone = zone(egress, tunnels: tunnels, mesh: mesh)
            else { continue }
            result[zone] = address
        }
        return result
    }

    private static func zone(_ egress: GatewayEgress, tunnels: TunnelLinks, mesh: Bool) -> UInt16? {
        guard egress.address != nil, !(mesh && egress.identity == .defaultAddress),
            let number = tunnels.receiverNumber(of: egress.identity)
        else { return nil }
        return UInt16(exactly: UInt32(Ownership.firstZone) + number)
    }

    /// Every device whose packets are translated, with their new source address.
    private static func devices(
        _ tunnels: TunnelLinks?, _ serving: [GatewayEgress]
    ) -> [(tunnels: TunnelLinks, device: String, address: IPAddress)] {
        serving.flatMap { egress -> [(TunnelLinks, String, IPAddress)] in
            guard let address = egress.address, let tunnels else { return [] }
            return tunnels.devices(of: egress.identity).map { (tunnels, $0, address) }
        }
    }

    /// What comes out of the device and leaves this node. What the device itself sends, encapsulated, has it as its incoming
    /// interface too; and by the same tunnels come other locations' packets for pods here.
    private static func leaving(_ device: String, local: IPAddress, mesh: Bool) -> [FirewallStatement] {
        [.ipv4Only, .match(.sourceAddress, local.v4Value, negated: true)]
            + (mesh ? [.lookup([.destinationAddress], set: "remote_pods", negated: true)] : [])
            + [
                .incoming(device, prefix: false, negated: false),
                .outgoing(Ownership.linkPrefix, prefix: true, negated: true),
            ]
    }
}

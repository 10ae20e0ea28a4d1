import Model

/// With which source address packets leave this node, by the tunnel that they came out of.
enum SourceTranslation {
    /// Before Cilium's own translation (`srcnat`).
    static let priority: Int32 = 100 - 10

    static func chain(tunnels: TunnelLinks?, serving: [GatewayEgress], mesh: MeshPlan?) -> FirewallChain {
        FirewallChain(
            name: "postrouting", kind: .nat, hook: .postrouting, priority: priority,
            rules: serving.flatMap { egress -> [FirewallRule] in
                guard let address = egress.address, let tunnels else { return [] }
                return tunnels.devices(of: egress.identity).map { device in
                    // What the device itself sends, encapsulated, has it as its incoming interface too. And by the
                    // same tunnels come other locations' packets for pods here.
                    FirewallRule(
                        [.ipv4Only, .match(.sourceAddress, tunnels.local.v4Value, negated: true)]
                            + (mesh == nil ? [] : [.lookup([.destinationAddress], set: "remote_pods", negated: true)])
                            + [
                                .incoming(device, prefix: false, negated: false),
                                .outgoing(Ownership.linkPrefix, prefix: true, negated: true), .snat(address),
                            ])
                }
            } + (mesh?.locationTranslation ?? []))
    }
}

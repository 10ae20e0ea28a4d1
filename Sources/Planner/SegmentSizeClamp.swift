import Model

/// TCP's segment size, for pods that have no routes with the smaller MTU.
enum SegmentSizeClamp {
    /// Adopted pods have no routes with the smaller MTU, so handshakes through the gateway are clamped.
    static func chain(tunnels: TunnelLinks?, serving: [GatewayEgress]) -> FirewallChain {
        var rules: [FirewallRule] = []
        if !serving.isEmpty, let smallest = tunnels?.tunnels.values.map(\.podMTU).min() {
            let clamp = FirewallStatement.clampMSS(UInt16(clamping: smallest - 40))
            rules.append(
                FirewallRule([.incoming(Ownership.linkPrefix, prefix: true, negated: false), .tcpSyn, clamp]))
            rules.append(
                FirewallRule([
                    .incoming("cilium_", prefix: true, negated: true), .ipv4Only,
                    .lookup([.destinationAddress], set: "remote_pods", negated: false), .tcpSyn, clamp,
                ]))
        }
        return FirewallChain(name: "forward", kind: .filter, hook: .forward, priority: -150, rules: rules)
    }
}

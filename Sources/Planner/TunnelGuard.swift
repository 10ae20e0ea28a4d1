import Model

/// A packet that comes out of a tunnel is routed on only if Culvert's firewall table has accepted and marked it.
/// Without that table (another program has deleted it, or it does not exist yet) nothing would be translated, so
/// nothing may leave.
enum TunnelGuard {
    private static var mask: UInt32 { Ownership.acceptedMark }

    /// Two rules for each tunnel, which share no packet: so their order does not matter.
    ///
    /// - Parameter table: what accepted packets of a tunnel are routed by.
    static func rules(_ tunnels: TunnelLinks, table: (TunnelLinks.Tunnel) -> UInt32) -> [Rule] {
        tunnels.tunnels.values.flatMap { tunnel in
            [
                Rule(
                    priority: Ownership.tunnelRulePriority, incoming: tunnel.link.name,
                    mark: .init(value: mask, mask: mask), table: table(tunnel)),
                Rule(
                    priority: Ownership.tunnelRulePriority, incoming: tunnel.link.name,
                    mark: .init(value: 0, mask: mask), table: Ownership.guardTable),
            ]
        }
    }

    /// The table for packets without the mark: nothing outside can be reached by it.
    ///
    /// What is inside is thrown on. For a packet that goes *out* by a tunnel the kernel looks up the way back as if the reply
    /// came in by it (`fib_validate_source`), and a reverse-path filter drops the packet where there is none.
    ///
    /// - Parameters:
    ///   - pods: addresses of pods here.
    ///   - mesh: networks that are reached by the mesh.
    static func routes(node: Node?, pods: [IPAddress], mesh: [IPNetwork]) -> [Route] {
        let networks =
            (node?.podCIDRs ?? []).filter { $0.family == .v4 } + mesh.filter { $0.family == .v4 }
            + pods.filter { $0.family == .v4 }.map { IPNetwork(host: $0) }
        return KeptNetworks.fewest(networks.map(NodeIndex.packed)).map {
            Route(table: Ownership.guardTable, destination: $0, kind: .throwOn)
        } + [
            Route(
                table: Ownership.guardTable, destination: .everythingV4, kind: .unreachable,
                metric: Ownership.backstopMetric)
        ]
    }
}

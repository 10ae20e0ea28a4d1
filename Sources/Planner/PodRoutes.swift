import Model

/// Routes inside a pod that carry the smaller path MTU, beside the default route of the plugin before us.
enum PodRoutes {
    /// The smallest path MTU over all gateways that a policy may use, bytes; nil where it has none.
    static func mtu(of policy: AssignedPolicy, tunnels: TunnelLinks?, overlay: (String) -> IPAddress?) -> Int? {
        policy.candidates.compactMap { candidate in
            overlay(candidate.node).flatMap {
                tunnels?.tunnel(gateway: $0, identity: EgressIdentity(candidate.egress))?.podMTU
            }
        }.min()
    }

    /// One route per destination that the table claims.
    static func routes(
        _ table: PolicyTables.Table, mtu: (AssignedPolicy) -> Int?
    ) -> (routes: [AttachmentPlan.PodRoute], smallest: Int?) {
        let mtus = table.policies.map(mtu)
        let routes = table.claims.compactMap { claim in
            mtus[claim.policy].map { AttachmentPlan.PodRoute(destination: claim.prefix, mtu: $0) }
        }
        return (routes, mtus.compactMap { $0 }.min())
    }
}

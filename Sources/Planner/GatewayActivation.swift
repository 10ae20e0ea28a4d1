import Model

/// Where each slot of an assignment points at the moment. Changes with the gateways' health, and changes nothing but what a
/// next hop points to.
public struct GatewayActivation: Equatable, Sendable {
    /// Name of the active gateway by slot; a slot without one is unreachable.
    public private(set) var gateways: [String: String] = [:]

    /// - Parameters:
    ///   - canReach: whether it is known where that node's end of a tunnel is.
    ///   - before: slots whose gateways are known already.
    init(
        _ policies: some Sequence<AssignedPolicy>, health: GatewayHealth, before: GatewayActivation? = nil,
        canReach: (String) -> Bool
    ) {
        if let before { self = before }
        for policy in policies where gateways[policy.slot] == nil {
            // The first by name that is up, as Cilium's documentation says.
            gateways[policy.slot] = policy.gateways.first { !health.down.contains($0) && canReach($0) }
        }
    }

    func gateway(of policy: AssignedPolicy) -> String? { gateways[policy.slot] }
}

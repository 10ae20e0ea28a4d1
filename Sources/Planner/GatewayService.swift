import Model

/// What this node does for others as a gateway: every identity of a policy that may choose it, active or not.
struct GatewayService {
    /// By identity, in order.
    let served: [GatewayEgress]
    private let results: [EgressPolicy.Egress: GatewayEgress.Result]
    /// Interfaces that packets leave by beside the default route's, by the key of their table.
    let otherInterfaces: [String: LocalFacts.Interface]

    /// What this node serves, for the day when a policy is refused: its pods on other nodes go on using it.
    let policies: [AssignedPolicy]

    /// - Parameter before: what this node served last.
    init(catalogue: PolicyCatalogue, before: [AssignedPolicy], facts: LocalFacts, node: Node?) {
        var results: [EgressPolicy.Egress: GatewayEgress.Result] = [:]
        var policies: [AssignedPolicy] = []
        for entry in catalogue.entries {
            // A refused policy is served as it was: pods that had it keep it.
            let policy = entry.refusal.isEmpty ? entry.assigned : before.first { $0.isOf(entry.policy) }
            guard let policy, policy.gateways.contains(facts.nodeName) else { continue }
            policies.append(policy)
            if results[policy.egress] == nil {
                results[policy.egress] = GatewayEgress.resolve(policy.egress, facts: facts, node: node)
            }
        }
        self.policies = policies
        self.results = results
        served = results.values.compactMap { if case .serves(let egress) = $0 { egress } else { nil } }
            .sorted { $0.identity < $1.identity }
        otherInterfaces = Dictionary(
            served.compactMap { egress in
                egress.viaInterface.map { (GatewayService.tableKey($0), $0) }
            }, uniquingKeysWith: { first, _ in first })
    }

    func result(_ egress: EgressPolicy.Egress) -> GatewayEgress.Result? { results[egress] }

    private static func tableKey(_ interface: LocalFacts.Interface) -> String { "egress/\(interface.name)" }

    /// Tables of other egress interfaces.
    func routes(_ tables: AssignedIDs.Numbers) -> [Route] {
        otherInterfaces.sorted { $0.key < $1.key }.flatMap { key, interface in
            tables[key].map { GatewayEgress.routes(table: $0, interface: interface) } ?? []
        }
    }

    /// What comes out of a tunnel is routed by the main table, or by that of its egress interface.
    func table(of tunnel: TunnelLinks.Tunnel, _ tables: AssignedIDs.Numbers) -> UInt32 {
        let interface = served.first { $0.identity == tunnel.identity }?.viaInterface
        return interface.flatMap { tables[GatewayService.tableKey($0)] } ?? Rule.mainTable
    }
}

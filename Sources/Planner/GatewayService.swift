import Model

/// What this node does for others as a gateway: every identity of a policy that may choose it, active or not.
struct GatewayService {
    /// By identity, in order.
    let served: [GatewayEgress]
    private let results: [EgressPolicy.Egress: GatewayEgress.Result]
    /// Interfaces that packets leave by beside the default route's, by the key of their table.
    let otherInterfaces: [String: LocalFacts.Interface]

    init(catalogue: PolicyCatalogue, facts: LocalFacts, node: Node?) {
        var results: [EgressPolicy.Egress: GatewayEgress.Result] = [:]
        for entry in catalogue.entries
        where results[entry.assigned.egress] == nil && entry.assigned.gateways.contains(facts.nodeName) {
            results[entry.assigned.egress] = GatewayEgress.resolve(entry.assigned.egress, facts: facts, node: node)
        }
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

import Model

/// What this node does for others as a gateway: every identity of a policy that may choose it, active or not.
struct GatewayService {
    /// By identity, in order.
    let served: [GatewayEgress]
    private let results: [EgressSpecification: GatewayEgress.Result]
    /// How often the fastest policy of each identity sends echoes, milliseconds.
    let echoIntervals: [Int]
    /// Interfaces that packets leave by beside the default route's, by the key of their table.
    let otherInterfaces: [String: LocalFacts.Interface]

    /// What this node serves, for the day when a policy is refused: its pods on other nodes go on using it.
    let policies: [AssignedPolicy]

    /// - Parameters:
    ///   - before: what this node served last.
    ///   - unreachable: why an identity is not served, because of its targets.
    init(
        catalogue: PolicyCatalogue, before: [AssignedPolicy], facts: LocalFacts, node: Node?,
        unreachable: TargetVerdicts = TargetVerdicts()
    ) {
        var policies: [AssignedPolicy] = []
        // What goes out with each.
        var destinations: [EgressSpecification: [[IPNetwork]]] = [:]
        var intervals: [EgressSpecification: Int] = [:]
        for place in catalogue.servedHere {
            let entry = catalogue.entries[place]
            let policy: AssignedPolicy
            let egresses: [EgressSpecification]
            if let candidates = entry.candidates {
                guard candidates.nodes.contains(facts.nodeName) else { continue }
                policy = entry.assigned
                egresses = entry.policy.gatewayEntries.filter { candidates.matches($0, facts.nodeName) }.map {
                    EgressSpecification($0.egress, targets: entry.policy.healthChecks.targets)
                }
            } else {
                // A refused policy is served as it was: pods that had it keep it.
                guard let had = before.first(where: { $0.isOf(entry.policy) }), had.gateways.contains(facts.nodeName)
                else { continue }
                policy = had
                egresses = had.candidates.filter { $0.node == facts.nodeName }.map(\.egress)
            }
            policies.append(policy)
            for egress in egresses {
                destinations[egress, default: []].append(policy.destinations)
                intervals[egress] = min(intervals[egress] ?? policy.interval, policy.interval)
            }
        }
        var results: [EgressSpecification: GatewayEgress.Result] = [:]
        for (egress, networks) in destinations {
            results[egress] =
                unreachable[egress].map { .refuses($0) }
                ?? GatewayEgress.resolve(egress, to: networks, facts: facts, node: node)
        }
        self.policies = policies
        echoIntervals = intervals.values.sorted()
        self.results = results
        served = results.values.compactMap { if case .serves(let egress) = $0 { egress } else { nil } }
            .sorted { $0.identity < $1.identity }
        otherInterfaces = Dictionary(
            served.compactMap { egress in
                egress.viaInterface.map { (GatewayService.tableKey($0), $0) }
            }, uniquingKeysWith: { first, _ in first })
    }

    /// What it has to reach for that, whether it answers at the moment or not.
    func targetChecks(facts: LocalFacts, node: Node?) -> [TargetCheck] {
        specifications.filter { !$0.targets.isEmpty }.compactMap { egress in
            guard case .serves(let served) = GatewayEgress.resolve(egress, facts: facts, node: node) else { return nil }
            return TargetCheck(egress: egress, source: served.address, device: served.viaInterface?.name ?? "")
        }
    }

    /// What this node is a candidate for and cannot serve, in order.
    var refused: [EgressIdentity] {
        Set(results.filter { if case .refuses = $0.value { true } else { false } }.map { EgressIdentity($0.key) })
            .sorted()
    }

    /// What this node would do for others if all was well: for those who check that it is.
    var specifications: [EgressSpecification] { results.keys.sorted { $0.text < $1.text } }

    func result(_ egress: EgressSpecification) -> GatewayEgress.Result? { results[egress] }

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

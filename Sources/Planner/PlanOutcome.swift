import Model

/// What became of each attachment and each policy, for status, reports and the plan's readers.
struct PlanOutcome {
    let facts: LocalFacts
    let inventory: Inventory
    let catalogue: PolicyCatalogue
    let activation: GatewayActivation
    let service: GatewayService

    /// The address that a policy's packets leave with; nil: the pod's own, or not known here.
    private func egressAddress(_ policy: AssignedPolicy, gateway: String?) -> IPAddress? {
        switch policy.egress {
        case .address(let address): return address
        case .untranslated: return nil
        default:
            if gateway == facts.nodeName, case .serves(let egress)? = service.result(policy.egress) {
                return egress.address
            }
            guard policy.egress == .defaultAddress, let gateway else { return nil }
            return inventory.nodes[gateway]?.annotations[Planner.egressAddressAnnotation].flatMap { IPAddress($0) }
        }
    }

    /// - Parameters:
    ///   - meshRoutes: routes into every pod, of the mesh.
    ///   - knowsItself: this node's overlay address is known.
    ///   - mtu: the path MTU of a policy.
    func attachments(
        _ attachments: [Attachment], assignment: PolicyAssignment, tables: PolicyTables,
        meshRoutes: [AttachmentPlan.PodRoute], knowsItself: Bool, mtu: (AssignedPolicy) -> Int?
    ) -> [AttachmentPlan] {
        attachments.map { attachment in
            var entry = AttachmentPlan(attachment: attachment)
            let choice = assignment.choices[attachment.id] ?? .init()
            entry.assigned = choice.policies
            entry.refusal = choice.refusal
            if entry.refusal.isEmpty, !choice.policies.isEmpty, !knowsItself {
                entry.refusal = "this node's overlay address (cilium_host) is not known"
            }
            entry.podRoutes = attachment.addressesV4.isEmpty ? [] : meshRoutes
            entry.policies = choice.policies.map { policy in
                let gateway = activation.gateway(of: policy)
                return AttachmentPlan.Policy(
                    name: policy.name, gateway: gateway, egressAddress: egressAddress(policy, gateway: gateway))
            }
            guard let table = tables.table(of: attachment) else { return entry }
            if !table.claimsV6 { entry.uncovered = attachment.addresses.filter { $0.family == .v6 }.map(\.address) }
            guard !attachment.addressesV4.isEmpty else { return entry }
            entry.table = table.number
            let (routes, smallest) = PodRoutes.routes(table, mtu: mtu)
            entry.mtu = smallest
            entry.podRoutes += routes
            return entry
        }
    }

    /// By name; how many attachments each has is not counted here.
    func policies() -> [PolicyPlan] {
        catalogue.entries.map { entry in
            let policy = entry.policy
            let gateway = activation.gateway(of: entry.assigned)
            return PolicyPlan(
                name: policy.name, source: policy.source, gateway: gateway, candidates: entry.assigned.gateways,
                isLocalGateway: gateway == facts.nodeName,
                egressAddress: entry.refusal.isEmpty ? egressAddress(entry.assigned, gateway: gateway) : nil,
                destinations: policy.destinations, attachments: 0, problem: problem(entry, gateway))
        }.sorted { ($0.name, $0.source.rawValue) < ($1.name, $1.source.rawValue) }
    }

    private func problem(_ entry: PolicyCatalogue.Entry, _ gateway: String?) -> String {
        if !entry.refusal.isEmpty { return "refused: \(entry.refusal)" }
        if gateway == nil { return "no node with an overlay address matches egressGateway.nodeSelector" }
        if gateway == facts.nodeName, case .refuses(let why)? = service.result(entry.assigned.egress) { return why }
        if entry.policy.source == .cilium, inventory.cilium?.hasEgressGateway == true {
            return "Cilium's own egress gateway is on and acts on this policy too"
        }
        return ""
    }

    func warningsOfPolicies() -> [String] {
        var warnings: [String] = []
        for entry in catalogue.entries where entry.refusal.isEmpty {
            if activation.gateway(of: entry.assigned) == facts.nodeName,
                case .refuses(let why)? = service.result(entry.assigned.egress)
            {
                warnings.append("policy \(entry.policy.name): \(why); its packets are dropped here")
            }
        }
        for name in catalogue.crowded {
            warnings.append(
                "policy \(name): its gateway selector matches more than \(PolicyCatalogue.mostCandidates) nodes; the first "
                    + "\(PolicyCatalogue.mostCandidates) by name are its candidates")
        }
        return warnings
    }

    func warnings(_ attachments: [AttachmentPlan]) -> [String] {
        var warnings: [String] = []
        for entry in attachments where !entry.uncovered.isEmpty {
            let list = entry.uncovered.map(\.description).joined(separator: ", ")
            warnings.append(
                "\(entry.attachment.displayName): no policy covers its IPv6 (\(list)), which keeps its normal path")
        }
        return warnings
    }
}

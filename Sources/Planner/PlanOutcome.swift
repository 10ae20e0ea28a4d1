import Model

/// What became of each attachment and each policy, for status, reports and the plan's readers.
struct PlanOutcome {
    let overlay: Configuration.Overlay
    let facts: LocalFacts
    let inventory: Inventory
    let catalogue: PolicyCatalogue
    let activation: GatewayActivation
    let service: GatewayService

    /// The address that a policy's packets leave with; nil: the pod's own, or not known here.
    private func egressAddress(_ candidate: GatewayCandidate?) -> IPAddress? {
        guard let candidate else { return nil }
        switch candidate.egress.address {
        case .address(let address): return address
        case .untranslated: return nil
        default:
            if candidate.node == facts.nodeName, case .serves(let egress)? = service.result(candidate.egress) {
                return egress.address
            }
            guard candidate.egress.address == .defaultAddress else { return nil }
            return inventory.nodes[candidate.node]?.annotations[Planner.egressAddressAnnotation].flatMap {
                IPAddress($0)
            }
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
        let podRoutes = tables.tables.map { PodRoutes.routes($0, mtu: mtu) }
        // Pods that have one policy have the same of it.
        var known: [ObjectIdentifier: AttachmentPlan.Policy] = [:]
        func policy(_ assigned: AssignedPolicy) -> AttachmentPlan.Policy {
            if let policy = known[assigned.identity] { return policy }
            let gateway = activation.gateway(of: assigned)
            let policy = AttachmentPlan.Policy(
                name: assigned.name, gateway: gateway?.node, isDown: activation.isDown(assigned),
                egressAddress: egressAddress(gateway))
            known[assigned.identity] = policy
            return policy
        }
        return attachments.enumerated().map { index, attachment in
            var entry = AttachmentPlan(attachment: attachment)
            let choice = assignment.choices[index]
            // On a desk nobody knows who had an ADD.
            if attachment.adopted, facts.isLive {
                entry.adoption = Adoption(podStart: attachment.podStart, facts: facts)
            }
            entry.assigned = choice.policies
            entry.grantedAnnotation = choice.granted
            entry.refusal = choice.refusal
            if entry.refusal.isEmpty, !choice.policies.isEmpty, !knowsItself {
                entry.refusal = "this node's \(overlay.tunnelEnd) is not known"
            }
            entry.podRoutes = attachment.addressesV4.isEmpty ? [] : meshRoutes
            entry.policies = choice.policies.map(policy)
            guard let place = tables.places[index] else { return entry }
            let table = tables.tables[place]
            if !table.claimsV6 { entry.uncovered = attachment.addresses.filter { $0.family == .v6 }.map(\.address) }
            guard !attachment.addressesV4.isEmpty else { return entry }
            entry.table = table.number
            entry.mtu = podRoutes[place].smallest
            entry.podRoutes += podRoutes[place].routes
            return entry
        }
    }

    /// By name; how many attachments each has is not counted here.
    func policies() -> [PolicyPlan] {
        catalogue.entries.map(policy).sorted { ($0.name, $0.source.rawValue) < ($1.name, $1.source.rawValue) }
    }

    /// What becomes of one policy.
    func policy(_ entry: PolicyCatalogue.Entry) -> PolicyPlan {
        let policy = entry.policy
        let gateway = activation.gateway(of: entry.assigned)
        return PolicyPlan(
            .init(
                name: policy.name, source: policy.source, gateway: gateway?.node,
                candidates: entry.assigned.gateways,
                allCandidates: policy.source == .culvert
                    ? entry.candidates?.nodes.sorted() ?? [] : entry.assigned.gateways.sorted(),
                isSpread: policy.isSpread,
                isLocalGateway: gateway?.node == facts.nodeName,
                egressAddress: entry.refusal.isEmpty ? egressAddress(gateway) : nil,
                destinations: policy.destinations, generation: policy.generation, standing: standing(entry, gateway)))
    }

    private func standing(_ entry: PolicyCatalogue.Entry, _ gateway: GatewayCandidate?) -> PolicyPlan.Standing {
        if !entry.refusal.isEmpty { return .refused(entry.refusal) }
        let why = problem(entry, gateway)
        return why.isEmpty ? .inForce : .impaired(why)
    }

    private func problem(_ entry: PolicyCatalogue.Entry, _ gateway: GatewayCandidate?) -> String {
        if activation.isDown(entry.assigned) {
            return "all its gateways are down: \(entry.assigned.gateways.joined(separator: ", "))"
        }
        guard let gateway else {
            let field = entry.policy.hasGatewayList ? "egressGateways" : "egressGateway.nodeSelector"
            return "no node matches \(field) whose \(overlay.tunnelEnd) is known"
        }
        if gateway.node == facts.nodeName, case .refuses(let why)? = service.result(gateway.egress) { return why }
        if entry.policy.source == .cilium, inventory.cilium?.hasEgressGateway == true {
            return "Cilium's own egress gateway is on and acts on this policy too"
        }
        return ""
    }

    func warningsOfPolicies() -> [String] {
        var warnings: [String] = []
        for entry in catalogue.entries where entry.refusal.isEmpty {
            for egress in Set(entry.assigned.candidates.filter { $0.node == facts.nodeName }.map(\.egress)) {
                if case .refuses(let why)? = service.result(egress) {
                    warnings.append("policy \(entry.policy.name): \(why); its packets are dropped here")
                }
            }
        }
        for name in catalogue.crowded {
            warnings.append(
                "policy \(name): its gateway selectors match more than \(GatewayCandidates.most) nodes; the first "
                    + "\(GatewayCandidates.most) are its candidates")
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
        let unknown = attachments.filter { $0.attachment.isUnknown && $0.policies.isEmpty }
        if let first = unknown.first, !catalogue.entries.isEmpty {
            let subject =
                unknown.count == 1
                ? "1 container came" : "\(unknown.count) containers came"
            warnings.append(
                "\(subject) without a Kubernetes identity and without labels, so no policy can select it: "
                    + "\(first.attachment.displayName); \(Planner.labelsRemedy)")
        }
        return warnings
    }
}

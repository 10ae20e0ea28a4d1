import Model

/// Which policies are in force, which gateway each has, and which of them a pod gets.
struct PolicyAssignment {
    /// A policy with its gateway of the moment.
    struct Assigned: Equatable {
        let policy: EgressPolicy
        let identity: EgressIdentity
        /// Name of the gateway node; nil: none matches.
        let gateway: String?
        /// Next-hop objects stand for this.
        var key: String { "\(policy.source.rawValue)/\(policy.name)>\(gateway ?? "")" }
    }

    /// Policies that are not refused, by `sortKey`.
    let active: [Assigned]
    /// Policies that are refused, with the reason.
    let refused: [(policy: EgressPolicy, reason: String)]
    private let inventory: Inventory
    private let nodeName: String

    init(
        configuration: Configuration, nodeName: String, inventory: Inventory, health: GatewayHealth,
        index: inout NodeIndex
    ) {
        self.inventory = inventory
        self.nodeName = nodeName
        var active: [Assigned] = []
        var refused: [(EgressPolicy, String)] = []
        var egressByKey: [UInt32: (EgressPolicy.Egress, String)] = [0: (.defaultAddress, "")]
        let skipped = inventory.cilium?.skipsRouteLookup.flatMap { $0.certain ? $0.reason : nil }
        let honored = inventory.policies.filter { $0.source == .culvert || configuration.honorCiliumPolicies }
        for policy in honored.sorted(by: { $0.sortKey < $1.sortKey }) {
            if !policy.refusal.isEmpty {
                refused.append((policy, policy.refusal))
                continue
            }
            let identity = EgressIdentity(policy.egress)
            let wireKey = configuration.tunnelProtocol == .vxlan ? identity.vni : identity.key
            if let (egress, name) = egressByKey[wireKey], egress != policy.egress {
                let other = name.isEmpty ? "the default egress identity" : "that of policy \(name)"
                refused.append((policy, "its egress key collides with \(other); choose another egressIP or interface"))
                continue
            }
            egressByKey[wireKey] = (policy.egress, policy.name)
            // The first by name that is up.
            let gateway = index.gateways(policy.gatewaySelector).first { !health.down.contains($0) }
            // Only pods are out of reach of the routing rules; as a gateway such a node does its work.
            if let skipped, gateway != nodeName {
                refused.append((policy, skipped))
                continue
            }
            active.append(Assigned(policy: policy, identity: identity, gateway: gateway))
        }
        self.active = active
        self.refused = refused
    }

    enum Choice: Equatable {
        case policies([Assigned])
        /// The pod must not start: the reason.
        case refused(String)
    }

    static let annotation = Planner.policyAnnotation

    /// Strongest first: the annotation, selectors, `defaultPolicy` (design.md, "Per-pod choices").
    func policies(for attachment: Attachment) -> Choice {
        let choice = chosenPolicies(for: attachment)
        if let skipped = inventory.cilium?.skipsRouteLookup, skipped.certain, case .policies(let chosen) = choice,
            let first = chosen.first
        {
            return .refused("policy \(first.policy.name) is refused: \(skipped.reason)")
        }
        return choice
    }

    private func chosenPolicies(for attachment: Attachment) -> Choice {
        let pod = inventory.pods.first {
            $0.namespace == attachment.podNamespace && $0.name == attachment.podName
                && (attachment.podUID.isEmpty || $0.hasUID(attachment.podUID))
        }
        let wanted =
            pod?.annotations[PolicyAssignment.annotation] ?? attachment.annotations[PolicyAssignment.annotation]
        if let wanted {
            return wanted == "none" ? .policies([]) : named(wanted, by: "the annotation \(PolicyAssignment.annotation)")
        }
        let labels = podLabels(attachment, pod: pod)
        let namespaceLabels = namespaceLabels(attachment.podNamespace)
        let nodeLabels = inventory.nodes[nodeName]?.labels ?? [:]
        func selects(_ policy: EgressPolicy) -> Bool {
            policy.selectors.contains { selector in
                (selector.pod?.matches(labels) ?? true) && (selector.namespace?.matches(namespaceLabels) ?? true)
                    && (selector.node?.matches(nodeLabels) ?? true)
            }
        }
        if let (policy, reason) = refused.first(where: { selects($0.policy) }) {
            return .refused("policy \(policy.name) is refused: \(reason)")
        }
        let selected = active.filter { selects($0.policy) }
        if selected.isEmpty && !attachment.defaultPolicy.isEmpty {
            return named(attachment.defaultPolicy, by: "defaultPolicy")
        }
        return .policies(selected)
    }

    /// EgressPolicy before CiliumEgressGatewayPolicy: that is the order of `active`.
    private func named(_ name: String, by origin: String) -> Choice {
        let ours = active.first { $0.policy.name == name && $0.policy.source == .culvert }
        if let ours { return .policies([ours]) }
        if let (_, reason) = refused.first(where: { $0.policy.name == name && $0.policy.source == .culvert }) {
            return .refused("policy \(name) is refused: \(reason)")
        }
        if let ciliums = active.first(where: { $0.policy.name == name }) { return .policies([ciliums]) }
        if let (_, reason) = refused.first(where: { $0.policy.name == name }) {
            return .refused("policy \(name) is refused: \(reason)")
        }
        return .refused("\(origin) names the policy \"\(name)\", which does not exist")
    }

    /// The pod's labels, and those that Cilium derives and its users select by.
    private func podLabels(_ attachment: Attachment, pod: Pod?) -> [String: String] {
        DerivedLabels.pod(
            pod?.labels ?? attachment.labels, namespace: attachment.podNamespace,
            namespaceLabels: inventory.namespaces[attachment.podNamespace] ?? [:],
            serviceAccount: pod?.serviceAccount ?? "")
    }

    private func namespaceLabels(_ name: String) -> [String: String] {
        DerivedLabels.namespace(inventory.namespaces[name] ?? [:], name: name)
    }
}

extension EgressPolicy {
    /// False when every selector is for other nodes.
    func couldSelectPods(on nodeName: String, inventory: Inventory) -> Bool {
        let labels = inventory.nodes[nodeName]?.labels ?? [:]
        return selectors.isEmpty || selectors.contains { $0.node?.matches(labels) ?? true }
    }
}

import Model

/// Every policy with what becomes of it on this node, before any pod is looked at: refused or not, and its candidates.
struct PolicyCatalogue: Sendable {
    struct Entry: Sendable {
        let policy: EgressPolicy
        /// What a pod that the policy selects gets: in force, or, of a refused policy, held.
        let assigned: AssignedPolicy
        /// Why it is refused; empty when it is not.
        let refusal: String
        /// False when every selector is for other nodes.
        let couldSelectHere: Bool
    }

    /// Nodes by name that one policy sends to at the most. Each needs a tunnel on every node that has pods of the policy.
    static let mostCandidates = 64

    /// By `sortKey`: of two policies of one name, EgressPolicy comes first.
    let entries: [Entry]
    /// Policies that have more candidates than are used.
    let crowded: [String]
    private let byName: [String: [Int]]

    init(configuration: Configuration, nodeName: String, inventory: Inventory, index: inout NodeIndex) {
        var entries: [Entry] = []
        var crowded: [String] = []
        var byName: [String: [Int]] = [:]
        var egressByKey: [UInt32: (EgressPolicy.Egress, String)] = [0: (.defaultAddress, "")]
        let skipped = inventory.cilium?.skipsRouteLookup.flatMap { $0.certain ? $0.reason : nil }
        let nodeLabels = inventory.nodes[nodeName]?.labels ?? [:]
        let honored = inventory.policies.filter { $0.source == .culvert || configuration.honorCiliumPolicies }
        for policy in honored.sorted(by: { $0.sortKey < $1.sortKey }) {
            var refusal = policy.refusal
            var gateways: [String] = []
            if refusal.isEmpty {
                let identity = EgressIdentity(policy.egress)
                let wireKey = configuration.tunnelProtocol == .vxlan ? identity.vni : identity.key
                if let (egress, name) = egressByKey[wireKey], egress != policy.egress {
                    let other = name.isEmpty ? "the default egress identity" : "that of policy \(name)"
                    refusal = "its egress key collides with \(other); choose another egressIP or interface"
                } else {
                    egressByKey[wireKey] = (policy.egress, policy.name)
                    gateways = index.gateways(policy.gatewaySelector)
                    if gateways.count > PolicyCatalogue.mostCandidates {
                        crowded.append(policy.name)
                        gateways = Array(gateways.prefix(PolicyCatalogue.mostCandidates))
                    }
                    // Only pods are out of reach of the routing rules; as a gateway such a node does its work.
                    if let skipped, !gateways.contains(nodeName) { refusal = skipped }
                }
            }
            byName[policy.name, default: []].append(entries.count)
            entries.append(
                Entry(
                    policy: policy,
                    assigned: refusal.isEmpty
                        ? AssignedPolicy(
                            source: policy.source, name: policy.name, destinations: policy.destinations,
                            exclusions: policy.exclusions, egress: policy.egress, gateways: gateways)
                        : PolicyCatalogue.held(policy, refusal),
                    refusal: refusal,
                    couldSelectHere: policy.hasUnknownSelectors || policy.selectors.isEmpty
                        || policy.selectors.contains { $0.node?.matches(nodeLabels) ?? true }))
        }
        self.entries = entries
        self.crowded = crowded
        self.byName = byName
    }

    /// EgressPolicy before CiliumEgressGatewayPolicy; of those, one that is in force before one that is refused.
    func named(_ name: String) -> Entry? {
        let found = (byName[name] ?? []).map { entries[$0] }
        return found.first { $0.policy.source == .culvert } ?? found.first { $0.refusal.isEmpty } ?? found.first
    }

    /// Claims of a refused policy, for a pod that never had it: all that the policy may claim, and no gateway.
    private static func held(_ policy: EgressPolicy, _ reason: String) -> AssignedPolicy {
        AssignedPolicy(
            source: policy.source, name: policy.name,
            destinations: policy.hasUnknownDestinations ? [.everythingV4, .everythingV6] : policy.destinations,
            exclusions: policy.hasUnknownDestinations ? [] : policy.exclusions, egress: policy.egress,
            standing: .held("policy \(policy.name) is refused: \(reason)"))
    }

    /// For a pod that names a policy that nobody knows: everything is held.
    static func unknown(_ name: String, _ reason: String) -> AssignedPolicy {
        AssignedPolicy(
            source: .culvert, name: name, destinations: [.everythingV4, .everythingV6], standing: .held(reason))
    }
}

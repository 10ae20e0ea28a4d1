import Model

/// Every policy with what becomes of it on this node, before any pod is looked at: refused or not, and its candidates.
struct PolicyCatalogue: Sendable {
    final class Entry: Sendable {
        let policy: EgressPolicy
        /// What a pod that the policy selects gets: in force, or, of a refused policy, held. Where pods have different choices
        /// of candidates, `assigned(to:)` has the pod's own.
        let assigned: AssignedPolicy
        /// nil: the policy is refused.
        let candidates: GatewayCandidates?
        /// Why it is refused; empty when it is not.
        let refusal: String
        /// False when every selector is for other nodes.
        let couldSelectHere: Bool

        init(
            policy: EgressPolicy, assigned: AssignedPolicy, candidates: GatewayCandidates?, refusal: String,
            couldSelectHere: Bool
        ) {
            self.policy = policy
            self.assigned = assigned
            self.candidates = candidates
            self.refusal = refusal
            self.couldSelectHere = couldSelectHere
        }

        /// The policy's own nodeSelectors, for a message.
        var nodeSelectors: String {
            Set(policy.selectors.compactMap { $0.node?.description }).sorted().joined(separator: " or ")
        }

        /// What this pod gets of it.
        func assigned(to attachment: Attachment) -> AssignedPolicy {
            guard policy.isSpread, let candidates else { return assigned }
            let pod = attachment.podUID.isEmpty ? attachment.containerID : attachment.podUID
            let choice = candidates.choice(for: pod, of: policy)
            return assigned.with(candidates: choice.candidates, spread: choice.spread)
        }
    }

    let configuration: Configuration
    /// By `sortKey`: of two policies of one name, EgressPolicy comes first.
    let entries: [Entry]
    /// Policies that have more candidates than are used.
    let crowded: [String]
    private let byName: [String: [Int]]
    /// Places of policies that this node may serve as a gateway: those of which it is a candidate, and refused ones, which it
    /// may have served before.
    let servedHere: [Int]
    private let selectors: SelectorIndex
    /// Places of policies by their slot, and by the place of their slot.
    let bySlot: [String: [Int]]
    let byPlace: [String: [Int]]

    /// Places of the policies whose selectors may match a pod with these labels, in order.
    func maySelect(_ labels: [String: String]) -> [Int] { selectors.candidates(labels) }

    init(configuration: Configuration, nodeName: String, inventory: Inventory, index: inout NodeIndex) {
        self.configuration = configuration
        var entries: [Entry] = []
        var crowded: [String] = []
        var byName: [String: [Int]] = [:]
        var egressByKey: [UInt32: (EgressSpecification, String)] = [0: (.init(), "")]
        let skipped = inventory.cilium?.skipsRouteLookup.flatMap { $0.certain ? $0.reason : nil }
        let own = inventory.nodes[nodeName]
        let nodeLabels = own?.labels ?? [:]
        let location = own.map { GatewayRank($0, topologyLabel: configuration.mesh.topologyLabel).location } ?? ""
        let honored = inventory.policies.filter { $0.source == .culvert || configuration.honorCiliumPolicies }
        for policy in honored.sorted(by: { $0.sortKey < $1.sortKey }) {
            var refusal = policy.refusal
            var candidates: GatewayCandidates?
            if refusal.isEmpty {
                for entry in policy.gatewayEntries {
                    let egress = EgressSpecification(entry.egress, targets: policy.healthChecks.targets)
                    let wireKey = configuration.encapsulation.wireKey(of: EgressIdentity(egress))
                    if let (there, name) = egressByKey[wireKey], there != egress {
                        let other = name.isEmpty ? "the default egress identity" : "that of policy \(name)"
                        refusal = "its egress key collides with \(other); choose another egressIP or interface"
                    } else {
                        egressByKey[wireKey] = (egress, policy.name)
                    }
                }
                if refusal.isEmpty {
                    let found = GatewayCandidates(policy, location: location) { index.gateways($0) }
                    if found.isCrowded { crowded.append(policy.name) }
                    // Only pods are out of reach of the routing rules; as a gateway such a node does its work.
                    if let skipped, !found.nodes.contains(nodeName) { refusal = skipped } else { candidates = found }
                }
            }
            byName[policy.name, default: []].append(entries.count)
            entries.append(
                Entry(
                    policy: policy,
                    assigned: refusal.isEmpty
                        ? AssignedPolicy(
                            source: policy.source, name: policy.name, destinations: policy.destinations,
                            exclusions: policy.exclusions, candidates: candidates?.all ?? [],
                            takesBack: policy.takesBack, interval: policy.healthChecks.interval,
                            multiplier: policy.healthChecks.multiplier)
                        : PolicyCatalogue.held(policy, refusal),
                    candidates: candidates,
                    refusal: refusal,
                    couldSelectHere: policy.hasUnknownSelectors || policy.selectors.isEmpty
                        || policy.selectors.contains { $0.node?.matches(nodeLabels) ?? true }))
        }
        self.entries = entries
        self.crowded = crowded
        self.byName = byName
        servedHere = entries.indices.filter { entries[$0].candidates?.nodes.contains(nodeName) ?? true }
        selectors = SelectorIndex(entries.map(\.policy))
        bySlot = Dictionary(grouping: entries.indices) { entries[$0].assigned.slot }
        byPlace = Dictionary(grouping: entries.indices) { entries[$0].assigned.place }
    }

    /// EgressPolicy before CiliumEgressGatewayPolicy; of those, one that is in force before one that is refused.
    func named(_ name: String) -> Entry? {
        let found = (byName[name] ?? []).map { entries[$0] }
        return found.first { $0.policy.source == .culvert } ?? found.first { $0.refusal.isEmpty } ?? found.first
    }

    /// Claims of a refused policy, for a pod that never had it: all that the policy may claim, and no gateway.
    private static func held(_ policy: EgressPolicy, _ reason: String) -> AssignedPolicy {
        held(policy, because: "policy \(policy.name) is refused: \(reason)")
    }

    /// Claims of a policy that a pod may not have, or not here: all that the policy may claim, and no gateway.
    static func held(_ policy: EgressPolicy, because reason: String) -> AssignedPolicy {
        AssignedPolicy(
            source: policy.source, name: policy.name,
            destinations: policy.hasUnknownDestinations ? [.everythingV4, .everythingV6] : policy.destinations,
            exclusions: policy.hasUnknownDestinations ? [] : policy.exclusions,
            standing: .held(reason))
    }

    /// For a pod that names a policy that does not exist: everything is held.
    static func unknown(_ name: String, _ reason: String) -> AssignedPolicy {
        AssignedPolicy(
            source: .culvert, name: name, destinations: [.everythingV4, .everythingV6], standing: .held(reason))
    }
}

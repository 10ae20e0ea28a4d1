import Model

/// Which policies each pod gets. Stable: it changes with policies, pods and the set of gateways, never with their health.
public struct PolicyAssignment: Equatable, Sendable {
    /// What one pod gets.
    public struct Choice: Equatable, Sendable {
        /// What a live pod has, by `sortKey` of the policies. A pod that cannot be judged keeps what it had; where there is
        /// nothing to keep, what may be claimed is held.
        public var policies: [AssignedPolicy] = []
        /// Why an ADD of this pod must fail; empty when it may go on. A live pod cannot be refused.
        public var refusal = ""
        public init(_ policies: [AssignedPolicy] = [], refusal: String = "") {
            self.policies = policies
            self.refusal = refusal
        }
    }

    /// By attachment ID.
    public private(set) var choices: [String: Choice] = [:]

    static let annotation = Planner.policyAnnotation

    init(
        catalogue: PolicyCatalogue, inventory: Inventory, nodeName: String, attachments: [Attachment],
        memory: inout PlannerMemory
    ) {
        let judge = Judge(catalogue: catalogue, inventory: inventory, nodeName: nodeName)
        let world = PlannerMemory.AssignmentWorld(
            catalogueGeneration: memory.catalogueGeneration, namespaces: inventory.namespaces)
        let isSameWorld = memory.assignmentWorld == world
        memory.assignmentWorld = world
        var pods: [String: [Pod]] = [:]
        for pod in inventory.pods { pods["\(pod.namespace)/\(pod.name)", default: []].append(pod) }
        var kept: [String: PlannerMemory.Judged] = [:]
        kept.reserveCapacity(attachments.count)
        choices.reserveCapacity(attachments.count)
        for attachment in attachments {
            let pod = pods["\(attachment.podNamespace)/\(attachment.podName)"]?.first {
                attachment.podUID.isEmpty || $0.hasUID(attachment.podUID)
            }
            let judged: PlannerMemory.Judged
            if isSameWorld, let known = memory.judged[attachment.id], known.attachment == attachment, known.pod == pod {
                judged = known
            } else {
                judged = .init(attachment: attachment, pod: pod, choice: judge.choice(for: attachment, pod: pod))
            }
            kept[attachment.id] = judged
            choices[attachment.id] = judged.choice
        }
        memory.judged = kept
    }

    /// Judges one pod at a time.
    private struct Judge {
        let catalogue: PolicyCatalogue
        let inventory: Inventory
        let nodeLabels: [String: String]
        let skipped: String?

        init(catalogue: PolicyCatalogue, inventory: Inventory, nodeName: String) {
            self.catalogue = catalogue
            self.inventory = inventory
            nodeLabels = inventory.nodes[nodeName]?.labels ?? [:]
            skipped = inventory.cilium?.skipsRouteLookup.flatMap { $0.certain ? $0.reason : nil }
        }

        /// Strongest first: the annotation, selectors, `defaultPolicy` (design.md, "Per-pod choices").
        func choice(for attachment: Attachment, pod: Pod?) -> Choice {
            var choice = chosen(for: attachment, pod: pod)
            if let skipped, choice.refusal.isEmpty, let first = choice.policies.first {
                choice.refusal = "policy \(first.name) is refused: \(skipped)"
                choice.policies = choice.policies.map { $0.with(.kept(choice.refusal)) }
            }
            return choice
        }

        private func chosen(for attachment: Attachment, pod: Pod?) -> Choice {
            let wanted =
                pod?.annotations[PolicyAssignment.annotation] ?? attachment.annotations[PolicyAssignment.annotation]
            if let wanted {
                return wanted == "none"
                    ? Choice() : named(wanted, by: "the annotation \(PolicyAssignment.annotation)", attachment)
            }
            let labels = podLabels(attachment, pod: pod)
            let namespaceLabels = DerivedLabels.namespace(
                inventory.namespaces[attachment.podNamespace] ?? [:], name: attachment.podNamespace)
            func selects(_ policy: EgressPolicy) -> Bool {
                policy.selectors.contains { selector in
                    (selector.pod?.matches(labels) ?? true) && (selector.namespace?.matches(namespaceLabels) ?? true)
                        && (selector.node?.matches(nodeLabels) ?? true)
                }
            }
            var choice = Choice()
            for entry in catalogue.entries {
                if entry.refusal.isEmpty {
                    if selects(entry.policy) { choice.policies.append(entry.assigned) }
                    continue
                }
                let before = had(entry.policy, attachment)
                // Selectors that cannot be read select whom they had; those beside them that can be read select as ever.
                guard selects(entry.policy) || (entry.policy.hasUnknownSelectors && before != nil) else { continue }
                let reason = "policy \(entry.policy.name) is refused: \(entry.refusal)"
                choice.policies.append(before?.with(.kept(reason)) ?? entry.assigned)
                if choice.refusal.isEmpty { choice.refusal = reason }
            }
            if choice.policies.isEmpty && !attachment.defaultPolicy.isEmpty {
                return named(attachment.defaultPolicy, by: "defaultPolicy", attachment)
            }
            return choice
        }

        private func named(_ name: String, by origin: String, _ attachment: Attachment) -> Choice {
            guard let entry = catalogue.named(name) else {
                let reason = "\(origin) names the policy \"\(name)\", which does not exist"
                let before = attachment.assignment?.first { $0.name == name && !$0.isHeld }
                return Choice(
                    [before?.with(.kept(reason)) ?? PolicyCatalogue.unknown(name, reason)], refusal: reason)
            }
            guard !entry.refusal.isEmpty else { return Choice([entry.assigned]) }
            let reason = "policy \(name) is refused: \(entry.refusal)"
            return Choice([had(entry.policy, attachment)?.with(.kept(reason)) ?? entry.assigned], refusal: reason)
        }

        /// What the pod had of this policy.
        private func had(_ policy: EgressPolicy, _ attachment: Attachment) -> AssignedPolicy? {
            attachment.assignment?.first { $0.isOf(policy) && !$0.isHeld }
        }

        /// The pod's labels, and those that Cilium derives and its users select by.
        private func podLabels(_ attachment: Attachment, pod: Pod?) -> [String: String] {
            DerivedLabels.pod(
                pod?.labels ?? attachment.labels, namespace: attachment.podNamespace,
                namespaceLabels: inventory.namespaces[attachment.podNamespace] ?? [:],
                serviceAccount: pod?.serviceAccount ?? "")
        }
    }
}

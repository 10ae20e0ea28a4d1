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
        /// The value that its annotation is permitted to have, or was before; empty: none.
        public var granted = ""
        public init(_ policies: [AssignedPolicy] = [], refusal: String = "", granted: String = "") {
            self.policies = policies
            self.refusal = refusal
            self.granted = granted
        }
    }

    /// In the order of the attachments.
    private(set) var choices: [Choice] = []
    /// What the table of each is numbered by (`PolicyTables.key`), in the same order; empty: it has none.
    private(set) var tableKeys: [String] = []

    static let annotation = Planner.policyAnnotation

    /// - Parameter expectedFrom: the place of the first pod that had no ADD yet. Where a policy would refuse its ADD, it gets nothing.
    init(
        catalogue: PolicyCatalogue, inventory: Inventory, nodeName: String, attachments: [Attachment],
        expectedFrom: Int, memory: inout PlannerMemory
    ) {
        let judge = Judge(catalogue: catalogue, inventory: inventory, nodeName: nodeName)
        let world = PlannerMemory.AssignmentWorld(
            catalogueGeneration: memory.catalogueGeneration, namespaces: inventory.namespaces)
        let isSameWorld = memory.assignmentWorld == world
        memory.assignmentWorld = world
        var places: [String: [Int]] = [:]
        for (place, pod) in inventory.pods.enumerated() { places[pod.name, default: []].append(place) }
        func pod(of attachment: Attachment) -> Pod? {
            if places.isEmpty { return nil }
            return places[attachment.podName]?.lazy.map { inventory.pods[$0] }.first {
                $0.namespace == attachment.podNamespace && $0.isMeant(byUID: attachment.podUID)
            }
        }
        // Changed in place: of most pods nothing has changed.
        var judged = memory.judged
        memory.judged = [:]
        choices.reserveCapacity(attachments.count)
        tableKeys.reserveCapacity(attachments.count)
        for attachment in attachments {
            let pod = pod(of: attachment)
            let one: PlannerMemory.Judged
            if isSameWorld, let known = judged[attachment.id], known.attachment == attachment, known.pod == pod {
                one = known
            } else {
                let choice = judge.choice(for: attachment, pod: pod)
                one = .init(
                    attachment: attachment, pod: pod, choice: choice,
                    tableKey: choice.policies.isEmpty ? "" : PolicyTables.key(choice.policies))
                judged[attachment.id] = one
            }
            let isRefused = choices.count >= expectedFrom && !one.choice.refusal.isEmpty
            choices.append(isRefused ? Choice() : one.choice)
            tableKeys.append(isRefused ? "" : one.tableKey)
        }
        if judged.count > attachments.count {
            let ids = Set(attachments.map(\.id))
            judged = judged.filter { ids.contains($0.key) }
        }
        memory.judged = judged
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
            var choice = chosen(for: subject(attachment, pod: pod))
            if let skipped, choice.refusal.isEmpty, let first = choice.policies.first {
                choice.refusal = "policy \(first.name) is refused: \(skipped)"
                choice.policies = choice.policies.map { $0.with(.kept(choice.refusal)) }
            }
            return choice
        }

        /// A pod with all that it is judged by.
        private struct Subject {
            let attachment: Attachment
            /// With those that Cilium derives and its users select by.
            let labels: [String: String]
            let namespaceLabels: [String: String]
            let annotation: String?
            /// The value that the annotation was last permitted to have.
            let granted: String
        }

        private func subject(_ attachment: Attachment, pod: Pod?) -> Subject {
            let namespaceLabels = inventory.namespaces[attachment.podNamespace] ?? [:]
            let annotation =
                pod?.annotations[PolicyAssignment.annotation] ?? attachment.annotations[PolicyAssignment.annotation]
            return Subject(
                attachment: attachment,
                labels: DerivedLabels.pod(
                    pod?.labels ?? attachment.labels, namespace: attachment.podNamespace,
                    namespaceLabels: namespaceLabels, serviceAccount: pod?.serviceAccount ?? attachment.serviceAccount),
                namespaceLabels: DerivedLabels.namespace(namespaceLabels, name: attachment.podNamespace),
                annotation: annotation,
                // What the release before gave to a pod it permitted.
                granted: attachment.grantedAnnotation ?? (attachment.assignment == nil ? "" : annotation ?? ""))
        }

        private func selects(_ policy: EgressPolicy, _ subject: Subject, onAnyNode: Bool = false) -> Bool {
            policy.selectors.contains { selector in
                (selector.pod?.matches(subject.labels) ?? true)
                    && (selector.namespace?.matches(subject.namespaceLabels) ?? true)
                    && (onAnyNode || (selector.node?.matches(nodeLabels) ?? true))
            }
        }

        private func chosen(for subject: Subject) -> Choice {
            let attachment = subject.attachment
            guard let wanted = subject.annotation else {
                let choice = selected(subject)
                return choice.policies.isEmpty && !attachment.defaultPolicy.isEmpty
                    ? named(attachment.defaultPolicy, by: "defaultPolicy", attachment) : choice
            }
            let entry = catalogue.named(wanted)
            let reason =
                wanted == AnnotationPermission.none
                ? AnnotationPermission.refusalOfNone(
                    configuration: catalogue.configuration, namespace: attachment.podNamespace)
                : entry.flatMap {
                    AnnotationPermission.refusal(
                        of: $0.policy, namespace: attachment.podNamespace,
                        // If a policy cannot be used on this node at all, the pod gets exactly this reason.
                        isSelected: selects($0.policy, subject, onAnyNode: !$0.couldSelectHere))
                }
            if let reason { return notPermitted(reason, subject, named: entry) }
            if wanted == AnnotationPermission.none { return Choice(granted: wanted) }
            var choice = named(wanted, by: "the annotation \(PolicyAssignment.annotation)", attachment)
            choice.granted = choice.refusal.isEmpty ? wanted : subject.granted
            return choice
        }

        /// All policies whose selectors match.
        private func selected(_ subject: Subject) -> Choice {
            let attachment = subject.attachment
            var choice = Choice()
            for place in catalogue.maySelect(subject.labels) {
                let entry = catalogue.entries[place]
                if entry.refusal.isEmpty {
                    if selects(entry.policy, subject) { choice.policies.append(entry.assigned(to: attachment)) }
                    continue
                }
                let before = had(entry.policy, attachment)
                // Selectors that cannot be read select whom they had; those beside them that can be read select as ever.
                guard selects(entry.policy, subject) || (entry.policy.hasUnknownSelectors && before != nil) else {
                    continue
                }
                let reason = "policy \(entry.policy.name) is refused: \(entry.refusal)"
                choice.policies.append(before?.with(.kept(reason)) ?? entry.assigned)
                if choice.refusal.isEmpty { choice.refusal = reason }
            }
            return choice
        }

        /// Of an annotation that the pod may not have, a live pod keeps what it had before. Where that was not given by an
        /// annotation, which replaces selectors, what its selectors would give it besides is held; and where it had nothing,
        /// what the annotation names: whoever writes an annotation gains nothing by it.
        private func notPermitted(_ reason: String, _ subject: Subject, named: PolicyCatalogue.Entry?) -> Choice {
            let attachment = subject.attachment
            var policies: [AssignedPolicy] = []
            let isGranted =
                subject.granted == AnnotationPermission.none
                || catalogue.named(subject.granted).flatMap { had($0.policy, attachment) } != nil
            for entry in catalogue.entries {
                if let before = had(entry.policy, attachment) {
                    let now = entry.refusal.isEmpty && entry.couldSelectHere ? entry.assigned(to: attachment) : before
                    policies.append(now.with(.kept(reason)))
                } else if !isGranted && selects(entry.policy, subject) {
                    policies.append(PolicyCatalogue.held(entry.policy, because: reason))
                }
            }
            // A pod that had no ADD was never refused: without the annotation it would have this one.
            if policies.isEmpty, !isGranted, !attachment.defaultPolicy.isEmpty {
                policies = [
                    catalogue.named(attachment.defaultPolicy).map { PolicyCatalogue.held($0.policy, because: reason) }
                        ?? PolicyCatalogue.unknown(attachment.defaultPolicy, reason)
                ]
            }
            if policies.isEmpty, !isGranted, let named {
                policies = [PolicyCatalogue.held(named.policy, because: reason)]
            }
            return Choice(policies, refusal: reason, granted: subject.granted)
        }

        private func named(_ name: String, by origin: String, _ attachment: Attachment) -> Choice {
            guard let entry = catalogue.named(name) else {
                let reason = "\(origin) names the policy \"\(name)\", which does not exist"
                let before = attachment.assignment?.first { $0.name == name && !$0.isHeld }
                return Choice(
                    [before?.with(.kept(reason)) ?? PolicyCatalogue.unknown(name, reason)], refusal: reason)
            }
            if entry.refusal.isEmpty && entry.couldSelectHere { return Choice([entry.assigned(to: attachment)]) }
            let reason =
                entry.couldSelectHere
                ? "policy \(name) is refused: \(entry.refusal)"
                : "\(origin) names the policy \"\(name)\", whose nodeSelector (\(entry.nodeSelectors)) does not match "
                    + "this node"
            return Choice(
                [
                    had(entry.policy, attachment)?.with(.kept(reason))
                        ?? PolicyCatalogue.held(entry.policy, because: reason)
                ], refusal: reason)
        }

        /// What the pod had of this policy.
        private func had(_ policy: EgressPolicy, _ attachment: Attachment) -> AssignedPolicy? {
            attachment.assignment?.first { $0.isOf(policy) && !$0.isHeld }
        }
    }
}

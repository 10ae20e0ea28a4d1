import Model

/// Whether a pod may have what its annotation names. Whoever creates a pod writes its annotations, so it is the policy
/// (`allowAnnotation`) or the helper's configuration (`egress.allowNone`) that permits it.
enum AnnotationPermission {
    /// The annotation's value for no policy at all.
    static let none = "none"

    /// Why a pod may not name the policy; nil where it may.
    ///
    /// - Parameter isSelected: the policy's own selectors match the pod, which may then have the policy alone.
    static func refusal(of policy: EgressPolicy, namespace: String, isSelected: Bool) -> String? {
        if isSelected || policy.allowAnnotation.contains(namespace) { return nil }
        let subject = "the annotation \(Planner.policyAnnotation) names the policy \"\(policy.name)\", which"
        guard policy.source == .culvert else {
            return "\(subject) does not select this pod, and only an EgressPolicy can permit others to name it "
                + "(allowAnnotation)"
        }
        return namespace.isEmpty
            ? "\(subject) does not permit it for containers without a namespace (allowAnnotation)"
            : "\(subject) does not permit it for pods of the namespace \(namespace): add the namespace to the policy's "
                + "allowAnnotation"
    }

    /// Why a pod may not choose `none`; nil where it may.
    static func refusalOfNone(configuration: Configuration, namespace: String) -> String? {
        if configuration.allowNone.contains(namespace) { return nil }
        let subject = "the annotation \(Planner.policyAnnotation): none is not permitted for"
        return namespace.isEmpty
            ? "\(subject) containers without a namespace (egress.allowNone in the helper's configuration)"
            : "\(subject) pods of the namespace \(namespace): add the namespace to egress.allowNone in the helper's "
                + "configuration"
    }
}

extension Planner {
    /// Whether an annotation alone decides about a pod of this namespace. Then its labels need not be looked up.
    public static func isDecided(
        annotation: String, namespace: String, configuration: Configuration, inventory: Inventory
    ) -> Bool {
        if annotation == AnnotationPermission.none { return configuration.allowNone.contains(namespace) }
        let named = inventory.policies.filter {
            $0.name == annotation && ($0.source == .culvert || configuration.honorCiliumPolicies)
        }
        // A name that does not exist is refused for every pod.
        guard let policy = named.first(where: { $0.source == .culvert }) ?? named.first else { return true }
        return policy.allowAnnotation.contains(namespace)
    }
}

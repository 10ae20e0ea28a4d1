import Jansson
import Model

/// What a watch shows of an object that this node writes to. For a `KubernetesPublisher`.
enum WrittenObject: Sendable {
    /// nil: there is none, or the Nodes are not listed.
    case ownNode(Node?)
    /// A policy's status; nil: it has none.
    ///
    /// - Parameter isForeign: somebody else than a helper has written over what helpers say.
    case policyStatus(name: String, status: PolicyStatus?, isForeign: Bool)
    case policyDeleted(name: String)

    /// - Parameter policy: an EgressPolicy.
    /// - Returns: nil where the policy has no name.
    static func status(of policy: JSON) -> WrittenObject? {
        guard let name = policy["metadata"]?["name"]?.string else { return nil }
        return .policyStatus(
            name: name, status: PolicyStatus(policy["status"]),
            isForeign: isForeign(policy["metadata"]?["managedFields"]?.elements ?? []))
    }

    /// Whether a field that helpers always write is somebody else's alone. (Who changes a field owns it from then on, and a
    /// helper that writes it takes it back; Kubernetes, "Server-Side Apply".)
    private static func isForeign(_ managedFields: [JSON]) -> Bool {
        var ours: Set<String> = []
        var theirs: Set<String> = []
        for entry in managedFields {
            let fields = (entry["fieldsV1"]?["f:status"]?.members ?? []).map(\.key)
            if entry["manager"]?.string == KubernetesPublisher.manager {
                ours.formUnion(fields)
            } else {
                theirs.formUnion(fields)
            }
        }
        return !theirs.intersection(["f:activeGateways", "f:candidates", "f:reason"]).isSubset(of: ours)
    }
}

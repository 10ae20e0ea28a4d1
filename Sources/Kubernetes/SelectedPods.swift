import Jansson
import Model

/// How many pods of the cluster a policy selects, for its status.
///
/// Pods whose annotation names another policy or `none` are not counted, those that only an annotation gives the policy
/// are not found: the API server cannot select by annotation.
struct SelectedPods: Equatable {
    /// What was counted by.
    let selectors: [EgressPolicy.Selector]
    /// nil: they could not be counted.
    let count: Int?

    /// Counts them, page by page.
    static func count(_ policy: EgressPolicy, _ inventory: Inventory, _ client: KubernetesClient) async throws -> Int {
        var pods: Set<String> = []
        for selector in policy.selectors {
            // Where the pod runs and as whom is not in its metadata.
            let needsSpec = selector.node != nil || selector.pod?.needsServiceAccount == true
            var fields = "status.phase!=Succeeded,status.phase!=Failed,spec.hostNetwork=false"
            var token = ""
            repeat {
                var query = [("limit", "500"), ("fieldSelector", fields)]
                let labels = selector.pod?.serverSide ?? ""
                if !labels.isEmpty { query.append(("labelSelector", labels)) }
                if !token.isEmpty { query.append(("continue", token)) }
                let page: (items: [JSON], next: String, resourceVersion: String)
                do { page = try await client.page(.pods, query: query, metadataOnly: !needsSpec) } catch let error
                    as APIError where error.code == 400 && fields.hasSuffix(",spec.hostNetwork=false")
                {
                    // Before Kubernetes 1.28 the server does not know that field.
                    fields = "status.phase!=Succeeded,status.phase!=Failed"
                    continue
                }
                for object in page.items where selects(selector, of: policy, object, inventory) {
                    pods.insert(object["metadata"]?["uid"]?.string ?? "")
                }
                token = page.next
                if token.isEmpty { break }
            } while true
        }
        return pods.count
    }

    private static func selects(
        _ selector: EgressPolicy.Selector, of policy: EgressPolicy, _ object: JSON, _ inventory: Inventory
    ) -> Bool {
        let metadata = object["metadata"]
        func map(_ key: String) -> [String: String] {
            Dictionary(
                (metadata?[key]?.members ?? []).compactMap { member in member.value.string.map { (member.key, $0) } },
                uniquingKeysWith: { first, _ in first })
        }
        if let named = map("annotations")["culvert.dev/egress-policy"], named != policy.name { return false }
        let spec = object["spec"]
        if spec?["hostNetwork"]?.bool == true { return false }
        let namespace = metadata?["namespace"]?.string ?? ""
        let namespaceLabels = inventory.namespaces[namespace] ?? [:]
        let labels = DerivedLabels.pod(
            map("labels"), namespace: namespace, namespaceLabels: namespaceLabels,
            serviceAccount: spec?["serviceAccountName"]?.string ?? "")
        return selector.pod?.matches(labels) ?? true
            && selector.namespace?.matches(DerivedLabels.namespace(namespaceLabels, name: namespace)) ?? true
            && selector.node?.matches(inventory.nodes[spec?["nodeName"]?.string ?? ""]?.labels ?? [:]) ?? true
    }
}

extension LabelSelector {
    var needsServiceAccount: Bool {
        matchLabels[DerivedLabels.serviceAccount] != nil
            || matchExpressions.contains { $0.key == DerivedLabels.serviceAccount }
    }

    /// As a `labelSelector` of a request, without what only Cilium calls labels of a pod.
    var serverSide: String {
        let equalities = matchLabels.filter { !DerivedLabels.isDerived($0.key) }.sorted { $0.key < $1.key }.map {
            "\($0.key)=\($0.value)"
        }
        let sets = matchExpressions.filter { !DerivedLabels.isDerived($0.key) }.map { requirement in
            let values = requirement.values.joined(separator: ",")
            return switch requirement.operation {
            case .isIn: "\(requirement.key) in (\(values))"
            case .notIn: "\(requirement.key) notin (\(values))"
            case .exists: requirement.key
            case .doesNotExist: "!\(requirement.key)"
            }
        }
        return (equalities + sets).joined(separator: ",")
    }
}

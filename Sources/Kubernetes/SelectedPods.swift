import Jansson
import Logging
import Model

/// How many pods of the cluster the policies select, for their status.
///
/// Pods whose annotation names another policy or `none` are not counted, those that only an annotation gives the policy
/// are not found: the API server cannot select by annotation. These are requests of one node in the cluster; a watch would
/// be sent every change of every pod.
actor SelectedPods {
    private let client: KubernetesClient
    private let logger: Logger
    private struct Counted {
        /// What was counted by.
        let selectors: [EgressPolicy.Selector]
        /// nil: they could not be counted.
        let count: Int?
        /// Why they could not be counted now.
        var problem = ""
    }
    private var counted: [String: Counted] = [:]

    init(client: KubernetesClient, logger: Logger) {
        self.client = client
        self.logger = logger
    }

    /// By policy, where they could be counted.
    var counts: [String: Int] { counted.compactMapValues(\.count) }

    /// The policy was deleted.
    func forget(_ policy: String) { counted[policy] = nil }

    /// Forgets all other policies.
    func keepOnly(_ policies: Set<String>) { counted = counted.filter { policies.contains($0.key) } }

    /// Counts the pods of a policy that is new, or whose selectors have changed.
    ///
    /// - Parameter isDue: counts the pods of every policy.
    /// - Returns: whether the number is another one.
    func count(_ policy: EgressPolicy, _ inventory: Inventory, isDue: Bool) async -> Bool {
        guard isDue || counted[policy.name]?.selectors != policy.selectors else { return false }
        do {
            let count = try await request(policy, inventory)
            let before = counted[policy.name]?.count
            counted[policy.name] = Counted(selectors: policy.selectors, count: count)
            return count != before
        } catch {
            if counted[policy.name]?.problem != "\(error)" {
                logger.notice(
                    "the pods of a policy cannot be counted",
                    metadata: ["policy": "\(policy.name)", "error": "\(error)"])
            }
            // Not before the next round: it is only a figure for people.
            counted[policy.name] = Counted(
                selectors: policy.selectors, count: counted[policy.name]?.count, problem: "\(error)")
            return false
        }
    }

    /// Counts them, page by page.
    private func request(_ policy: EgressPolicy, _ inventory: Inventory) async throws -> Int {
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
                for object in page.items where SelectedPods.selects(selector, of: policy, object, inventory) {
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
    var serverSide: String { text { !DerivedLabels.isDerived($0) } }
}

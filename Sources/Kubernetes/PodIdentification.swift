import ClusterTransport
import Inventory
import Jansson
import Logging
import Model

/// Waits until the pod of an ADD is known: by the watch, or by one request for it.
struct PodIdentification {
    private let client: KubernetesClient
    private let logger: Logger
    private var lookups: [PodLookup.Origin: (count: Int64, seconds: Double)] = [:]

    init(client: KubernetesClient, logger: Logger) {
        self.client = client
        self.logger = logger
    }

    /// Counts a pod that was identified.
    mutating func note(_ pod: PodReference, by origin: PodLookup.Origin, in elapsed: Duration) {
        let seconds = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
        let sum = lookups[origin] ?? (0, 0)
        lookups[origin] = (sum.count + 1, sum.seconds + seconds)
        logger.debug(
            "pod identified",
            metadata: ["pod": "\(pod.namespace)/\(pod.name)", "by": "\(origin)", "seconds": "\(seconds)"])
    }

    /// How many pods were identified in which way, and how long that took.
    var status: JSON {
        .object(
            PodLookup.Origin.allCases.compactMap { origin in
                lookups[origin].map { sum in
                    JSON.Member(
                        origin.rawValue,
                        PodLookupField.object(
                            (.count, .integer(sum.count)),
                            (.meanMilliseconds, .real(sum.seconds / Double(sum.count) * 1000))))
                }
            })
    }

    /// - Parameter inventory: what the watches have brought; the pod is put there where a request is faster.
    func find(
        _ pod: PodReference, in inventory: isolated KubernetesInventory
    ) async throws(PodLookup.Failure) -> PodLookup.Origin {
        guard pod.isKubernetes else { return .given }
        // Leave the plugin time to take the answer.
        let end = pod.deadline - .milliseconds(500)
        await inventory.lookForMissingPolicyKinds(until: end)
        if pod.isDecided { return .annotations }
        if inventory.knows(pod) { return .watch }
        var problem = "the API server does not know it yet"
        var backoff = Backoff(first: 0.1, ceiling: 1)
        repeat {
            do {
                if !inventory.knows(namespace: pod.namespace),
                    let namespace = try await get(.namespaces, name: pod.namespace, until: end)
                {
                    inventory.take(.set(Resource.namespaces.stamp(namespace)), of: .namespaces)
                }
                let found = try await get(.pods, namespace: pod.namespace, name: pod.name, until: end)
                if inventory.knows(pod) { return .watch }
                if let found {
                    let object = Resource.pods.stamp(found)
                    if case .success(let objects) = Manifests.read(object), case .pod(let read)? = objects.first,
                        pod.uid.isEmpty || read.hasUID(pod.uid)
                    {
                        // The watch will deliver the same object. Until then, what it has is older than this answer.
                        inventory.take(.set(object), of: .pods)
                        return .get
                    }
                    problem = "the API server has another pod of this name"
                }
            } catch { problem = "\(error)" }
            if inventory.knows(pod) { return .watch }
            try? await Task.sleep(for: min(backoff.wait(), max(.zero, end - .now)))
            if inventory.knows(pod) { return .watch }
        } while ContinuousClock.now < end
        throw PodLookup.Failure(
            "the pod \(pod.namespace)/\(pod.name) (\(pod.uid)) cannot be identified: \(problem); the kubelet will retry. The annotation culvert.dev/egress-policy works without the API server if the plugin has the capability io.kubernetes.cri.pod-annotations and the policy's allowAnnotation (for none: egress.allowNone) lists the namespace"
        )
    }

    /// One object, if it can be had in time.
    private func get(
        _ resource: Resource, namespace: String? = nil, name: String, until end: ContinuousClock.Instant
    ) async throws -> JSON? {
        try await withThrowingTaskGroup(of: JSON?.self) { [client] group in
            group.addTask { try await client.get(resource, namespace: namespace, name: name) }
            group.addTask {
                try await Task.sleep(until: end)
                throw APIError(code: 0, message: "\(client.access.server) does not answer in time")
            }
            defer { group.cancelAll() }
            return try await group.next() ?? nil
        }
    }
}

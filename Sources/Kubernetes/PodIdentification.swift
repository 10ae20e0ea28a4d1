import ClusterTransport
import Inventory
import Jansson
import Logging
import Model

/// Waits until the pod of an ADD is known: by the watch, or by one request for it.
extension KubernetesInventory {
    private func isKnown(_ pod: PodReference) -> Bool {
        known.namespaces[pod.namespace] != nil
            && known.pods.contains {
                $0.namespace == pod.namespace && $0.name == pod.name && (pod.uid.isEmpty || $0.hasUID(pod.uid))
            }
    }

    public func identify(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup {
        let start = ContinuousClock.now
        let origin = try await find(pod)
        let elapsed = ContinuousClock.now - start
        let seconds = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
        let sum = lookups[origin] ?? (0, 0)
        lookups[origin] = (sum.count + 1, sum.seconds + seconds)
        logger.debug(
            "pod judged", metadata: ["pod": "\(pod.namespace)/\(pod.name)", "by": "\(origin)", "seconds": "\(seconds)"])
        return PodLookup(origin)
    }

    private func find(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup.Origin {
        guard pod.isKubernetes else { return .given }
        await lookForMissingPolicyKinds(until: pod.deadline - .milliseconds(500))
        if pod.isDecided { return .annotations }
        if isKnown(pod) { return .watch }
        // Leave the plugin time to take the answer.
        let end = pod.deadline - .milliseconds(500)
        var problem = "the API server does not know it yet"
        var backoff = Backoff(first: 0.1, ceiling: 1)
        repeat {
            do {
                if known.namespaces[pod.namespace] == nil,
                    let namespace = try await get(.namespaces, name: pod.namespace, until: end)
                {
                    take(.set(Resource.namespaces.stamp(namespace)), of: .namespaces)
                }
                let found = try await get(.pods, namespace: pod.namespace, name: pod.name, until: end)
                if isKnown(pod) { return .watch }
                if let found {
                    let object = Resource.pods.stamp(found)
                    if case .success(let objects) = Manifests.read(object), case .pod(let read)? = objects.first,
                        pod.uid.isEmpty || read.hasUID(pod.uid)
                    {
                        // The watch will say the same; before that, its word would be an older one.
                        take(.set(object), of: .pods)
                        return .get
                    }
                    problem = "the API server has another pod of this name"
                }
            } catch { problem = "\(error)" }
            if isKnown(pod) { return .watch }
            try? await Task.sleep(for: min(backoff.wait(), max(.zero, end - .now)))
            if isKnown(pod) { return .watch }
        } while ContinuousClock.now < end
        throw PodLookup.Failure(
            "the pod \(pod.namespace)/\(pod.name) (\(pod.uid)) cannot be judged: \(problem); the kubelet tries again, and the annotation culvert.dev/egress-policy with the capability io.kubernetes.cri.pod-annotations decides without the API server"
        )
    }

    /// One object, if it can be had in time.
    private nonisolated func get(
        _ resource: Resource, namespace: String? = nil, name: String, until end: ContinuousClock.Instant
    ) async throws -> JSON? {
        try await withThrowingTaskGroup(of: JSON?.self) { group in
            group.addTask { try await self.client.get(resource, namespace: namespace, name: name) }
            group.addTask {
                try await Task.sleep(until: end)
                throw APIError(code: 0, message: "\(self.client.access.server) does not answer in time")
            }
            defer { group.cancelAll() }
            return try await group.next() ?? nil
        }
    }
}

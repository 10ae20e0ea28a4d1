import ClusterTransport
import Inventory

/// Reads a ConfigMap of kube-system that does not change under a running cluster: once, and again until it can be had.
struct ConfigMapReader: Sendable {
    /// Cilium's settings, and kubeadm's, which name the Services' networks.
    static let names = ["cilium-config", "kubeadm-config"]

    enum Answer: Sendable {
        case found(ManifestObject)
        /// The server has answered, and there is nothing to be had.
        ///
        /// - Parameter why: empty where there is no such ConfigMap.
        case nothing(_ why: String)
        /// Why the server could not be asked.
        case problem(String)
    }

    let client: KubernetesClient
    let name: String
    let clock: any Clock<Duration>

    /// Until the ConfigMap is found, or the task is cancelled.
    func run(_ report: @Sendable (Answer) async -> Void) async {
        var backoff = Backoff(first: 1, ceiling: 300)
        var absence = Backoff(first: 1, ceiling: 3)
        let what = "ConfigMap kube-system/\(name)"
        while !Task.isCancelled {
            do {
                if let found = try await client.get(.configMaps, namespace: "kube-system", name: name) {
                    switch Manifests.read(Resource.configMaps.stamp(found)) {
                    case .success(let objects) where !objects.isEmpty: return await report(.found(objects[0]))
                    case .success: await report(.nothing("\(what) cannot be understood"))
                    case .failure(let problem): await report(.nothing("\(what) cannot be understood: \(problem)"))
                    }
                } else {
                    await report(.nothing(""))
                }
                // It may be made, or mended, later.
                try? await clock.sleep(for: .seconds(300))
            } catch {
                if Task.isCancelled { return }
                if let refused = error as? APIError, refused.code == 403 {
                    await report(
                        .nothing(
                            "permission to read \(what) is missing; apply install/kubernetes/base/rbac.yaml: \(refused)"
                        ))
                } else {
                    await report(.problem("\(what): \(error)"))
                }
                if (error as? APIError)?.isOfAServerThatIsAway == true {
                    await client.presence.wait(absence.wait(), clock)
                } else {
                    try? await clock.sleep(for: backoff.wait())
                }
            }
        }
    }
}

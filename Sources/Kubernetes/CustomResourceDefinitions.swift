import ClusterTransport
import Model

/// Custom resources whose definition is not installed: there are none of them, until somebody installs it.
enum CustomResourceDefinitions {
    /// How long the server must have said that a resource does not exist before what was known of it goes.
    static let missingPatience = Duration.seconds(10)
    /// At an ADD a kind of policy that is missing is looked for again where the last look is older.
    static let lookAge = Duration.seconds(1)
    /// The most that an ADD waits for such a look.
    static let lookPatience = Duration.seconds(1)
}

extension KubernetesInventory {
    /// For people: not a problem, as a cluster may use one kind of policy only.
    var missingPolicyKindNotices: [String] {
        Resource.policyKinds.filter { missingDefinitions.contains($0) }.map {
            "\($0.kind): its CustomResourceDefinition is not installed; looked for every 10 s"
        }
    }

    /// A pod may start right after the definition of a policy was installed: looks for it once more, so that the pod is not
    /// judged as having no policy.
    ///
    /// - Parameter end: no longer than until then. A server that does not answer leaves what is known.
    func lookForMissingPolicyKinds(until end: ContinuousClock.Instant) async {
        var waiting: [Resource: Int] = [:]
        for resource in Resource.policyKinds where missingDefinitions.contains(resource) {
            guard let last = answers[resource] else { continue }
            if last.age() > CustomResourceDefinitions.lookAge, !isLooking.contains(resource) {
                isLooking.insert(resource)
                followAnew(resource)
            }
            // Other pods wait for a look that is under way.
            if isLooking.contains(resource) { waiting[resource] = last.count }
        }
        let end = min(end, .now + CustomResourceDefinitions.lookPatience)
        while waiting.contains(where: { answers[$0.key]?.count == $0.value }), ContinuousClock.now < end {
            try? await Task.sleep(for: .milliseconds(5))
        }
        isLooking.subtract(waiting.keys)
    }
}

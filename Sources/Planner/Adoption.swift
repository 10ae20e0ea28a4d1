import Model

/// Why a pod of this node has no ADD, so that it was adopted.
///
/// What is known is when the pod started, not when its sandbox did, and only the sandbox has an ADD. Two things are certain:
/// a sandbox is never older than its pod, and it does not outlive a reboot. (A sandbox that the kubelet has made anew without a
/// reboot is younger than its pod; nothing in the API says so.)
public enum Adoption: Equatable, Sendable {
    /// The pod started before the plugin was in the chain.
    case beforeCulvert(started: Int64, chained: Int64)
    /// Its sandbox started while the plugin should have been in the chain.
    ///
    /// - Parameters:
    ///   - started: the earliest time at which the sandbox can have started.
    ///   - isOfReboot: that is the node's start; the pod is older.
    ///   - orWithoutHelper: the plugin may also have let the pod start without the helper.
    case notCalled(started: Int64, isOfReboot: Bool, chained: Int64, orWithoutHelper: Bool)
    /// Nobody knows, and why.
    case notKnown(String)

    /// The runtime reads the directory when it changes, and Kubernetes tells whole seconds: what is nearer than this, seconds,
    /// is not told apart.
    private static let blur: Int64 = 1

    /// - Parameter podStart: when its Pod says that it started, seconds since 1970; nil: the Pod does not say.
    public init(podStart: Int64?, facts: LocalFacts) {
        guard let chain = facts.chain else {
            self = .notKnown("culvertd install has not told since when the plugin is in the chain")
            return
        }
        let isOfReboot = facts.bootTime.map { boot in podStart.map { $0 < boot } ?? true } ?? false
        guard let earliest = isOfReboot ? facts.bootTime : podStart else {
            self = .notKnown("its Pod does not say when it started")
            return
        }
        if earliest > chain.since + Adoption.blur {
            self = .notCalled(
                started: earliest, isOfReboot: isOfReboot, chained: chain.since,
                orWithoutHelper: chain.allowsWithoutHelper)
        } else if let podStart, podStart < chain.since {
            self =
                chain.isFound
                ? .notKnown(
                    "the plugin was in the chain already when culvertd install first looked (\(Timestamp.text(chain.since)))"
                ) : .beforeCulvert(started: podStart, chained: chain.since)
        } else {
            self =
                podStart == nil
                ? .notKnown("its Pod does not say when it started")
                : .notKnown("it started in the moment in which the plugin was chained")
        }
    }

    /// As status and `attachments` have it in JSON.
    public var key: String {
        switch self {
        case .beforeCulvert: "beforeCulvert"
        case .notCalled: "pluginNotCalled"
        case .notKnown: "notKnown"
        }
    }

    /// Continues a sentence that begins with the pod's name.
    public var text: String {
        switch self {
        case .beforeCulvert(let started, let chained):
            return
                "was there before Culvert (it started at \(Timestamp.text(started)), the plugin is in the chain since \(Timestamp.text(chained)))"
        case .notCalled(let started, let isOfReboot, let chained, let orWithoutHelper):
            let when =
                isOfReboot
                ? "the node started at \(Timestamp.text(started)), and the pod's sandbox after it"
                : "it started at \(Timestamp.text(started))"
            return
                "started without Culvert: the plugin was not called\(orWithoutHelper ? ", or could not reach the helper and let it start (whenHelperUnavailable)" : "") (\(when); the plugin is in the chain since \(Timestamp.text(chained)))"
        case .notKnown(let why): return "had no ADD, and whether it was there before Culvert is not known (\(why))"
        }
    }

    /// What to do about a pod that has a policy.
    public var remedy: String {
        let restart = "it has no routes with the smaller MTU, restart it"
        guard case .notCalled = self else { return restart }
        return
            "its first packets may have left by this node; \(restart), and look at the log of culvertd install for who took the plugin out of the chain then"
    }
}

extension Plan {
    /// How many adopted pods there are of each kind (`Adoption.key`).
    public var adoptions: [String: Int] {
        attachments.reduce(into: [:]) { counts, entry in
            if let adoption = entry.adoption { counts[adoption.key, default: 0] += 1 }
        }
    }
}

import ClusterTransport
import Inventory

/// When this node is to write the status of a policy that says something else than it should.
///
/// Every node with a pod of the policy can write the status, and so can each candidate; if nobody can carry the policy out, every
/// node can. No node knows which others there are. So each waits for a time that depends on its rank, and writes nothing if
/// another node's write has made the status right in the meantime.
struct ReportingRank {
    enum Time: Equatable {
        case now
        case after(Duration)
    }

    private let clock: any Clock<Duration>
    /// How long this node has left it to others to write what is missing.
    private var waits: [String: (status: PolicyStatus, elapsed: @Sendable () -> Duration)] = [:]
    /// What this node wrote last, and when.
    private var written: [String: (status: PolicyStatus, elapsed: @Sendable () -> Duration)] = [:]

    init(clock: any Clock<Duration>) { self.clock = clock }

    /// There is nothing to write for this policy.
    mutating func rest(_ policy: String) { waits[policy] = nil }

    mutating func wrote(_ status: PolicyStatus, of policy: String) {
        waits[policy] = nil
        written[policy] = (status, clock.stopwatch())
    }

    /// The policy was deleted.
    mutating func forget(_ policy: String) {
        waits[policy] = nil
        written[policy] = nil
    }

    /// - Parameters:
    ///   - wanted: the status as it should be.
    ///   - isDownForUsers: nodes with pods of the policy have said that all of its gateways are down.
    ///   - isForeign: somebody else than a helper has written the status that was seen.
    mutating func whenToWrite(
        _ wanted: PolicyStatus, _ report: PolicyReport, seen: PolicyStatus?, isDownForUsers: Bool,
        isForeign: Bool = false
    ) -> Time {
        // How long others have had is not counted anew because the time of day or the number of pods is another one.
        var key = wanted.withoutTimes
        key.selectedPods = nil
        let before = waits[report.name].flatMap { $0.status == key ? $0.elapsed : nil }
        let elapsed = before ?? clock.stopwatch()
        waits[report.name] = (key, elapsed)
        var wait = ReportingRank.wait(report, isDownForUsers: isDownForUsers)
        if let seen, seen.activeGateways == wanted.activeGateways, seen.upGateways == wanted.upGateways,
            seen.reason == wanted.reason, seen.isRefused == wanted.isRefused,
            seen.observedGeneration == wanted.observedGeneration
        {
            // Only the count differs, and a single node reports that.
            wait = .zero
        }
        if let last = written[report.name],
            last.status == wanted || (isForeign && last.status.withoutTimes == wanted.withoutTimes)
        {
            // Another writer has changed the status since, or the server does not store it.
            wait = max(wait, .seconds(60) - last.elapsed() + elapsed())
        }
        return elapsed() >= wait ? .now : .after(wait - elapsed())
    }

    private static func wait(_ report: PolicyReport, isDownForUsers: Bool) -> Duration {
        switch report.standing {
        // A second, in which what has just begun to change ends to; then about fifty nodes a second.
        case .user: .seconds(1) + .milliseconds(min(report.rank * 20, 60_000))
        case .candidate: .seconds((isDownForUsers ? 600 : 0) + report.rank * 10)
        case .bystander: .seconds(report.rank < 60 ? report.rank : 60 + report.rank % 120)
        }
    }
}

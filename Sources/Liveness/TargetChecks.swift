import CLinux
import Model
import Netlink
import Planner
import Synchronization

/// Connects to the targets of policies from this node's egress addresses, every second. Where none of an identity's targets
/// has answered three times in a row, this node does not serve it (`healthChecks.targets`).
public final class TargetChecks: Sendable {
    private struct Shared {
        var wanted: [TargetCheck] = []
        var known: Set<EgressSpecification> = []
        /// nil: the results of an earlier run have not been loaded yet.
        var verdicts: TargetVerdicts?
        /// The results that were reported last.
        var told = TargetVerdicts()
    }
    private let shared = Mutex(Shared())
    private let wakeup: Int32
    /// What answers and what does not, whenever that changes.
    public let changes: AsyncStream<TargetVerdicts>
    private let change: AsyncStream<TargetVerdicts>.Continuation

    /// Between two checks; between a miss and the next check; how long an answer may take. Nanoseconds.
    private static let interval: Int64 = 1_000_000_000
    private static let afterMiss: Int64 = 700_000_000
    private static let patience: Int64 = 500_000_000

    /// - Throws: where the system gives no descriptor.
    public init() throws {
        wakeup = culvert_wakeup_make()
        guard wakeup >= 0 else { throw NetlinkError(operation: "eventfd", code: -wakeup) }
        (changes, change) = AsyncStream.makeStream(
            of: TargetVerdicts.self, bufferingPolicy: .bufferingNewest(1))
    }

    deinit { close(wakeup) }

    /// - Throws: where the system gives no thread.
    public func start() throws {
        try BlockingThread.start("targets") { [self] in
            var next: [EgressSpecification: Int64] = [:]
            while true {
                let now = culvert_monotonic_nanoseconds()
                let wanted = shared.withLock { $0.wanted }
                let due = wanted.filter { (next[$0.egress] ?? 0) <= now }
                for (check, answers) in TargetChecks.ask(due, until: now + TargetChecks.patience) {
                    if let answers { shared.withLock { $0.verdicts?.took(check.egress, answers: answers) } }
                    next[check.egress] = now + (answers == true ? TargetChecks.interval : TargetChecks.afterMiss)
                }
                let known = Set(wanted.map(\.egress))
                next = next.filter { known.contains($0.key) }
                tell()
                let soonest = next.values.min() ?? now + 60_000_000_000
                _ = culvert_wakeup_wait(wakeup, max(soonest, now + 10_000_000))
            }
        }
    }

    private func tell() {
        let news = shared.withLock { shared -> TargetVerdicts? in
            guard let verdicts = shared.verdicts,
                verdicts.answering != shared.told.answering || verdicts.silent != shared.told.silent
            else { return nil }
            shared.told = verdicts
            return verdicts
        }
        if let news { change.yield(news) }
    }

    /// What was known when somebody asked last. To be called once, before `follow`.
    public func begin(_ verdicts: TargetVerdicts) {
        shared.withLock { ($0.verdicts, $0.told) = (verdicts, verdicts) }
    }

    /// Checks these from now on.
    ///
    /// - Parameter known: whose verdicts are kept, also while they cannot be checked.
    public func follow(_ checks: [TargetCheck], known: Set<EgressSpecification>) {
        let isNews = shared.withLock { shared in
            defer { (shared.wanted, shared.known) = (checks, known) }
            if shared.known != known { shared.verdicts?.keep(known) }
            return shared.wanted != checks
        }
        if isNews { culvert_wakeup_signal(wakeup) }
    }

    /// What this host is short of, and no target is to blame for.
    private static let shortages: Set<Int32> = [-EMFILE, -ENFILE, -ENOBUFS, -ENOMEM]

    /// Connects to all targets at once. One answer is enough.
    ///
    /// - Returns: whether there was one; nil: not all could be asked, for want of descriptors or memory.
    private static func ask(_ checks: [TargetCheck], until: Int64) -> [(TargetCheck, Bool?)] {
        let begun = checks.map { check in
            check.egress.targets.map { target in
                culvert_tcp_begin(check.source?.v4Value ?? 0, target.address.v4Value, target.port, check.device)
            }
        }
        return zip(checks, begun).map { check, sockets in
            var answers = false
            for socket in sockets where socket >= 0 { answers = culvert_tcp_finish(socket, until) == 1 || answers }
            return (check, answers ? true : sockets.contains(where: shortages.contains) ? nil : false)
        }
    }
}

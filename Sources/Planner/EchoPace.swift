import Model

/// How often nodes send echoes to a gateway that serves many: as often as their policies require, or less often if the
/// gateway asks for it.
public enum EchoPace {
    /// Of a node: milliseconds between two echoes of one sender, which its helper publishes where it serves many.
    public static let annotation = "culvert.dev/echo-interval"

    /// Echoes a second that a gateway may be sent before it asks for fewer. Its kernel returns each; at less than 20 us an
    /// echo (Benchmarks/README.md, "What echoes cost") that is a third of a core, which a gateway's cores share.
    static let most = 20_000
    /// What it asks for is meant to come to no more than this, so that a few nodes more or fewer change nothing.
    static let aim = 15_000
    /// Milliseconds; what is asked for is a multiple of it.
    private static let step = 50

    /// What a gateway asks for.
    ///
    /// - Parameters:
    ///   - intervals: between two echoes of one sender, milliseconds, for each identity that it serves.
    ///   - senders: nodes that could send to it. Nobody knows which of them have pods of a policy.
    ///   - before: what it asked for last; nil: nothing.
    /// - Returns: milliseconds; nil: nothing, because each policy's own interval will do.
    public static func asked(_ intervals: [Int], senders: Int, before: Int?) -> Int? {
        /// The least that keeps the rate below a limit; 0: nothing has to be asked for.
        func needed(_ limit: Int) -> Int {
            func rate(_ asked: Int) -> Int {
                intervals.reduce(0) { $0 + max(0, senders) * 1000 / max($1, asked, 1) }
            }
            if rate(0) <= limit { return 0 }
            let slowest = HealthChecks.intervals.upperBound
            return stride(from: step, to: slowest, by: step).first { rate($0) <= limit } ?? slowest
        }
        let now = before ?? 0
        let least = needed(most)
        let comfortable = needed(aim)
        // More often only when there is room for it, more seldom only when it has to be.
        if least > now || comfortable < now { return comfortable == 0 ? nil : comfortable }
        return before
    }

    /// What a gateway has asked for; nil: nothing, or something that is no interval.
    static func asked(by gateway: Node?) -> Int? {
        gateway?.annotations[annotation].flatMap { Int($0) }.flatMap {
            HealthChecks.intervals.contains($0) ? $0 : nil
        }
    }
}

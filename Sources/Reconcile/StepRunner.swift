import CLinux
import Netlink

/// Carries out steps in their order. A step that fails holds only what depends on it.
enum StepRunner {
    /// - Parameter execute: carries out steps that need nothing of each other, in their order, and says which failed, by
    ///   their place in what it was given.
    static func run(_ steps: [Step], execute: ([Step]) -> [Int: any Error]) -> StepOutcome {
        var outcome = StepOutcome()
        var start = steps.startIndex
        while start < steps.endIndex {
            var end = start
            while end < steps.endIndex, steps[end].phase.batch == steps[start].phase.batch { end += 1 }
            var batch: [Step] = []
            batch.reserveCapacity(end - start)
            for step in steps[start..<end] {
                if !outcome.missing.isEmpty, step.needs.contains(where: outcome.missing.contains) {
                    outcome.leave(step)
                } else {
                    batch.append(step)
                }
            }
            if !batch.isEmpty {
                let failures = execute(batch)
                for (place, error) in failures.sorted(by: { $0.key < $1.key }) { outcome.fail(batch[place], error) }
                for (place, step) in batch.enumerated() where failures[place] == nil {
                    outcome.changes[step.part, default: 0] += 1
                }
            }
            start = end
        }
        return outcome
    }
}

/// What came of a list of steps.
struct StepOutcome {
    struct Failure {
        let step: Step
        let error: any Error
    }
    /// By kind of object.
    fileprivate(set) var changes: [KernelPart: Int] = [:]
    fileprivate(set) var failures: [Failure] = []
    /// Steps that were not tried, because something that they need failed.
    fileprivate(set) var left: [Step] = []
    /// What is not true because of that.
    fileprivate(set) var missing: Set<Requirement> = []

    fileprivate mutating func fail(_ step: Step, _ error: any Error) {
        failures.append(Failure(step: step, error: error))
        missing.formUnion(step.provides)
        // A route of another program is in the place of ours, so no rule may lead there.
        if (error as? NetlinkError)?.code == EEXIST, case .addRoute(let route) = step.action {
            missing.insert(.holds(table: route.table))
        }
    }
    fileprivate mutating func leave(_ step: Step) {
        left.append(step)
        missing.formUnion(step.provides)
    }

    var isComplete: Bool { failures.isEmpty && left.isEmpty }
}

import Model

/// What is known of the targets of this node's egress identities (`healthChecks.targets`). A value without a clock and sockets.
///
/// An identity with targets is served when one of them has answered, until none has answered three times in a row. One that
/// never was asked is not served: not known is never nothing.
public struct TargetVerdicts: Equatable, Sendable {
    /// Egress identities that are served. nil: targets are not checked here, and all are served (`culvertctl plan`
    /// without a helper).
    public private(set) var answering: Set<EgressSpecification>?
    /// How often in a row none of an identity's targets has answered, as long as that matters: up to three.
    private var missed: [EgressSpecification: Int] = [:]
    private static let misses = 3

    /// Targets are not checked.
    public init() {}
    /// - Parameter answering: identities whose targets answered at the last check.
    public init(answering: Set<EgressSpecification>) { self.answering = answering }

    /// One identity's targets were asked.
    public mutating func took(_ egress: EgressSpecification, answers: Bool) {
        if answers {
            answering = (answering ?? []).union([egress])
            missed[egress] = nil
            return
        }
        missed[egress] = min((missed[egress] ?? 0) + 1, TargetVerdicts.misses)
        if missed[egress] == TargetVerdicts.misses { answering?.remove(egress) }
    }

    /// Forgets all others. What cannot be asked at the moment keeps its verdict.
    public mutating func keep(_ known: Set<EgressSpecification>) {
        answering?.formIntersection(known)
        missed = missed.filter { known.contains($0.key) }
    }

    /// The identities, of those that were asked for, that this node does not serve, with the reason.
    public var silent: [EgressSpecification: String] {
        Dictionary(
            uniqueKeysWithValues: missed.filter { $0.value >= TargetVerdicts.misses }.map {
                ($0.key, "no answer from \(TargetVerdicts.targets($0.key))")
            })
    }

    /// It is not known yet whether the targets of an identity answer that is not served.
    func isPending(_ egress: EgressSpecification) -> Bool {
        self[egress] != nil && (missed[egress] ?? 0) < TargetVerdicts.misses
    }

    /// Why this node does not serve an identity; nil: because of its targets it may.
    public subscript(_ egress: EgressSpecification) -> String? {
        guard let answering, !egress.targets.isEmpty, !answering.contains(egress) else { return nil }
        return (missed[egress] ?? 0) >= TargetVerdicts.misses
            ? "no answer from \(TargetVerdicts.targets(egress))"
            : "no answer yet from \(TargetVerdicts.targets(egress))"
    }

    private static func targets(_ egress: EgressSpecification) -> String {
        egress.targets.map(\.description).joined(separator: ", ")
    }
}

import ClusterTransport
import Foundation
import Inventory
import Jansson
import Logging
import Model

/// What the node says of itself (annotations of its Node) and of policies (their status): when it changes, and never on a
/// timer.
extension KubernetesInventory {
    static let manager = "culvertd"

    public func publish(annotations: [String: String]) {
        wanted = annotations
        wake.yield()
    }

    /// The Node lacks what was said: somebody has taken it away, or the Node was made anew.
    private var isForgotten: Bool {
        guard let node = known.nodes[nodeName] else { return false }
        return wanted.contains { $0.key != "kilo.squat.ai/last-seen" && node.annotations[$0.key] != $0.value }
    }

    /// The watch needs a moment to tell of our own words.
    private static let echoPatience = Duration.seconds(5)

    /// Says what is wanted, when it differs from what was said last; nothing periodic.
    func keepPublished() async {
        for await _ in wakes {
            if isOpen(.reports) { await writeReports() }
            let isEchoDue = sincePublished() > KubernetesInventory.echoPatience
            if listed.contains(.nodes), known.nodes[nodeName] != nil {
                let annotations = wanted
                if isOpen(.annotations), annotations != published || (isForgotten && isEchoDue) {
                    await write(annotations)
                }
                // Whether it is there by then.
                if isForgotten { lookAgain(.echo, after: KubernetesInventory.echoPatience + .milliseconds(200)) }
            }
            if Task.isCancelled { return }
        }
    }

    /// A way of telling that failed is closed for a while; others are not.
    private func isOpen(_ reason: Reason) -> Bool { gates[reason].map { $0.since() >= $0.wait } ?? true }
    private func close(_ reason: Reason, _ error: any Error) {
        var backoff = gates[reason]?.backoff ?? Backoff(first: 0.2, ceiling: 30)
        let wait = backoff.wait(atLeast: (error as? APIError)?.retryAfter)
        gates[reason] = (clock.stopwatch(), wait, backoff)
        lookAgain(reason, after: wait)
    }

    private func lookAgain(_ reason: Reason, after time: Duration) {
        again[reason]?.cancel()
        again[reason] = Task {
            try? await clock.sleep(for: time)
            if !Task.isCancelled { wake.yield() }
        }
    }

    private func write(_ annotations: [String: String]) async {
        do {
            try await client.apply(
                .nodes, name: nodeName, manager: KubernetesInventory.manager,
                .make(
                    ("apiVersion", .string("v1")), ("kind", .string("Node")),
                    (
                        "metadata",
                        .make(
                            ("name", .string(nodeName)),
                            (
                                "annotations",
                                .strings(annotations.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
                            ))
                    )))
            published = annotations
            sincePublished = clock.stopwatch()
            gates[.annotations] = nil
            publishingProblem = nil
        } catch {
            publishingProblem = "the annotations of Node \(nodeName) cannot be written: \(error)"
            logger.warning("publishing failed", metadata: ["error": "\(error)"])
            close(.annotations, error)
        }
    }

    public func report(_ policies: [PolicyReport]) {
        guard policies != wantedReports else { return }
        wantedReports = policies
        wake.yield()
    }

    /// Writes the status of policies that differ from what was written last.
    private func writeReports() async {
        let wanted = wantedReports.map { report in
            var report = report
            report.selectedPods = lacksSelectedPods ? nil : counted[report.name]?.count
            return report
        }
        reported = reported.filter { name, _ in wanted.contains { $0.name == name } }
        turns = turns.filter { entry in wantedReports.contains(entry.key) }
        var nextTurn: Duration?
        for policy in wanted where reported[policy.name] != policy {
            switch turn(of: policy) {
            case .now: break
            case .whenSomethingChanges:
                reported[policy.name] = nil
                continue
            case .after(let wait):
                reported[policy.name] = nil
                nextTurn = min(nextTurn ?? wait, wait)
                continue
            }
            // Once, whatever comes of it, until there is something else to say.
            reported[policy.name] = policy
            do {
                try await client.apply(
                    .egressPolicies, name: policy.name, subresource: "status", manager: KubernetesInventory.manager,
                    .make(
                        ("apiVersion", .string(Resource.egressPolicies.apiVersion)),
                        ("kind", .string(Resource.egressPolicies.kind)),
                        ("metadata", .make(("name", .string(policy.name)))),
                        (
                            "status",
                            .make(
                                ("activeGateways", .array(policy.activeGateways.map { .string($0) })),
                                ("selectedPods", policy.selectedPods.map { .integer(Int64($0)) }),
                                ("reason", .string(policy.reason)))
                        )))
                gates[.reports] = nil
            } catch let error as APIError where error.code == 404 {
                // It is gone by now.
            } catch {
                logger.warning(
                    "the status of a policy cannot be written",
                    metadata: ["policy": "\(policy.name)", "error": "\(error)"])
                let code = (error as? APIError)?.code ?? 0
                if !lacksSelectedPods, "\(error)".contains("not declared in schema") {
                    // The CustomResourceDefinition of an earlier release: without the count.
                    lacksSelectedPods = true
                    wake.yield()
                } else if code < 400 || code >= 429 {
                    reported[policy.name] = nil
                    close(.reports, error)
                    break
                }
            }
        }
        if let nextTurn { lookAgain(.turn, after: nextTurn) }
    }

    private enum Turn {
        case now
        case after(Duration)
        case whenSomethingChanges
    }

    /// Whether it is this node's turn to tell of a policy without a gateway: nobody knows which nodes run a helper, so the
    /// first by name goes first, and whoever sees that it is told has nothing to say.
    private func turn(of policy: PolicyReport) -> Turn {
        guard policy.activeGateways.isEmpty, policy.rank > 0 else { return .now }
        // Who has told it goes on telling it.
        if let last = reported[policy.name], last.activeGateways.isEmpty, last.reason == policy.reason { return .now }
        var key = policy
        key.selectedPods = nil
        if seenReasons[policy.name] == policy.reason {
            turns[key] = nil
            return .whenSomethingChanges
        }
        let elapsed = turns[key] ?? clock.stopwatch()
        turns[key] = elapsed
        let wait = Duration.seconds(policy.rank < 60 ? policy.rank : 60 + policy.rank % 120)
        return elapsed() >= wait ? .now : .after(wait - elapsed())
    }
}

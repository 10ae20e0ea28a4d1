import ClusterTransport
import Foundation
import Inventory
import Jansson
import Logging
import Model

/// Writes the annotations of the own Node and the status of EgressPolicies: when they change, and never on a timer.
extension KubernetesInventory {
    static let manager = "culvertd"

    public func publish(annotations: [String: String]) {
        wanted = annotations
        publishRequested.yield()
    }

    /// The Node lacks annotations that were written: somebody has removed them, or the Node was created anew.
    private var lacksOwnAnnotations: Bool {
        guard let node = known.nodes[nodeName] else { return false }
        return wanted.contains { $0.key != "kilo.squat.ai/last-seen" && node.annotations[$0.key] != $0.value }
    }

    /// How long the watch may take to show an annotation that was just written.
    private static let echoPatience = Duration.seconds(5)

    /// Writes what differs from what was written last, at every request. Until the task is cancelled.
    func keepPublished() async {
        for await _ in publishRequests {
            if mayWrite(.reports) { await writeReports() }
            let isEchoDue = sincePublished() > KubernetesInventory.echoPatience
            if listed.contains(.nodes), known.nodes[nodeName] != nil {
                let annotations = wanted
                if mayWrite(.annotations), annotations != published || (lacksOwnAnnotations && isEchoDue) {
                    await write(annotations)
                }
                // Looks whether the watch shows them by then.
                if lacksOwnAnnotations {
                    requestPublishing(.annotationsSeen, after: KubernetesInventory.echoPatience + .milliseconds(200))
                }
            }
            if Task.isCancelled { return }
        }
    }

    /// One kind of write that failed waits for its back-off; the other does not wait for it.
    private func mayWrite(_ kind: PublishingWait) -> Bool { rateLimits[kind].map { $0.since() >= $0.wait } ?? true }
    private func backOff(_ kind: PublishingWait, after error: any Error) {
        var backoff = rateLimits[kind]?.backoff ?? Backoff(first: 0.2, ceiling: 30)
        let wait = backoff.wait(atLeast: (error as? APIError)?.retryAfter)
        rateLimits[kind] = (clock.stopwatch(), wait, backoff)
        requestPublishing(kind, after: wait)
    }

    private func requestPublishing(_ wait: PublishingWait, after time: Duration) {
        retryTimers[wait]?.cancel()
        retryTimers[wait] = Task {
            try? await clock.sleep(for: time)
            if !Task.isCancelled { publishRequested.yield() }
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
            rateLimits[.annotations] = nil
            publishingProblem = nil
        } catch {
            publishingProblem = "the annotations of Node \(nodeName) cannot be written: \(error)"
            logger.warning("publishing failed", metadata: ["error": "\(error)"])
            backOff(.annotations, after: error)
        }
    }

    public func report(_ policies: [PolicyReport]) {
        guard policies != wantedReports else { return }
        wantedReports = policies
        publishRequested.yield()
    }

    /// Writes the status of policies that differ from what was written last.
    private func writeReports() async {
        let wanted = wantedReports.map { report in
            var report = report
            report.selectedPods = lacksSelectedPods ? nil : counted[report.name]?.count
            return report
        }
        reported = reported.filter { name, _ in wanted.contains { $0.name == name } }
        reportingRankWait = reportingRankWait.filter { entry in wantedReports.contains(entry.key) }
        var shortestWait: Duration?
        for policy in wanted where reported[policy.name] != policy {
            switch whenToReport(policy) {
            case .now: break
            case .whenSomethingChanges:
                reported[policy.name] = nil
                continue
            case .after(let wait):
                reported[policy.name] = nil
                shortestWait = min(shortestWait ?? wait, wait)
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
                rateLimits[.reports] = nil
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
                    publishRequested.yield()
                } else if code < 400 || code >= 429 {
                    reported[policy.name] = nil
                    backOff(.reports, after: error)
                    break
                }
            }
        }
        if let shortestWait { requestPublishing(.reportingRank, after: shortestWait) }
    }

    private enum ReportingTime {
        case now
        case after(Duration)
        case whenSomethingChanges
    }

    /// When this node is to report a policy without a gateway. Nobody knows which nodes run a helper, so the nodes take turns
    /// by name, and a node that sees the reason in the policy's status has nothing to report.
    private func whenToReport(_ policy: PolicyReport) -> ReportingTime {
        guard policy.activeGateways.isEmpty, policy.rank > 0 else { return .now }
        // The node that has reported it goes on reporting it.
        if let last = reported[policy.name], last.activeGateways.isEmpty, last.reason == policy.reason { return .now }
        var key = policy
        key.selectedPods = nil
        if seenReasons[policy.name] == policy.reason {
            reportingRankWait[key] = nil
            return .whenSomethingChanges
        }
        let elapsed = reportingRankWait[key] ?? clock.stopwatch()
        reportingRankWait[key] = elapsed
        let wait = Duration.seconds(policy.rank < 60 ? policy.rank : 60 + policy.rank % 120)
        return elapsed() >= wait ? .now : .after(wait - elapsed())
    }
}

import ClusterTransport
import FoundationEssentials
import Inventory
import Jansson
import Logging
import Model

/// Writes the annotations of the own Node, the status of EgressPolicies, and Events: when they change, and never on a timer.
public actor KubernetesPublisher: NodePublisher {
    static let manager = "culvertd"

    private let client: KubernetesClient
    private let nodeName: String
    private let inventory: KubernetesInventory
    private let clock: any Clock<Duration>
    private let logger: Logger
    private let events: EventRecorder
    private let selectedPods: SelectedPods

    /// What should be published, and what was written last.
    private var wanted: [String: String] = [:]
    private var published: [String: String] = [:]
    private var wantedReports: [PolicyReport] = []
    /// What this node reports of each policy, and what the server has.
    private var agreements: [String: PolicyStatusAgreement] = [:]
    /// Policies without a gateway whose status this node wrote last: this node counts their pods.
    private var toldOf: Set<String> = []
    private var ranks: ReportingRank
    /// The own Node as the watch shows it; nil: there is none, or the Nodes are not listed.
    private var ownNode: Node?
    /// Time since the own Node was last written.
    private var sincePublished: @Sendable () -> Duration = { .seconds(3600) }
    /// Why the annotations of the own Node are not as they should be.
    private var problem: String?
    /// Policies whose status the server has refused to take: when each may be written again, and why it was refused.
    private var refusals: [String: Refusal] = [:]
    private struct Refusal {
        /// For lack of a right (401, 403); otherwise for what it says, or because an admission policy lets this node name no
        /// other.
        let isOfRights: Bool
        var backoff: Backoff
        var wait = Duration.zero
        var elapsed: @Sendable () -> Duration
        var why = ""
    }
    /// Time since the server has said that its definition of EgressPolicy is older than this release.
    private var sinceOldDefinition: (@Sendable () -> Duration)?
    /// It still may be. After a while the whole status is tried once more, as the definition may have been renewed.
    private var hasOldDefinition: Bool { sinceOldDefinition.map { $0() < .seconds(600) } ?? false }

    /// Ask the task that writes the Node's annotations, and the one that writes statuses, to compare what the server should hold
    /// with what was written last. Two tasks: a node's sign of life does not wait for the status of a policy.
    private let askers: [AsyncStream<Void>.Continuation]
    private let annotationRequests: AsyncStream<Void>
    private let reportRequests: AsyncStream<Void>
    /// What publishing may have to wait for.
    private enum PublishingWait {
        /// The watch shows this node's own annotations.
        case annotationsSeen
        /// This node's rank among those that may report a policy.
        case reportingRank
        /// The back-off after a policy's status, or the Node's annotations, could not be written.
        case reports, annotations
        /// A policy's status that was refused may be tried again.
        case refusals
        /// The watch has shown by then what became of a status that was written.
        case statusSeen
    }
    /// Each requests publishing once more at the end of a wait.
    private var retryTimers: [PublishingWait: Task<Void, Never>] = [:]
    /// Writes that failed, each with a back-off of its own.
    private var rateLimits: [PublishingWait: (since: @Sendable () -> Duration, wait: Duration, backoff: Backoff)] = [:]
    private var tasks: [Task<Void, Never>] = []

    /// - Parameter inventory: shows what became of the objects that are written to.
    public init(
        client: KubernetesClient, nodeName: String, inventory: KubernetesInventory,
        clock: any Clock<Duration> = ContinuousClock(), logger: Logger
    ) {
        self.client = client
        self.nodeName = nodeName
        self.inventory = inventory
        self.clock = clock
        self.logger = logger
        events = EventRecorder(client: client, nodeName: nodeName, logger: logger)
        selectedPods = SelectedPods(client: client, logger: logger)
        ranks = ReportingRank(clock: clock)
        let annotations = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let reports = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        (annotationRequests, reportRequests) = (annotations.stream, reports.stream)
        askers = [annotations.continuation, reports.continuation]
    }

    /// Takes back all that this field manager has written into a Node (server-side apply: what a manager does not name any
    /// more is removed, unless somebody else names it too). A Node that is gone has nothing left.
    ///
    /// - Throws: what the server says, or why it cannot be reached.
    public static func withdraw(fromNode name: String, client: KubernetesClient) async throws {
        // Applying would make it anew.
        guard try await client.get(.nodes, name: name, metadataOnly: true) != nil else { return }
        try await client.apply(
            .nodes, name: name, manager: manager,
            .make(
                ("apiVersion", .string("v1")), ("kind", .string("Node")),
                ("metadata", .make(("name", .string(name))))))
    }

    /// Begins to write what is handed over. To be called before the inventory starts, so that nothing that its watches show is
    /// missed.
    public func start() async {
        let shown = await inventory.writtenObjects()
        tasks.append(Task { for await object in shown { await self.take(object) } })
        tasks.append(Task { await self.keepAnnotated() })
        tasks.append(Task { await self.keepReported() })
        tasks.append(Task { await self.keepCounting() })
    }

    /// Ends writing. To be called before the inventory stops, which ends the client.
    public func stop() async {
        for task in retryTimers.values { task.cancel() }
        for task in tasks { task.cancel() }
        for task in tasks { await task.value }
        tasks = []
    }

    // MARK: what is handed over

    public func publish(annotations: [String: String]) {
        wanted = annotations
        requestPublishing()
    }

    public func report(_ policies: [PolicyReport]) {
        guard policies != wantedReports else { return }
        wantedReports = policies
        let byName = Dictionary(policies.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        for name in Set(agreements.keys).union(byName.keys) {
            agreements[name, default: PolicyStatusAgreement(clock: clock)].take(byName[name])
        }
        requestPublishing()
    }

    public func record(_ event: ObjectEvent) async {
        guard case .policy(let name, let source) = event.subject else { return await events.record(event) }
        await events.record(event, uid: await inventory.uid(ofPolicy: name, source) ?? "")
    }

    public func problems() -> [String] { [problem, refusalProblem].compactMap { $0 } }

    private var refusalProblem: String? {
        let refused = refusals.filter(\.value.isOfRights)
        guard let (name, refusal) = refused.min(by: { $0.key < $1.key }) else { return nil }
        let others = refused.count > 1 ? " (and of \(refused.count - 1) other policies)" : ""
        return
            "the status of EgressPolicy \(name)\(others) cannot be written: \(refusal.why); apply install/kubernetes/base/rbac.yaml, or check which admission webhook rejects the change"
    }

    // MARK: what the watches show

    private func take(_ object: WrittenObject) async {
        switch object {
        case .ownNode(let node):
            ownNode = node
            requestPublishing()
        case .policyStatus(let name, let status, let isForeign):
            agreements[name, default: PolicyStatusAgreement(clock: clock)].see(status, isForeign: isForeign)
            if status?.activeGateways.isEmpty == false { toldOf.remove(name) }
            requestPublishing()
        case .policyDeleted(let name):
            // One of the same name is another one.
            let report = agreements[name]?.report
            agreements[name] = nil
            if let report {
                agreements[name] = PolicyStatusAgreement(clock: clock)
                agreements[name]?.take(report)
            }
            toldOf.remove(name)
            refusals[name] = nil
            ranks.forget(name)
            await selectedPods.forget(name)
        }
    }

    /// The Node lacks annotations that were written: somebody has removed them, or the Node was created anew.
    private var lacksOwnAnnotations: Bool {
        guard let ownNode else { return false }
        return wanted.contains { $0.key != "kilo.squat.ai/last-seen" && ownNode.annotations[$0.key] != $0.value }
    }

    // MARK: writing

    /// How long the watch may take to show an annotation that was just written.
    private static let echoPatience = Duration.seconds(5)

    private func requestPublishing() { for asker in askers { asker.yield() } }

    /// Writes the status of policies, at every request. Until the task is cancelled.
    private func keepReported() async {
        for await _ in reportRequests {
            if mayWrite(.reports) { await writeReports() }
            if Task.isCancelled { return }
        }
    }

    /// Writes the Node's annotations where they differ from what was written last, at every request. Until the task is cancelled.
    private func keepAnnotated() async {
        for await _ in annotationRequests {
            let isEchoDue = sincePublished() > KubernetesPublisher.echoPatience
            if ownNode != nil {
                let annotations = wanted
                if mayWrite(.annotations), annotations != published || (lacksOwnAnnotations && isEchoDue) {
                    await write(annotations)
                }
                // Looks whether the watch shows them by then.
                if lacksOwnAnnotations {
                    requestPublishing(.annotationsSeen, after: KubernetesPublisher.echoPatience + .milliseconds(200))
                }
            }
            if Task.isCancelled { return }
        }
    }

    /// One kind of write that failed waits for its back-off; the other does not wait for it.
    private func mayWrite(_ kind: PublishingWait) -> Bool { rateLimits[kind].map { $0.since() >= $0.wait } ?? true }
    private func backOff(_ kind: PublishingWait, after error: any Error, ceiling: Double = 30) {
        var backoff = rateLimits[kind]?.backoff ?? Backoff(first: 0.2, ceiling: ceiling)
        var wait = backoff.wait(atLeast: (error as? APIError)?.retryAfter)
        // It is back at once for whoever asks.
        if (error as? APIError)?.isOfAServerThatIsAway == true { wait = min(wait, .seconds(5)) }
        rateLimits[kind] = (clock.stopwatch(), wait, backoff)
        requestPublishing(kind, after: wait)
    }

    private func requestPublishing(_ wait: PublishingWait, after time: Duration) {
        retryTimers[wait]?.cancel()
        retryTimers[wait] = Task {
            try? await clock.sleep(for: time)
            if !Task.isCancelled { requestPublishing() }
        }
    }

    private func write(_ annotations: [String: String]) async {
        do {
            try await client.apply(
                .nodes, name: nodeName, manager: KubernetesPublisher.manager,
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
            problem = nil
        } catch {
            problem = "the annotations of Node \(nodeName) cannot be written: \(error)"
            logger.warning("writing to the API server failed", metadata: ["error": "\(error)"])
            backOff(.annotations, after: error)
        }
    }

    /// Writes the status of policies that say something else than they should.
    private func writeReports() async {
        let counts = await hasOldDefinition ? [:] : selectedPods.counts
        toldOf.formIntersection(wantedReports.map(\.name))
        refusals = refusals.filter { refused in wantedReports.contains { $0.name == refused.key } }
        var shortestWait: Duration?
        var hasWritten = false
        for report in wantedReports {
            let name = report.name
            if let refusal = refusals[name], refusal.elapsed() < refusal.wait { continue }
            let now = Date().formatted(.iso8601)
            guard var wanted = agreements[name]?.wanted(count: counts[name], now: now) else {
                ranks.rest(name)
                refusals[name] = nil
                continue
            }
            let seen = agreements[name]?.seen
            if hasOldDefinition {
                wanted = wanted.ofOldDefinition
                if wanted == seen?.ofOldDefinition { continue }
            }
            switch ranks.whenToWrite(
                wanted, report, seen: seen, isDownForUsers: agreements[name]?.isDownForUsers == true,
                isForeign: agreements[name]?.isForeign == true)
            {
            case .now: break
            case .after(let wait):
                shortestWait = min(shortestWait ?? wait, wait)
                continue
            }
            do {
                try await client.apply(
                    .egressPolicies, name: name, subresource: "status", manager: KubernetesPublisher.manager,
                    .make(
                        ("apiVersion", .string(Resource.egressPolicies.apiVersion)),
                        ("kind", .string(Resource.egressPolicies.kind)),
                        ("metadata", .make(("name", .string(name)))), ("status", wanted.json(isOld: hasOldDefinition))
                    ))
                rateLimits[.reports] = nil
                refusals[name] = nil
                hasWritten = true
                didWrite(wanted, of: name)
            } catch let error as APIError where error.code == 404 {
                // It is gone by now.
                didWrite(wanted, of: name)
            } catch {
                logger.warning(
                    "the status of a policy cannot be written",
                    metadata: ["policy": "\(name)", "error": "\(error)"])
                let code = (error as? APIError)?.code ?? 0
                if !hasOldDefinition, "\(error)".contains("not declared in schema") {
                    // The CustomResourceDefinition of an earlier release: without what it does not have.
                    sinceOldDefinition = clock.stopwatch()
                    requestPublishing()
                } else if code < 400 || code >= 429 {
                    backOff(.reports, after: error)
                    break
                } else {
                    noteRefusal(of: name, error)
                    // Whoever may not write one status may hardly write another: the next one is tried a little later.
                    if code == 401 || code == 403, !hasWritten {
                        backOff(.reports, after: error, ceiling: 300)
                        break
                    }
                }
            }
        }
        if let next = refusals.values.map({ $0.wait - $0.elapsed() }).min() {
            requestPublishing(.refusals, after: max(next, .zero) + .milliseconds(10))
        }
        if let shortestWait { requestPublishing(.reportingRank, after: shortestWait) }
    }

    /// The server does not take this status, for lack of a right or because of what it says: not now, and perhaps later.
    private func noteRefusal(of policy: String, _ error: any Error) {
        let code = (error as? APIError)?.code
        let isOfRights = code == 401 || code == 403
        var refusal =
            refusals[policy].flatMap { $0.isOfRights == isOfRights ? $0 : nil }
            ?? Refusal(
                isOfRights: isOfRights,
                // Missing permissions are usually granted soon, and then many nodes can report. What an admission
                // policy forbids to one node, another node can write.
                backoff: isOfRights ? Backoff(first: 10, ceiling: 600) : Backoff(first: 300, ceiling: 3600),
                elapsed: clock.stopwatch())
        refusal.wait = refusal.backoff.wait()
        refusal.elapsed = clock.stopwatch()
        refusal.why = "\(error)"
        refusals[policy] = refusal
    }

    private func didWrite(_ status: PolicyStatus, of policy: String) {
        // Should the watch show something else then, it was written by somebody else.
        requestPublishing(.statusSeen, after: PolicyStatusAgreement.watchLag + .milliseconds(200))
        agreements[policy]?.wrote(status)
        ranks.wrote(status, of: policy)
        if status.activeGateways.isEmpty { toldOf.insert(policy) } else { toldOf.remove(policy) }
    }

    /// Whether this node counts the pods of a policy. The gateway of the policy does. For a policy without a gateway,
    /// the node that wrote its status does.
    private func counts(_ report: PolicyReport) -> Bool {
        let active = agreements[report.name]?.seen?.activeGateways.min()
        return (active ?? report.activeGateways.min()) == nodeName || (active == nil && toldOf.contains(report.name))
    }

    // MARK: selected pods

    /// Counts the pods that the policies select of which this node is to tell: when a policy is new or has changed, and
    /// again and again. Until the task is cancelled.
    private func keepCounting() async {
        var interval = CountingPace.shortest
        var sinceAll = clock.stopwatch()
        while !Task.isCancelled {
            let isDue = sinceAll() > interval
            if isDue { sinceAll = clock.stopwatch() }
            let start = ContinuousClock.now
            let names = Set(wantedReports.filter(counts).map(\.name))
            await selectedPods.keepOnly(names)
            if !names.isEmpty {
                let known = await inventory.inventory()
                defer {
                    if isDue {
                        interval =
                            CountingPace.interval(
                                policies: names.count, nodes: known.nodes.count, took: ContinuousClock.now - start)
                            * Double.random(in: 0.9...1.1)
                    }
                }
                for policy in known.policies where policy.source == .culvert && names.contains(policy.name) {
                    if await selectedPods.count(policy, known, isDue: isDue) { requestPublishing() }
                }
            }
            try? await clock.sleep(for: .seconds(2))
        }
    }
}

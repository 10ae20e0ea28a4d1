import ClusterTransport
import Foundation
import Inventory
import Jansson
import Logging
import Model

/// The cluster's own objects as a source: lists and watches of exactly what Culvert reads.
///
/// Per node: one watch each of CiliumNode, EgressPolicy, CiliumEgressGatewayPolicy, Peer and Namespace (metadata only), one
/// of the pods of this node, and one of Nodes. Of Nodes only the own one, as Cilium's agent does: a Node has some kilobytes
/// of images and conditions that its kubelet reports again and again, and which thousands of helpers would be sent; what
/// is needed of the others is in their CiliumNodes. A mesh needs annotations of every Node, and is sent their metadata.
public actor KubernetesInventory: InventorySource {
    public nonisolated var files: FileSource? { nil }
    public nonisolated let changes: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation
    private let client: KubernetesClient
    private let nodeName: String
    /// The last inventory on disk; nil: none is kept.
    private let cachePath: String?
    private let logger: Logger

    /// What came of one object.
    private struct Entry: Equatable {
        var objects: [ManifestObject] = []
        var problem: InventoryProblem?
    }
    /// By `namespace/name`.
    private var entries: [Resource: [String: Entry]] = [:]
    private var known = Inventory()
    private var nodeProblems: [String: [InventoryProblem]] = [:]
    /// Objects that are malformed, by `resource namespace/name`: few, so that thousands need not be looked through.
    private var malformed: [String: InventoryProblem] = [:]
    private var listed: Set<Resource> = []
    private var problems: [Resource: String] = [:]
    /// Why the own Node does not say what it should.
    private var publishingProblem: String?
    /// When the cached inventory was written; nil: what is known came from the server.
    private var cachedAt: Date?
    private var hasAskedForCilium = false
    /// Time since the own Node was last written.
    private var sincePublished: @Sendable () -> Duration = { .seconds(3600) }
    private var lookups: [PodLookup.Origin: (count: Int64, seconds: Double)] = [:]
    private var published: [String: String] = [:]
    private var wanted: [String: String] = [:]
    private var wantedReports: [PolicyReport] = []
    private var reported: [String: PolicyReport] = [:]
    /// What the status of policies says, as the watch has told.
    private var seenReasons: [String: String] = [:]
    /// Since when others are waited for to tell of a policy without a gateway.
    private var turns: [PolicyReport: @Sendable () -> Duration] = [:]
    /// Pods that a policy selects, by policy, and what was counted then.
    private var counted: [String: SelectedPods] = [:]
    /// Says that there may be something to tell others.
    private let wake: AsyncStream<Void>.Continuation
    private let wakes: AsyncStream<Void>
    /// Timers that wake whoever tells others.
    private var again: [Reason: Task<Void, Never>] = [:]
    private enum Reason { case echo, turn, reports, annotations }
    private var gates: [Reason: (since: @Sendable () -> Duration, wait: Duration, backoff: Backoff)] = [:]
    /// The server's definition of EgressPolicy is older than this release.
    private var lacksSelectedPods = false
    private let clock: any Clock<Duration>
    private var recorded: Set<ObjectEvent> = []
    private var isCacheStale = false

    private var tasks: [Task<Void, Never>] = []
    private var nodeReading: NodeReading
    private var nodesTask: Task<Void, Never>?
    private var isStopped = false
    /// Nodes that are not watched and whose annotations are looked up all the same: the gateways of pods here.
    private var gateways: Set<String> = []
    private var lookedUp: [String: (annotations: [String: String], age: @Sendable () -> Duration)] = [:]

    /// What is read of Nodes.
    public enum NodeReading: Sendable {
        /// The own one; of others their CiliumNodes have all.
        case own
        /// Labels and annotations of all.
        case metadata
        /// Addresses and pod networks too: there are no CiliumNodes.
        case whole
    }
    /// The longest wait after a failure, seconds.
    private let ceiling: Double

    static let watched: [Resource] = [
        .nodes, .ciliumNodes, .namespaces, .pods, .egressPolicies, .ciliumEgressGatewayPolicies, .peers,
    ]

    public init(
        client: KubernetesClient, nodeName: String, cachePath: String?, nodes: NodeReading = .own,
        ceiling: Double = 30, clock: any Clock<Duration> = ContinuousClock(), logger: Logger
    ) {
        self.clock = clock
        (wakes, wake) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        nodeReading = nodes
        self.ceiling = ceiling
        self.client = client
        self.nodeName = nodeName
        self.cachePath = cachePath
        self.logger = logger
        (changes, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    // MARK: start

    /// Starts the watches and waits until everything is listed. A server that is not there within `seconds` is gone on
    /// without, from the last inventory on disk, where there is one; otherwise it is waited for.
    public func start(patience seconds: Double = 5) async {
        for resource in KubernetesInventory.watched where resource != .nodes { tasks.append(follow(resource)) }
        nodesTask = follow(.nodes)
        tasks.append(Task { await self.readCiliumConfig() })
        tasks.append(Task { await self.keepPublished() })
        tasks.append(Task { await self.keepCounted() })
        tasks.append(Task { await self.keepCache() })
        let end = ContinuousClock.now + .milliseconds(Int64(seconds * 1000))
        var hasTold = false
        while !isComplete || !hasAskedForCilium {
            if ContinuousClock.now >= end && !hasTold {
                if loadCache() { return }
                hasTold = true
                logger.warning("waiting for the API server", metadata: ["problem": "\(problemText)"])
            }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    private func follow(_ resource: Resource) -> Task<Void, Never> {
        let selector =
            switch resource {
            case .pods: "spec.nodeName=\(nodeName)"
            case .nodes: nodeReading == .own ? "metadata.name=\(nodeName)" : ""
            default: ""
            }
        let watch = ResourceWatch(
            client: client, resource: resource, fieldSelector: selector,
            metadataOnly: resource == .namespaces || (resource == .nodes && nodeReading != .whole), ceiling: ceiling,
            clock: clock, logger: logger)
        return Task { await watch.run { await self.take($0, of: resource) } }
    }

    /// Cilium's agent copies a Node's labels to its CiliumNode. Where it does not, those of the Nodes are needed.
    private func readMoreOfNodesIfNeeded() {
        let (node, cilium) = node("/" + nodeName)
        let label = "kubernetes.io/hostname"
        guard nodeReading == .own, let node, let cilium, node.labels[label] != nil, cilium.labels[label] == nil else {
            return
        }
        logger.notice("the CiliumNodes have no labels of their Nodes: watching the metadata of all Nodes")
        nodeReading = .metadata
        // Until they are there, what is known stays as it is.
        listed.remove(.nodes)
        nodesTask?.cancel()
        let old = nodesTask
        nodesTask = Task {
            await old?.value
            if !Task.isCancelled { await self.followNodes() }
        }
    }
    private func followNodes() { if !isStopped { nodesTask = follow(.nodes) } }

    /// Everything that is watched has been listed once.
    private var isComplete: Bool { listed.count == KubernetesInventory.watched.count }

    /// Ends the watches and the client. What is known stays.
    public func stop() async {
        isStopped = true
        for task in again.values { task.cancel() }
        let tasks = tasks + [nodesTask].compactMap { $0 }
        for task in tasks { task.cancel() }
        for task in tasks { await task.value }
        self.tasks = []
        await client.shutdown()
    }

    private var problemText: String {
        problems.sorted { "\($0.key)" < "\($1.key)" }.map(\.value).joined(separator: "; ")
    }

    /// Cilium's settings, which do not change under a running agent: once, and again until they can be had.
    private func readCiliumConfig() async {
        var backoff = Backoff(first: 1, ceiling: 300)
        while !Task.isCancelled {
            do {
                let found = try await client.get(.configMaps, namespace: "kube-system", name: "cilium-config")
                if let found,
                    case .success(let objects) = Manifests.read(Resource.configMaps.stamp(found)),
                    case .ciliumConfig(let data)? = objects.first, known.cilium?.data != data
                {
                    known.cilium = CiliumSettings(data: data)
                    changed()
                }
                hasAskedForCilium = true
                problems[.configMaps] = nil
                if found != nil { return }
                // Cilium may be installed later.
                try? await clock.sleep(for: .seconds(300))
            } catch {
                if Task.isCancelled { return }
                hasAskedForCilium = true
                problems[.configMaps] = "ConfigMap kube-system/cilium-config: \(error)"
                try? await clock.sleep(for: backoff.wait())
            }
        }
    }

    // MARK: taking in

    private static func key(_ object: JSON) -> String {
        let metadata = object["metadata"]
        return (metadata?["namespace"]?.string ?? "") + "/" + (metadata?["name"]?.string ?? "")
    }

    private func take(_ change: ResourceWatch.Change, of resource: Resource) {
        switch change {
        case .missing:
            take(.replaced([]), of: resource)
            problems[resource] = nil
            return
        case .replaced(let objects):
            var now: [String: Entry] = [:]
            for object in objects {
                let key = KubernetesInventory.key(object)
                if resource == .egressPolicies { look(atStatusOf: object) }
                now[key] = read(object, before: entries[resource]?[key])
            }
            let before = entries[resource] ?? [:]
            entries[resource] = now
            let isFirst = listed.insert(resource).inserted
            problems[resource] = nil
            if isComplete { cachedAt = nil }
            if !isFirst && before == now { return }
            // Nodes that only their CiliumNodes were known of are none, if all Nodes are read by now.
            let others = resource == .nodes ? (entries[.ciliumNodes] ?? [:]).keys.map { $0 } : []
            refresh(resource, Set(before.keys).union(now.keys).union(others))
        case .set(let object):
            let key = KubernetesInventory.key(object)
            if resource == .egressPolicies { look(atStatusOf: object) }
            let before = entries[resource]?[key]
            let now = read(object, before: before)
            entries[resource, default: [:]][key] = now
            // Most changes are the kubelets' reports of their nodes' state, which say nothing to us (but a sign of life,
            // which is no news).
            if now == before && resource != .nodes { return }
            refresh(resource, [key])
            if now == before { return }
        case .deleted(let object):
            let key = KubernetesInventory.key(object)
            // A pod of the same name may have followed, which a request has told of before the watch did.
            if case .pod(let there)? = entries[resource]?[key]?.objects.first,
                let uid = object["metadata"]?["uid"]?.string, there.uid != uid
            {
                return
            }
            entries[resource]?[key] = nil
            if resource == .egressPolicies {
                // One of the same name is another one.
                let name = String(key.dropFirst())
                reported[name] = nil
                seenReasons[name] = nil
                counted[name] = nil
            }
            refresh(resource, [key])
        case .problem(let text):
            problems[resource] = text.isEmpty ? nil : text
            return
        }
        changed()
    }

    private func look(atStatusOf policy: JSON) {
        guard let name = policy["metadata"]?["name"]?.string else { return }
        // A status that names a gateway is another word than any that is said where there is none.
        let status = policy["status"]
        let hasGateway = status?["activeGateways"]?.elements?.isEmpty == false
        let reason = hasGateway ? nil : status?["reason"]?.string
        if seenReasons[name] != reason {
            seenReasons[name] = reason
            wake.yield()
        }
    }

    /// A malformed object keeps its last good content in force.
    private func read(_ object: JSON, before: Entry?) -> Entry {
        switch Manifests.read(object) {
        case .success(let objects):
            return Entry(
                objects: objects.map {
                    // Nodes have the same labels.
                    if knowsAllNodes, case .ciliumNode(var node) = $0 {
                        node.labels = [:]
                        return .ciliumNode(node)
                    }
                    return KubernetesInventory.lean($0)
                })
        case .failure(let problem):
            if before?.problem != problem { logger.warning("inventory: \(problem)") }
            return Entry(objects: before?.objects ?? [], problem: problem)
        }
    }

    /// Annotations that nobody here reads are left out: thousands of nodes have kilobytes of them.
    private static func lean(_ object: ManifestObject) -> ManifestObject {
        switch object {
        case .node(var node), .publishedNode(var node):
            node.annotations = node.annotations.filter { entry in
                // A sign of life is read into the mesh, and as a text it would be news every half minute.
                entry.key != "kilo.squat.ai/last-seen"
                    && ["kilo.squat.ai/", "culvert.dev/", "network.cilium.io/"].contains { entry.key.hasPrefix($0) }
            }
            return .node(node)
        case .pod(var pod):
            pod.annotations = pod.annotations.filter {
                $0.key.hasPrefix("culvert.dev/") || $0.key == "kubernetes.io/config.hash"
            }
            return .pod(pod)
        default: return object
        }
    }

    private func node(_ key: String) -> (Node?, CiliumNode?) {
        var node: Node?
        var cilium: CiliumNode?
        if case .node(let found)? = entries[.nodes]?[key]?.objects.first { node = found }
        if case .ciliumNode(let found)? = entries[.ciliumNodes]?[key]?.objects.first { cilium = found }
        return (node, cilium)
    }

    /// A node that has no Node here has none at all.
    private var knowsAllNodes: Bool { nodeReading != .own && listed.contains(.nodes) }

    /// Puts what has changed into the inventory.
    private func refresh(_ resource: Resource, _ keys: Set<String>) {
        for key in keys { malformed["\(resource) \(key)"] = entries[resource]?[key]?.problem }
        switch resource {
        case .nodes, .ciliumNodes:
            for key in keys {
                let (node, cilium) = self.node(key)
                let name = String(key.dropFirst())
                // A CiliumNode outlives its Node for a while; a node without Node is none, where Nodes are known.
                let hasNode = node != nil || (!knowsAllNodes && name != nodeName)
                var (merged, found) = NodeMerge.merge(node, cilium: hasNode ? cilium : nil)
                // Its own word on its egress address, and on nothing else: the CiliumNode is newer.
                if !knowsAllNodes, let told = lookedUp[name]?.annotations {
                    merged?.annotations.merge(told) { _, new in new }
                }
                known.nodes[name] = merged
                nodeProblems[name] = found.isEmpty ? nil : found
            }
            if keys.contains("/" + nodeName) {
                wake.yield()
                readMoreOfNodesIfNeeded()
            }
        case .pods:
            known.pods = objects(.pods) { if case .pod(let pod) = $0 { pod } else { nil } }
            known.putInOrder()
        case .namespaces:
            for key in keys {
                let name = String(key.dropFirst())
                if case .namespace(_, let labels)? = entries[.namespaces]?[key]?.objects.first {
                    known.namespaces[name] = labels
                } else {
                    known.namespaces[name] = nil
                }
            }
        case .peers:
            known.peers = objects(.peers) { if case .peer(let peer) = $0 { peer } else { nil } }
            known.putInOrder()
        default:
            known.policies = [Resource.egressPolicies, .ciliumEgressGatewayPolicies].flatMap { resource in
                objects(resource) { if case .policy(let policy) = $0 { policy } else { nil } }
            }
            known.putInOrder()
        }
    }

    private func objects<T>(_ resource: Resource, _ pick: (ManifestObject) -> T?) -> [T] {
        (entries[resource] ?? [:]).values.flatMap { $0.objects.compactMap(pick) }
    }

    private func changed() {
        isCacheStale = true
        known.revision = .init(number: known.revision.number + 1)
        signal.yield()
    }

    public func inventory() -> Inventory {
        var inventory = known
        inventory.problems =
            malformed.values.sorted { $0.description < $1.description }
            + nodeProblems.sorted { $0.key < $1.key }.flatMap(\.value)
        return inventory
    }

    // MARK: pods of an ADD

    private func isKnown(_ pod: PodReference) -> Bool {
        known.namespaces[pod.namespace] != nil
            && known.pods.contains {
                $0.namespace == pod.namespace && $0.name == pod.name && (pod.uid.isEmpty || $0.hasUID(pod.uid))
            }
    }

    public func identify(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup {
        let start = ContinuousClock.now
        let origin = try await find(pod)
        let elapsed = ContinuousClock.now - start
        let seconds = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
        let sum = lookups[origin] ?? (0, 0)
        lookups[origin] = (sum.count + 1, sum.seconds + seconds)
        logger.debug(
            "pod judged", metadata: ["pod": "\(pod.namespace)/\(pod.name)", "by": "\(origin)", "seconds": "\(seconds)"])
        return PodLookup(origin)
    }

    private func find(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup.Origin {
        guard pod.isKubernetes else { return .given }
        if pod.isDecided { return .annotations }
        if isKnown(pod) { return .watch }
        // Leave the plugin time to take the answer.
        let end = pod.deadline - .milliseconds(500)
        var problem = "the API server does not know it yet"
        var backoff = Backoff(first: 0.1, ceiling: 1)
        repeat {
            do {
                if known.namespaces[pod.namespace] == nil,
                    let namespace = try await get(.namespaces, name: pod.namespace, until: end)
                {
                    take(.set(Resource.namespaces.stamp(namespace)), of: .namespaces)
                }
                let found = try await get(.pods, namespace: pod.namespace, name: pod.name, until: end)
                if isKnown(pod) { return .watch }
                if let found {
                    let object = Resource.pods.stamp(found)
                    if case .success(let objects) = Manifests.read(object), case .pod(let read)? = objects.first,
                        pod.uid.isEmpty || read.hasUID(pod.uid)
                    {
                        // The watch will say the same; before that, its word would be an older one.
                        take(.set(object), of: .pods)
                        return .get
                    }
                    problem = "the API server has another pod of this name"
                }
            } catch { problem = "\(error)" }
            if isKnown(pod) { return .watch }
            try? await Task.sleep(for: min(backoff.wait(), max(.zero, end - .now)))
            if isKnown(pod) { return .watch }
        } while ContinuousClock.now < end
        throw PodLookup.Failure(
            "the pod \(pod.namespace)/\(pod.name) (\(pod.uid)) cannot be judged: \(problem); the kubelet tries again, and the annotation culvert.dev/egress-policy with the capability io.kubernetes.cri.pod-annotations decides without the API server"
        )
    }

    /// One object, if it can be had in time.
    private nonisolated func get(
        _ resource: Resource, namespace: String? = nil, name: String, until end: ContinuousClock.Instant
    ) async throws -> JSON? {
        try await withThrowingTaskGroup(of: JSON?.self) { group in
            group.addTask { try await self.client.get(resource, namespace: namespace, name: name) }
            group.addTask {
                try await Task.sleep(until: end)
                throw APIError(code: 0, message: "\(self.client.access.server) does not answer in time")
            }
            defer { group.cancelAll() }
            return try await group.next() ?? nil
        }
    }

    // MARK: telling

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
    private func keepPublished() async {
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

    // MARK: gateways

    public func useGateways(_ names: Set<String>) { gateways = names }

    /// What a gateway says of itself (its egress address), which its CiliumNode does not say: once, and every ten minutes.
    private func lookUpGateways() async {
        guard nodeReading == .own else { return }
        lookedUp = lookedUp.filter { gateways.contains($0.key) }
        for name in gateways.sorted() where name != nodeName {
            if let known = lookedUp[name], known.age() < .seconds(600) { continue }
            var told: [String: String] = [:]
            do {
                let object = try await client.get(.nodes, name: name, metadataOnly: true)
                for member in object?["metadata"]?["annotations"]?.members ?? []
                where member.key.hasPrefix("culvert.dev/") { told[member.key] = member.value.string }
            } catch {
                logger.notice("a gateway cannot be looked up", metadata: ["node": "\(name)", "error": "\(error)"])
                told = lookedUp[name]?.annotations ?? [:]
            }
            let isNews = (lookedUp[name]?.annotations ?? [:]) != told
            lookedUp[name] = (told, clock.stopwatch())
            if isNews {
                refresh(.nodes, ["/" + name])
                changed()
            }
        }
    }

    // MARK: selected pods

    /// Counts the pods that the policies select of which this node is to tell: when a policy is new or has changed, and
    /// again every ten minutes. Requests of one node in the cluster; no watch, which would be sent every change of
    /// every pod.
    private func keepCounted() async {
        let interval = Duration.seconds(600)
        var sinceAll = clock.stopwatch()
        while !Task.isCancelled {
            let isTime = sinceAll() > interval * Double.random(in: 0.9...1.1)
            if isTime { sinceAll = clock.stopwatch() }
            // Of policies of which another node tells, that one counts.
            let names = Set(
                wantedReports.filter { !$0.activeGateways.isEmpty || reported[$0.name] != nil }.map(\.name))
            counted = counted.filter { names.contains($0.key) }
            for policy in known.policies where policy.source == .culvert && names.contains(policy.name) {
                guard isTime || counted[policy.name]?.selectors != policy.selectors else { continue }
                do {
                    let count = try await SelectedPods.count(policy, known, client)
                    counted[policy.name] = SelectedPods(selectors: policy.selectors, count: count)
                    wake.yield()
                } catch {
                    logger.notice(
                        "the pods of a policy cannot be counted",
                        metadata: ["policy": "\(policy.name)", "error": "\(error)"])
                    // Not before the next round: it is only a figure for people.
                    counted[policy.name] = SelectedPods(
                        selectors: policy.selectors, count: counted[policy.name]?.count)
                }
            }
            await lookUpGateways()
            try? await clock.sleep(for: .seconds(2))
        }
    }

    public func record(_ event: ObjectEvent) {
        // The same again says nothing new.
        guard recorded.count < 10_000, recorded.insert(event).inserted else { return }
        let (namespace, reference) = KubernetesInventory.reference(event.subject)
        // Many nodes may have the same to say of a policy: the name is made of it, so that one event is left.
        let name = "\(reference["name"]?.string ?? "").\(String(KubernetesInventory.hash("\(event)"), radix: 16))"
        let now = ISO8601DateFormatter().string(from: Date())
        let body = JSON.make(
            ("apiVersion", .string("v1")), ("kind", .string("Event")),
            ("metadata", .make(("name", .string(name)), ("namespace", .string(namespace)))),
            ("involvedObject", reference), ("reason", .string(event.reason)), ("message", .string(event.message)),
            ("type", .string("Warning")), ("firstTimestamp", .string(now)), ("lastTimestamp", .string(now)),
            ("count", .integer(1)),
            ("source", .make(("component", .string("culvertd")), ("host", .string(nodeName)))))
        Task {
            do { try await client.create(.events, namespace: namespace, body) } catch let error as APIError
                where error.code == 409
            {} catch {
                logger.warning("an event cannot be written", metadata: ["error": "\(error)"])
                recorded.remove(event)
            }
        }
    }

    private static func reference(_ subject: ObjectEvent.Subject) -> (namespace: String, JSON) {
        switch subject {
        case .pod(let namespace, let name, let uid):
            (
                namespace,
                .make(
                    ("apiVersion", .string("v1")), ("kind", .string("Pod")), ("namespace", .string(namespace)),
                    ("name", .string(name)), ("uid", .string(uid)))
            )
        case .policy(let name, let source):
            // Events of what has no namespace are in this one.
            (
                "default",
                .make(
                    ("apiVersion", .string(Resource.policies(source).apiVersion)), ("kind", .string(source.rawValue)),
                    ("name", .string(name)))
            )
        }
    }

    /// FNV-1a, 64 bits: the same on every node.
    private static func hash(_ text: String) -> UInt64 {
        text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
    }

    // MARK: cache

    /// Writes the inventory to disk once it is whole, and then a minute after a change at the latest.
    private func keepCache() async {
        while !Task.isCancelled {
            let isWhole = cachedAt == nil && isComplete
            if isWhole && isCacheStale { saveCache() }
            try? await clock.sleep(for: isWhole ? .seconds(60) : .milliseconds(100))
        }
    }

    public func saveCache() {
        guard let cachePath, isComplete else { return }
        isCacheStale = false
        var objects = KubernetesInventory.watched.flatMap { resource in
            (entries[resource] ?? [:]).sorted { $0.key < $1.key }.flatMap(\.value.objects)
        }
        if let cilium = known.cilium { objects.append(.ciliumConfig(cilium.data)) }
        do { try InventoryCache.write(ManifestWriter.list(objects), to: cachePath) } catch {
            logger.warning("the inventory cannot be kept on disk", metadata: ["error": "\(error)"])
        }
    }

    /// - Returns: whether there was one to go on from.
    private func loadCache() -> Bool {
        guard let cachePath, let (objects, date) = InventoryCache.read(cachePath) else { return false }
        for object in objects {
            let (resource, key): (Resource, String)
            switch object {
            case .node(let node), .publishedNode(let node): (resource, key) = (.nodes, "/" + node.name)
            case .ciliumNode(let node): (resource, key) = (.ciliumNodes, "/" + node.name)
            case .pod(let pod): (resource, key) = (.pods, pod.namespace + "/" + pod.name)
            case .namespace(let name, _): (resource, key) = (.namespaces, "/" + name)
            case .policy(let policy):
                (resource, key) = (Resource.policies(policy.source), "/" + policy.name)
            case .peer(let peer): (resource, key) = (.peers, "/" + peer.name)
            case .ciliumConfig(let data):
                known.cilium = known.cilium ?? CiliumSettings(data: data)
                continue
            }
            if !listed.contains(resource) { entries[resource, default: [:]][key] = Entry(objects: [object]) }
        }
        for resource in KubernetesInventory.watched { refresh(resource, Set((entries[resource] ?? [:]).keys)) }
        cachedAt = date
        logger.warning(
            "the API server cannot be reached: going on from the inventory on disk",
            metadata: ["written": "\(date)", "problem": "\(problemText)"])
        return true
    }

    // MARK: status

    private var renewalProblem: String? {
        let problem = client.renewalProblem
        return problem.isEmpty ? nil : "certificates were not read again: \(problem)"
    }

    public func status() -> JSON {
        var members = [
            JSON.Member("source", .string("kubernetes")), JSON.Member("server", .string(client.access.server)),
            JSON.Member("synchronized", .bool(isComplete)),
        ]
        if let cachedAt {
            members.append(.init("fromDiskSeconds", .integer(Int64(Date().timeIntervalSince(cachedAt)))))
        }
        members.append(
            .init(
                "podLookups",
                .object(
                    PodLookup.Origin.allCases.compactMap { origin in
                        lookups[origin].map { sum in
                            JSON.Member(
                                origin.rawValue,
                                .make(
                                    ("count", .integer(sum.count)),
                                    ("meanMilliseconds", .real(sum.seconds / Double(sum.count) * 1000))))
                        }
                    })))
        members.append(
            .init(
                "problems",
                .array(
                    (problems.values + [publishingProblem, renewalProblem].compactMap { $0 }).sorted().map {
                        .string($0)
                    })))
        return .object(members)
    }
}

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
    let client: KubernetesClient
    let nodeName: String
    /// The last inventory on disk; nil: none is kept.
    let cachePath: String?
    let logger: Logger

    /// What came of one object.
    struct Entry: Equatable {
        var objects: [ManifestObject] = []
        var problem: InventoryProblem?
    }
    /// By `namespace/name`.
    var entries: [Resource: [String: Entry]] = [:]
    var known = Inventory()
    private var nodeProblems: [String: [InventoryProblem]] = [:]
    /// Objects that are malformed, by `resource namespace/name`: few, so that thousands need not be looked through.
    private var malformed: [String: InventoryProblem] = [:]
    var listed: Set<Resource> = []
    /// Resources whose content is known, from the server or from disk: at some time everything of them was.
    var everKnown: Set<Resource> = []
    /// Custom resources of which the server says that they do not exist.
    var missingDefinitions: Set<Resource> = []
    /// Lists, failures and "there is no such resource", by resource.
    var answers: [Resource: (count: Int, age: @Sendable () -> Duration)] = [:]
    /// Kinds of policies that an ADD looks for at the moment.
    var isLooking: Set<Resource> = []
    private var problems: [Resource: String] = [:]
    /// Why the own Node does not say what it should.
    var publishingProblem: String?
    /// When the cached inventory was written; nil: what is known came from the server.
    var cachedAt: Date?
    private var hasAskedForCilium = false
    /// Time since the own Node was last written.
    var sincePublished: @Sendable () -> Duration = { .seconds(3600) }
    var lookups: [PodLookup.Origin: (count: Int64, seconds: Double)] = [:]
    var published: [String: String] = [:]
    var wanted: [String: String] = [:]
    var wantedReports: [PolicyReport] = []
    var reported: [String: PolicyReport] = [:]
    /// The reason in the status of each policy without a gateway, as the watch has shown it last.
    var seenReasons: [String: String] = [:]
    /// How long this node has left it to the nodes before it by name to report a policy without a gateway.
    var reportingRankWait: [PolicyReport: @Sendable () -> Duration] = [:]
    /// Pods that a policy selects, by policy, and what was counted then.
    var counted: [String: SelectedPods] = [:]
    /// Asks the publishing task to compare what the server should hold with what was written last.
    let publishRequested: AsyncStream<Void>.Continuation
    /// Those requests; one reader.
    let publishRequests: AsyncStream<Void>
    /// Each requests publishing once more at the end of a wait.
    var retryTimers: [PublishingWait: Task<Void, Never>] = [:]
    /// What publishing may have to wait for.
    enum PublishingWait {
        /// The watch shows this node's own annotations.
        case annotationsSeen
        /// This node's rank among those that may report a policy.
        case reportingRank
        /// The back-off after a policy's status, or the Node's annotations, could not be written.
        case reports, annotations
    }
    /// Writes that failed, each with a back-off of its own.
    var rateLimits: [PublishingWait: (since: @Sendable () -> Duration, wait: Duration, backoff: Backoff)] = [:]
    /// The server's definition of EgressPolicy is older than this release.
    var lacksSelectedPods = false
    let clock: any Clock<Duration>
    var recorded: Set<ObjectEvent> = []
    var isCacheStale = false

    private var tasks: [Task<Void, Never>] = []
    var nodeReading: NodeReading
    /// Follow one resource each.
    private var watches: [Resource: Task<Void, Never>] = [:]
    private var isStopped = false
    /// Nodes that are not watched and whose annotations are looked up all the same: the gateways of pods here.
    var gateways: Set<String> = []
    var lookedUp: [String: (annotations: [String: String], age: @Sendable () -> Duration)] = [:]

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
        (publishRequests, publishRequested) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingNewest(1))
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
        for resource in KubernetesInventory.watched { watches[resource] = follow(resource) }
        tasks.append(Task { await self.readCiliumConfig() })
        tasks.append(Task { await self.keepPublished() })
        tasks.append(Task { await self.keepLookingUp() })
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
        // The server may notice the end of the old watch a little later; and all helpers find out at once.
        followAnew(.nodes, after: .milliseconds(Int64.random(in: 500...2000)))
    }

    /// Ends the watch of a resource, and begins it with a list.
    func followAnew(_ resource: Resource, after pause: Duration = .zero) {
        let old = watches[resource]
        old?.cancel()
        watches[resource] = Task {
            await old?.value
            try? await self.clock.sleep(for: pause)
            if !Task.isCancelled { await self.replaceWatch(of: resource) }
        }
    }
    private func replaceWatch(of resource: Resource) { if !isStopped { watches[resource] = follow(resource) } }

    /// Everything that is watched has been listed once.
    var isComplete: Bool { listed.count == KubernetesInventory.watched.count }

    /// Ends the watches and the client. What is known stays.
    public func stop() async {
        isStopped = true
        for task in retryTimers.values { task.cancel() }
        let tasks = tasks + watches.values
        for task in tasks { task.cancel() }
        for task in tasks { await task.value }
        self.tasks = []
        await client.shutdown()
    }

    var problemText: String {
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
                noteAskedForCilium()
                problems[.configMaps] = nil
                if found != nil { return }
                // Cilium may be installed later.
                try? await clock.sleep(for: .seconds(300))
            } catch {
                if Task.isCancelled { return }
                noteAskedForCilium()
                problems[.configMaps] = "ConfigMap kube-system/cilium-config: \(error)"
                try? await clock.sleep(for: backoff.wait())
            }
        }
    }

    private func noteAskedForCilium() {
        if hasAskedForCilium { return }
        hasAskedForCilium = true
        // The inventory is not unknown for its lack any more.
        signal.yield()
    }

    // MARK: what the watches report

    private static func key(_ object: JSON) -> String {
        let metadata = object["metadata"]
        return (metadata?["namespace"]?.string ?? "") + "/" + (metadata?["name"]?.string ?? "")
    }

    func take(_ change: ResourceWatch.Change, of resource: Resource) {
        switch change {
        case .missing(let duration):
            noteAnswer(resource)
            if missingDefinitions.contains(resource) {
                problems[resource] = nil
                return
            }
            // Anything on the way may say "not found", and so does a server that is just starting.
            if duration < CustomResourceDefinitions.missingPatience, mayExist(resource) {
                problems[resource] =
                    "\(resource): the API server says that there is no such resource; what is known of them stays for 10 s"
                return
            }
            logger.notice("the CustomResourceDefinition is not installed", metadata: ["resource": "\(resource)"])
            missingDefinitions.insert(resource)
            takeAll([], of: resource)
            return
        case .replaced(let objects):
            noteAnswer(resource)
            missingDefinitions.remove(resource)
            takeAll(objects, of: resource)
            return
        case .set(let object):
            let key = KubernetesInventory.key(object)
            if resource == .egressPolicies { look(atStatusOf: object) }
            let before = entries[resource]?[key]
            let entry = read(object, before: before)
            entries[resource, default: [:]][key] = entry
            // Most changes are the kubelets' reports of their nodes' state, of which Culvert reads nothing but the annotation
            // kilo.squat.ai/last-seen. A newer one is put into the inventory, and is no reason to plan anew.
            if entry == before && resource != .nodes { return }
            refresh(resource, [key])
            if entry == before { return }
        case .deleted(let object):
            let key = KubernetesInventory.key(object)
            // The deleted pod may have a successor of the same name, which the request of an ADD has brought in before this
            // event arrived.
            if case .pod(let known)? = entries[resource]?[key]?.objects.first,
                let uid = object["metadata"]?["uid"]?.string, known.uid != uid
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
            if !text.isEmpty { noteAnswer(resource) }
            problems[resource] = text.isEmpty ? nil : text
            return
        }
        changed()
    }

    private func noteAnswer(_ resource: Resource) {
        answers[resource] = ((answers[resource]?.count ?? 0) + 1, clock.stopwatch())
    }

    /// Whether objects of a resource were known, in this run or in one before.
    private func mayExist(_ resource: Resource) -> Bool {
        everKnown.contains(resource) || cachePath.map { InventoryCache.has(resource.kind, $0) } ?? false
    }

    /// The whole content of a resource.
    private func takeAll(_ objects: [JSON], of resource: Resource) {
        var listedEntries: [String: Entry] = [:]
        for object in objects {
            let key = KubernetesInventory.key(object)
            if resource == .egressPolicies { look(atStatusOf: object) }
            listedEntries[key] = read(object, before: entries[resource]?[key])
        }
        let before = entries[resource] ?? [:]
        entries[resource] = listedEntries
        let isFirst = listed.insert(resource).inserted
        everKnown.insert(resource)
        problems[resource] = nil
        if isComplete { cachedAt = nil }
        if !isFirst && before == listedEntries { return }
        // Once all Nodes are listed, a CiliumNode without a Node does not count any more.
        let others = resource == .nodes ? (entries[.ciliumNodes] ?? [:]).keys.map { $0 } : []
        refresh(resource, Set(before.keys).union(listedEntries.keys).union(others))
        changed()
    }

    private func look(atStatusOf policy: JSON) {
        guard let name = policy["metadata"]?["name"]?.string else { return }
        // A status that names a gateway is none of the reasons that are reported of a policy without a gateway.
        let status = policy["status"]
        let hasGateway = status?["activeGateways"]?.elements?.isEmpty == false
        let reason = hasGateway ? nil : status?["reason"]?.string
        if seenReasons[name] != reason {
            seenReasons[name] = reason
            publishRequested.yield()
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
    static func lean(_ object: ManifestObject) -> ManifestObject {
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

    /// All Nodes are watched, so a name that is not in the list does not exist.
    private var knowsAllNodes: Bool { nodeReading != .own && listed.contains(.nodes) }

    /// Puts what has changed into the inventory.
    func refresh(_ resource: Resource, _ keys: Set<String>) {
        for key in keys { malformed["\(resource) \(key)"] = entries[resource]?[key]?.problem }
        switch resource {
        case .nodes, .ciliumNodes:
            for key in keys {
                let (node, cilium) = self.node(key)
                let name = String(key.dropFirst())
                // A CiliumNode outlives its Node for a while: where all Nodes are known, it counts with its Node only.
                let hasNode = node != nil || (!knowsAllNodes && name != nodeName)
                var (merged, found) = NodeMerge.merge(node, cilium: hasNode ? cilium : nil)
                // The looked-up annotations are used for the egress address only: the CiliumNode is newer than they are.
                if !knowsAllNodes, let told = lookedUp[name]?.annotations {
                    merged?.annotations.merge(told) { _, new in new }
                }
                known.nodes[name] = merged
                nodeProblems[name] = found.isEmpty ? nil : found
            }
            if keys.contains("/" + nodeName) {
                publishRequested.yield()
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

    func changed() {
        isCacheStale = true
        known.revision = .init(number: known.revision.number + 1)
        signal.yield()
    }

    public func inventory() -> Inventory {
        var inventory = known
        inventory.problems =
            malformed.values.sorted { $0.description < $1.description }
            + nodeProblems.sorted { $0.key < $1.key }.flatMap(\.value)
        inventory.unknown = KubernetesInventory.watched.filter { !everKnown.contains($0) }.map {
            "\($0): not listed yet" + (problems[$0].map { " (\($0))" } ?? "")
        }
        if !hasAskedForCilium && known.cilium == nil {
            inventory.unknown.append("ConfigMap kube-system/cilium-config: not asked for yet")
        }
        return inventory
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
        members.append(.init("notices", .array(missingPolicyKindNotices.map { .string($0) })))
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

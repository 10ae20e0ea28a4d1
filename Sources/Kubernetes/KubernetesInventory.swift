import ClusterTransport
import FoundationEssentials
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
    private let logger: Logger
    private let clock: any Clock<Duration>
    /// The longest wait after a failure, seconds.
    private let ceiling: Double

    private var objects: WatchedObjects
    private var definitions: CustomResourceDefinitions
    private var identification: PodIdentification
    private let gateways: GatewayLookups
    /// nil: the inventory is not kept on disk.
    private let onDisk: InventoryOnDisk?
    /// When the inventory on disk was written; nil: what is known came from the server.
    private var cachedAt: Date?
    private var problems: [Resource: String] = [:]
    /// Why there is nothing of a ConfigMap, by its name.
    private var configMapProblems: [String: String] = [:]
    /// Why an optional resource may not be read.
    private var refusals: [Resource: String] = [:]
    private var written: AsyncStream<WrittenObject>.Continuation?
    /// By the policies' names, for Events on them.
    private var policyUIDs: [Resource: [String: String]] = [:]

    private var tasks: [Task<Void, Never>] = []
    /// Follow one resource each.
    private var watches: [Resource: Task<Void, Never>] = [:]
    private var isStopped = false

    /// - Parameters:
    ///   - cachePath: the last inventory on disk; nil: none is kept.
    ///   - ceiling: the longest wait after a failure, seconds.
    public init(
        client: KubernetesClient, nodeName: String, cachePath: String?, nodes: NodeReading = .own,
        ceiling: Double = 30, clock: any Clock<Duration> = ContinuousClock(), logger: Logger
    ) {
        self.client = client
        self.nodeName = nodeName
        self.ceiling = ceiling
        self.clock = clock
        self.logger = logger
        objects = WatchedObjects(nodeName: nodeName, nodes: nodes, logger: logger)
        definitions = CustomResourceDefinitions(clock: clock)
        identification = PodIdentification(client: client, logger: logger)
        gateways = GatewayLookups(client: client, nodeName: nodeName, clock: clock, logger: logger)
        onDisk = cachePath.map { InventoryOnDisk(path: $0, clock: clock, logger: logger) }
        (changes, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    // MARK: start

    /// Starts the watches and waits until everything is listed. A server that is not there within `seconds` is gone on
    /// without, from the last inventory on disk, where there is one; otherwise it is waited for.
    public func start(patience seconds: Double = 5) async {
        for resource in WatchedObjects.resources { watches[resource] = follow(resource) }
        for name in ConfigMapReader.names {
            let reader = ConfigMapReader(client: client, name: name, clock: clock)
            tasks.append(Task { await reader.run { await self.take($0, ofConfigMap: name) } })
        }
        tasks.append(
            Task {
                await gateways.run(
                    while: { await self.objects.nodeReading != .whole },
                    report: { await self.take($1, ofGateway: $0) })
            })
        tasks.append(Task { [client] in await client.watchOverConnections() })
        if let onDisk { tasks.append(Task { await onDisk.keep { await self.wholeObjects } }) }
        let end = ContinuousClock.now + .milliseconds(Int64(seconds * 1000))
        var hasTold = false
        while !objects.isComplete || !hasAllConfigMaps {
            if ContinuousClock.now >= end && !hasTold {
                if goOnFromDisk() { return }
                hasTold = true
                logger.warning("waiting for the API server", metadata: ["problem": "\(problemText)"])
            }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    /// Ends the watches and the client. What is known stays.
    public func stop() async {
        isStopped = true
        let tasks = tasks + watches.values
        for task in tasks { task.cancel() }
        for task in tasks { await task.value }
        self.tasks = []
        await client.shutdown()
    }

    // MARK: watching

    private func follow(_ resource: Resource) -> Task<Void, Never> {
        let nodes = objects.nodeReading
        let selector =
            switch resource {
            case .pods: "spec.nodeName=\(nodeName)"
            case .nodes: nodes == .own ? "metadata.name=\(nodeName)" : ""
            default: ""
            }
        let watch = ResourceWatch(
            client: client, resource: resource, fieldSelector: selector,
            metadataOnly: resource == .namespaces || (resource == .nodes && nodes != .whole), ceiling: ceiling,
            clock: clock, logger: logger)
        return Task { await watch.run { await self.take($0, of: resource) } }
    }

    /// Ends the watch of a resource, and begins it with a list.
    private func followAnew(_ resource: Resource, after pause: Duration = .zero) {
        let old = watches[resource]
        old?.cancel()
        watches[resource] = Task {
            await old?.value
            try? await self.clock.sleep(for: pause)
            if !Task.isCancelled { self.replaceWatch(of: resource) }
        }
    }
    private func replaceWatch(of resource: Resource) { if !isStopped { watches[resource] = follow(resource) } }

    /// Cilium's agent copies a Node's labels to its CiliumNode. Where it does not, those of the Nodes are needed.
    private func readMoreOfNodesIfNeeded() {
        guard objects.lacksNodeLabels else { return }
        logger.notice(
            "CiliumNode objects do not carry the labels of their Nodes: watching the metadata of all Nodes instead")
        objects.readAllNodes()
        // The server may notice the end of the old watch a little later; and all helpers find out at once.
        followAnew(.nodes, after: .milliseconds(Int64.random(in: 500...2000)))
    }

    /// A pod may start right after the definition of a policy was installed: looks for it once more, so that the pod is not
    /// judged as having no policy.
    ///
    /// - Parameter end: no longer than until then. A server that does not answer leaves what is known.
    func lookForMissingPolicyKinds(until end: ContinuousClock.Instant) async {
        let look = definitions.beginLook()
        for resource in look.begun { followAnew(resource) }
        let end = min(end, .now + CustomResourceDefinitions.lookPatience)
        while definitions.isUnderWay(look), ContinuousClock.now < end {
            try? await Task.sleep(for: .milliseconds(5))
        }
        definitions.end(look)
    }

    // MARK: what the watches report

    func take(_ change: ResourceWatch.Change, of resource: Resource) {
        switch change {
        case .missing(let duration):
            definitions.noteAnswer(of: resource)
            takeMissing(resource, for: duration)
        case .replaced(let objects):
            definitions.noteAnswer(of: resource)
            definitions.missing.remove(resource)
            refusals[resource] = nil
            takeAll(objects, of: resource)
        case .refused(let why):
            if refusals[resource] == nil {
                logger.notice(
                    "permission to read a resource is missing",
                    metadata: ["resource": "\(resource)", "error": "\(why)"])
            }
            refusals[resource] = why
            problems[resource] = nil
            tell(objects.giveUp(resource))
        case .set(let object):
            if Resource.policyKinds.contains(resource) { note([object], of: resource) }
            if resource == .egressPolicies { tellStatus(of: object) }
            tell(objects.set(object, of: resource))
        case .deleted(let object):
            if Resource.policyKinds.contains(resource) {
                noteDeletion(of: object["metadata"]?["name"]?.string ?? "", resource)
            }
            tell(objects.delete(object, of: resource))
        case .problem(let text):
            if !text.isEmpty { definitions.noteAnswer(of: resource) }
            problems[resource] = text.isEmpty ? nil : text
        }
    }

    private func takeMissing(_ resource: Resource, for duration: Duration) {
        if definitions.missing.contains(resource) {
            problems[resource] = nil
            return
        }
        // Anything on the way may say "not found", and so does a server that is just starting.
        if duration < CustomResourceDefinitions.missingPatience, mayExist(resource) {
            problems[resource] =
                "\(resource): the API server says that there is no such resource; the objects that are known are kept for 10 s"
            return
        }
        if !resource.isOptional {
            logger.notice("the CustomResourceDefinition is not installed", metadata: ["resource": "\(resource)"])
        }
        definitions.missing.insert(resource)
        takeAll([], of: resource)
    }

    /// Whether objects of a resource were known, in this run or in one before.
    private func mayExist(_ resource: Resource) -> Bool {
        objects.everKnown.contains(resource) || onDisk?.has(resource) ?? false
    }

    /// The whole content of a resource.
    private func takeAll(_ content: [JSON], of resource: Resource) {
        if Resource.policyKinds.contains(resource) {
            let before = policyUIDs.removeValue(forKey: resource) ?? [:]
            note(content, of: resource)
            // Those that were deleted while no watch was there to tell.
            for name in before.keys where policyUIDs[resource]?[name] == nil { noteDeletion(of: name, resource) }
        }
        if resource == .egressPolicies { for object in content { tellStatus(of: object) } }
        let effect = objects.replace(content, of: resource)
        problems[resource] = nil
        if objects.isComplete { cachedAt = nil }
        tell(effect)
    }

    private func take(_ answer: ConfigMapReader.Answer, ofConfigMap name: String) {
        let wasKnown = objects.knownConfigMaps.contains(name)
        switch answer {
        case .found(let content):
            configMapProblems[name] = nil
            tell(objects.set(content, ofConfigMap: name))
        case .nothing(let why):
            configMapProblems[name] = why.isEmpty ? nil : why
            tell(objects.set(nil, ofConfigMap: name))
        case .problem(let text): configMapProblems[name] = text
        }
        // The inventory is not unknown for its lack any more.
        if objects.knownConfigMaps.contains(name) != wasKnown { signal.yield() }
    }
    private var hasAllConfigMaps: Bool { objects.knownConfigMaps.isSuperset(of: ConfigMapReader.names) }

    private func take(_ found: GatewayLookups.Found?, ofGateway name: String) {
        tell(objects.set(found, ofGateway: name))
    }

    // MARK: telling

    /// Notifies whoever waits for changes, and the task that writes to the own Node.
    private func tell(_ effect: WatchedObjects.Effect) {
        if effect.hasOwnNode {
            readMoreOfNodesIfNeeded()
            written?.yield(.ownNode(objects.ownNode))
        }
        if effect.isNews { signal.yield() }
    }

    private func noteDeletion(of policy: String, _ resource: Resource) {
        policyUIDs[resource]?[policy] = nil
        if resource == .egressPolicies { written?.yield(.policyDeleted(name: policy)) }
    }

    private func note(_ policies: [JSON], of resource: Resource) {
        for policy in policies {
            guard let name = policy["metadata"]?["name"]?.string else { continue }
            policyUIDs[resource, default: [:]][name] = policy["metadata"]?["uid"]?.string
        }
    }

    /// - Returns: nil where it is not known.
    func uid(ofPolicy name: String, _ source: EgressPolicy.Source) -> String? {
        policyUIDs[Resource.policies(source)]?[name]
    }

    private func tellStatus(of policy: JSON) {
        if let status = WrittenObject.status(of: policy) { written?.yield(status) }
    }

    /// What the watches show of the objects that this node writes to. One reader; to be called before the start.
    func writtenObjects() -> AsyncStream<WrittenObject> {
        let (objects, written) = AsyncStream.makeStream(of: WrittenObject.self)
        self.written = written
        return objects
    }

    // MARK: asking

    public func inventory() -> Inventory {
        var inventory = objects.inventory
        inventory.unknown = WatchedObjects.resources.filter { !objects.everKnown.contains($0) }.map {
            "\($0): not listed yet" + (problems[$0].map { " (\($0))" } ?? "")
        }
        inventory.followsNodes = cachedAt == nil && problems[.nodes] == nil
        for name in ConfigMapReader.names where !objects.knownConfigMaps.contains(name) {
            inventory.unknown.append(configMapProblems[name] ?? "ConfigMap kube-system/\(name): not read yet")
        }
        return inventory
    }

    public func look(atGateways names: Set<String>, inDoubt: Set<String>) async {
        await gateways.use(names, inDoubt: inDoubt)
    }

    func knows(namespace: String) -> Bool { objects.knows(namespace: namespace) }
    func knows(_ pod: PodReference) -> Bool { objects.knows(pod) }

    public func identify(_ pod: PodReference) async throws(PodLookup.Failure) -> PodLookup {
        let start = ContinuousClock.now
        let origin = try await identification.find(pod, in: self)
        identification.note(pod, by: origin, in: ContinuousClock.now - start)
        return PodLookup(origin)
    }

    // MARK: on disk

    /// For the disk; nil: what is known came from there, or is not whole.
    private var wholeObjects: WatchedObjects? {
        cachedAt == nil && objects.isComplete && hasAllConfigMaps ? objects : nil
    }

    /// Writes the inventory to disk now, if everything is listed.
    public func saveCache() async { if objects.isComplete { await onDisk?.save(objects) } }

    /// - Returns: whether there was an inventory to go on from.
    private func goOnFromDisk() -> Bool {
        guard let (found, date) = onDisk?.load() else { return false }
        tell(objects.load(found))
        cachedAt = date
        logger.warning(
            "the API server cannot be reached: using the inventory that was saved to disk",
            metadata: ["written": "\(date)", "problem": "\(problemText)"])
        return true
    }

    // MARK: status

    private var problemText: String {
        (problems.sorted { "\($0.key)" < "\($1.key)" }.map(\.value) + configMapProblems.values.sorted()).joined(
            separator: "; ")
    }

    private var renewalProblem: String? {
        let problem = client.renewalProblem
        return problem.isEmpty ? nil : "certificates could not be reloaded: \(problem)"
    }

    /// For people: not a problem, as the networks of Services may be known from elsewhere.
    private var serviceNotices: [String] {
        if let why = refusals[.serviceCIDRs] {
            return ["ServiceCIDR: permission to read it is missing; apply install/kubernetes/base/rbac.yaml (\(why))"]
        }
        return definitions.missing.contains(.serviceCIDRs)
            ? ["ServiceCIDR: the API server has no such resource (Kubernetes has it since 1.33)"] : []
    }

    public func status() -> JSON {
        SourceField.object(
            (.source, .string("kubernetes")), (.server, .string(client.access.server)),
            (.synchronized, .bool(objects.isComplete)),
            (.fromDiskSeconds, cachedAt.map { .integer(Int64(Date().timeIntervalSince($0))) }),
            (.podLookups, identification.status),
            (.notices, .array((definitions.notices + serviceNotices).map { .string($0) })),
            (.problems, .array(statusProblems.map { .string($0) })))
    }

    private var statusProblems: [String] {
        (Array(problems.values) + Array(configMapProblems.values) + [renewalProblem].compactMap { $0 }).sorted()
    }
}

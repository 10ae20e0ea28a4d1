import CLinux
import Firewall
import Foundation
import Inventory
import Logging
import Model
import Netlink
import Planner
import Reconcile

/// One node's state, and the order of what changes it: inventory, attachments, plan, kernel.
///
/// Everything here runs on a thread of its own (`KernelThread`). CNI verbs are in `Attachments/`, the mesh's timers in
/// `MeshWatch.swift`, what is told to others in `Publishing.swift`.
public actor NodeAgent {
    public struct Settings: Sendable {
        public var nodeName: String
        public var runDirectory: String
        public var configuration: Configuration
        /// nil: this node has no part in a mesh.
        public var keys: WireGuardKeyFile?
        public init(
            nodeName: String, runDirectory: String, configuration: Configuration, keys: WireGuardKeyFile? = nil
        ) {
            self.keys = keys
            self.nodeName = nodeName
            self.runDirectory = runDirectory
            self.configuration = configuration
        }
    }

    nonisolated let settings: Settings
    nonisolated let logger: Logger
    public nonisolated let source: any InventorySource
    private nonisolated let thread: KernelThread
    public nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }
    let store: AttachmentStore
    let reconciler: Reconciler

    // MARK: what is known

    /// The last inventory that was known completely.
    var inventory = Inventory()
    /// Why what the source says now is not known completely; empty when it is. Nothing is taken from such an inventory.
    var unknown: [String] = ["it has not been read yet"]
    /// An inventory was known completely since the start. Before that nothing is planned, and the kernel stays as it is.
    var isInformed = false
    /// `start` has loaded what was: nothing acts before.
    private var isStarted = false
    var facts: LocalFacts
    /// Those that the last plan was made of.
    private var plannedFacts: LocalFacts?
    var attachments: [String: Attachment] = [:]
    /// What an attachment was before its last ADD, for an ADD whose answer nobody takes.
    var replaced: [String: Attachment] = [:]
    /// What pods have that never had an ADD, by the attachment's ID.
    private var adopted: [String: [AssignedPolicy]] = [:]
    /// Pods whose attachment has ended and whose object is still there, by UID, with the addresses that they had: they are not
    /// adopted by those. (A new sandbox of the same pod has other ones.)
    var endedPods: [String: Set<IPAddress>] = [:]

    // MARK: what is wanted, and what came of it

    var plan = Plan()
    private var savedIDs = AssignedIDs()
    private var savedOverlay: IPAddress?
    private var savedServed: [AssignedPolicy] = []
    private var memory = PlannerMemory()
    /// What the kernel refused, or why it could not be looked at; empty when it is as planned.
    private(set) var failures: [ApplyOutcome.Failure] = []
    /// Why there is no WireGuard device; empty where there is, or none is wanted.
    private var meshDeviceProblem = ""
    /// Why WireGuard is not as planned; empty when it is.
    var meshProblem = ""
    private var retryTask: Task<Void, Never>?
    private var retryDelay = Duration.milliseconds(NodeAgent.firstRetryMilliseconds)
    private static let firstRetryMilliseconds = 100
    private static let longestRetry = Duration.seconds(30)
    /// How many objects were put back that somebody else had changed, since the start, by kind.
    private var repairs: [KernelPart: Int] = [:]
    /// Why something could not be kept on disk; empty where all could.
    private var storeProblem = ""

    // MARK: what is told to others

    nonisolated let publications: AsyncStream<[String: String]>
    let publication: AsyncStream<[String: String]>.Continuation
    nonisolated let reports: AsyncStream<[PolicyReport]>
    let report: AsyncStream<[PolicyReport]>.Continuation
    var lastReports: [PolicyReport] = []
    var gatewaysInUse: Set<String> = []
    private var lastProblems: Set<InventoryProblem> = []

    // MARK: the mesh

    var resolvedNames: [String: IPAddress] = [:]
    /// When this node last checked in with Kilo's nodes, seconds since 1970.
    var lastSeen: Int64 = 0
    /// Where peers behind a NAT were seen.
    var discoveredEndpoints: [WireGuardKey: SocketAddress] = [:]

    /// - Throws: where a netlink socket or the run directory cannot be had, or another helper has it.
    public init(settings: Settings, source: any InventorySource, logger: Logger) throws {
        self.settings = settings
        self.source = source
        self.logger = logger
        thread = try KernelThread("the kernel")
        store = AttachmentStore(runDirectory: settings.runDirectory)
        try store.prepare()
        try store.lock()
        reconciler = try Reconciler(
            privateKey: settings.keys?.privateKey, publicKey: { WireGuardKeyFile.publicKey(of: $0) })
        (publications, publication) = AsyncStream.makeStream(
            of: [String: String].self, bufferingPolicy: .bufferingNewest(1))
        (reports, report) = AsyncStream.makeStream(of: [PolicyReport].self, bufferingPolicy: .bufferingNewest(1))
        facts = LocalFacts(nodeName: settings.nodeName)
    }

    public nonisolated var nodeName: String { settings.nodeName }
    public nonisolated var configuration: Configuration { settings.configuration }
    public var eventPorts: (route: UInt32, firewall: UInt32) { (reconciler.routePort, reconciler.firewallPort) }

    // MARK: start

    /// Takes over what an earlier run left: attachments whose link is still there, numbers, kernel state. Drains the
    /// DELs that came in between. To be called once, before `cni.sock` listens and before any event is served.
    public func start() async throws {
        plan.ids = store.loadIDs()
        savedIDs = plan.ids
        // Numbers that the kernel knows and the file does not are not given to anything else.
        plan.ids.retired = try reconciler.numbersInUse()
        plan.ids.retired.tunnels.subtract(plan.ids.tunnels.values)
        plan.ids.retired.tables.subtract(plan.ids.tables.values)
        plan.ids.retired.nextHops.subtract(plan.ids.nextHops.values)
        savedOverlay = store.loadOverlayAddress()
        facts.lastOverlayAddress = try savedOverlay ?? reconciler.tunnelAddress()
        let deletions = try loadAttachments()
        adopted = store.loadAdopted()
        plan.served = store.loadServed()
        savedServed = plan.served
        isStarted = true
        let first = await source.inventory()
        // What an earlier run has told others stays told until WireGuard was looked at: they use it.
        discoveredEndpoints = first.nodes[settings.nodeName]?.mesh.discoveredEndpoints ?? [:]
        try refreshFacts()
        take(first, reason: "start")
        if !isInformed {
            logger.error(
                "the inventory is not known: the kernel stays as it is, and no pod can start",
                metadata: ["why": "\(unknown.joined(separator: "; "))"])
        }
        for id in deletions { store.forgetDeletion(id) }
    }

    /// - Returns: the records of DELs that were served.
    private func loadAttachments() throws -> [String] {
        let (found, damaged) = try store.load()
        for path in damaged {
            logger.error("not an attachment, left out and removed", metadata: ["file": "\(path)"])
            unlink(path)
        }
        let links = Dictionary(
            try reconciler.socket.links().map { ($0.index, $0.name) }, uniquingKeysWith: { a, _ in a })
        var gone: Set<IPAddress> = []
        for attachment in found {
            if attachment.hostIndex != 0, links[attachment.hostIndex] != attachment.hostName {
                logger.info("its link is gone: attachment ended", metadata: ["attachment": "\(attachment.id)"])
                store.remove(attachment.id)
                forgetPod(of: attachment)
                gone.formUnion(attachment.addresses.map(\.address))
            } else {
                attachments[attachment.id] = attachment
            }
        }
        let deletions = store.deletions()
        for id in deletions {
            if let attachment = attachments.removeValue(forKey: id) {
                logger.info("deleted while the helper was down", metadata: ["attachment": "\(id)"])
                store.remove(id)
                forgetPod(of: attachment)
                gone.formUnion(attachment.addresses.map(\.address))
            }
        }
        try? reconciler.deletePodRules(of: gone.subtracting(attachments.values.flatMap { $0.addresses.map(\.address) }))
        return deletions
    }

    // MARK: planning

    /// Reads what this node knows of itself, and publishes it where it is news.
    func refreshFacts() throws {
        let lastOverlay = facts.overlayAddress ?? facts.lastOverlayAddress
        facts = try LocalFactsReader(socket: reconciler.socket).read(
            nodeName: settings.nodeName, node: inventory.nodes[settings.nodeName],
            wireGuardDevice: settings.keys == nil ? nil : settings.configuration.mesh.interface,
            before: facts.wireGuard)
        facts.lastOverlayAddress = facts.overlayAddress ?? lastOverlay
        if settings.configuration.mesh.kiloInterop {
            facts.leftOutOfMesh = MeshTopology.notReadyForKilo(inventory.nodes).subtracting([settings.nodeName])
        }
        facts.publicKey = settings.keys?.publicKey
        facts.resolvedNames = resolvedNames
        publishNode()
    }

    func replan() {
        let attached = Array(attachments.values)
        let others = Planner.adoptedAttachments(
            inventory: inventory, nodeName: settings.nodeName, attached: attached, ended: endedPods
        ).map { attachment in
            var attachment = attachment
            attachment.assignment = adopted[attachment.id]
            return attachment
        }
        plannedFacts = facts
        plan = Planner.plan(
            configuration: settings.configuration, localFacts: facts, inventory: inventory,
            attachments: attached + others, previousIDs: plan.ids, previouslyServed: plan.served, memory: &memory)
        tellOthers()
    }

    /// Plans anew and makes the kernel equal to it, as far as it lets us. What it refuses is tried again, with back-off.
    ///
    /// - Parameters:
    ///   - reason: for the log.
    ///   - looking: parts of the kernel to look at first.
    ///   - isPlanned: the plan is of this moment.
    /// - Returns: what came of it; nil where nothing is planned, because the inventory is not known yet.
    /// - Throws: where the kernel cannot be looked at.
    @discardableResult
    func tryToConverge(
        _ reason: String, looking: Set<KernelPart> = [], isPlanned: Bool = false
    ) throws -> ApplyOutcome? {
        guard isStarted, isInformed else { return nil }
        if !isPlanned { replan() }
        // First on disk, then in the kernel: after a crash the numbers must be those that the kernel has.
        saveIDs()
        var outcome: ApplyOutcome
        do {
            outcome = try reconciler.apply(plan.host, looking: looking)
            if !outcome.meshDeviceProblem.isEmpty, facts.wireGuard != .none {
                // Everything else, without the mesh; `lookAtWireGuard` tries again.
                meshDeviceProblem = outcome.meshDeviceProblem
                facts.wireGuard = .none
                replan()
                outcome = try reconciler.apply(plan.host, looking: .all)
            } else if outcome.meshDeviceProblem.isEmpty, facts.wireGuard != .none {
                meshDeviceProblem = ""
            }
        } catch {
            reconciler.invalidate()
            settle([.init(operation: "looking at the kernel", message: "\(error)")], reason: reason)
            throw error
        }
        settle(outcome.failures, reason: reason)
        if outcome.isComplete {
            // What nobody wants any more is gone from the kernel: its numbers are free.
            plan.ids.retired = .init()
        }
        if outcome.count > 0 {
            logger.debug("kernel changed", metadata: ["changes": "\(outcome.count)", "reason": "\(reason)"])
        }
        remember()
        let problem = meshDeviceProblem.isEmpty ? reconciler.wireGuardProblem : meshDeviceProblem
        if problem != meshProblem {
            meshProblem = problem
            if !meshProblem.isEmpty {
                logger.error("WireGuard is not as planned", metadata: ["error": "\(meshProblem)"])
            }
        }
        return outcome
    }

    /// The same for whoever has nobody to tell of a failure: it is in the log, in status, and tried again.
    func converge(_ reason: String, looking: Set<KernelPart> = []) {
        _ = try? tryToConverge(reason, looking: looking)
    }

    /// Keeps in mind what failed, and tries again after a while that grows from one failure to the next.
    private func settle(_ new: [ApplyOutcome.Failure], reason: String) {
        if new.isEmpty {
            if !failures.isEmpty { logger.notice("the kernel is as planned again") }
            failures = []
            retryTask?.cancel()
            retryTask = nil
            retryDelay = .milliseconds(NodeAgent.firstRetryMilliseconds)
            return
        }
        for failure in new where !failures.contains(failure) {
            logger.error(
                "the kernel is not as planned",
                metadata: ["refused": "\(failure.operation)", "error": "\(failure.message)", "reason": "\(reason)"])
        }
        failures = new
        let delay = retryDelay
        retryDelay = min(retryDelay * 2, NodeAgent.longestRetry)
        retryTask?.cancel()
        retryTask = Task { [weak self] in
            try? await Task.sleep(for: delay)
            if !Task.isCancelled { await self?.retry() }
        }
    }

    private func retry() {
        try? refreshFacts()
        converge("trying again", looking: .all)
    }

    // MARK: on disk

    private func saveIDs() {
        let overlay = facts.overlayAddress ?? facts.lastOverlayAddress
        var ids = plan.ids
        ids.retired = .init()
        guard ids != savedIDs || overlay != savedOverlay else { return }
        keep("the numbers of tunnels, tables and next hops") {
            try store.save(ids, overlayAddress: overlay)
            (savedIDs, savedOverlay) = (ids, overlay)
        }
    }

    /// Keeps with each attachment what it got, for the day when it cannot be worked out.
    private func remember() {
        var others: [String: [AssignedPolicy]] = [:]
        for entry in plan.attachments {
            if entry.attachment.adopted {
                others[entry.attachment.id] = entry.assigned
            } else if var attachment = attachments[entry.attachment.id], attachment.assignment != entry.assigned {
                attachment.assignment = entry.assigned
                attachments[attachment.id] = attachment
                // An ADD that is under way writes its own.
                if store.has(attachment.id) { keep("attachment \(attachment.id)") { try store.save(attachment) } }
            }
        }
        if plan.served != savedServed {
            savedServed = plan.served
            keep("the policies that this node serves") { try store.saveServed(plan.served) }
        }
        if others != adopted {
            adopted = others
            keep("the assignments of adopted pods") { try store.saveAdopted(others) }
        }
    }

    private func keep(_ what: String, _ body: () throws -> Void) {
        do {
            try body()
            storeProblem = ""
        } catch {
            if storeProblem.isEmpty { logger.error("\(what) cannot be kept on disk", metadata: ["error": "\(error)"]) }
            storeProblem = "\(what): \(error)"
        }
    }

    // MARK: events

    /// The inventory may have changed.
    public func inventoryChanged() async {
        let new = await source.inventory()
        guard isStarted else { return }
        take(new, reason: "the inventory changed")
    }

    /// Takes an inventory, if it is known completely; otherwise the last one stays in force.
    func take(_ new: Inventory, reason: String) {
        guard new.revision.number >= inventory.revision.number else { return }
        if new.unknown != unknown {
            unknown = new.unknown
            if !new.unknown.isEmpty {
                logger.warning(
                    isInformed
                        ? "the inventory is not known completely: the last one stays in force"
                        : "the inventory is not known completely",
                    metadata: ["why": "\(new.unknown.joined(separator: "; "))"])
            }
        }
        reportProblems(new.problems)
        guard new.unknown.isEmpty else { return }
        let isFirst = !isInformed
        guard isFirst || new != inventory else { return }
        let own = inventory.nodes[settings.nodeName]
        inventory = new
        isInformed = true
        endedPods = endedPods.filter { uid, _ in new.pods.contains { $0.hasUID(uid) } }
        takeOverPods()
        // Of the inventory, facts depend on the own node (and with Kilo's nodes on who of them is there).
        if isFirst || own != new.nodes[settings.nodeName] || settings.configuration.mesh.kiloInterop {
            try? refreshFacts()
        }
        converge(reason, looking: isFirst ? .all : [])
        logger.info(
            "inventory read",
            metadata: [
                "nodes": "\(inventory.nodes.count)", "policies": "\(inventory.policies.count)",
                "pods": "\(inventory.pods.count)", "problems": "\(inventory.problems.count)",
            ])
    }

    private func reportProblems(_ problems: [InventoryProblem]) {
        let new = Set(problems)
        if new == lastProblems { return }
        for problem in problems where !lastProblems.contains(problem) { logger.warning("inventory: \(problem)") }
        lastProblems = new
    }

    /// Somebody else changed these parts of the kernel, or something that this node's own facts depend on: what is ours is
    /// put back.
    ///
    /// - Returns: whether there was anything to put back.
    @discardableResult
    public func kernelChanged(_ parts: Set<KernelPart>, facts factsToo: Bool) -> Bool {
        guard isStarted, isInformed else { return false }
        if factsToo { try? refreshFacts() }
        let isNews = facts != plannedFacts
        guard isNews || !parts.isEmpty else { return false }
        guard let outcome = try? tryToConverge("somebody changed the kernel", looking: parts), !isNews else {
            return true
        }
        guard outcome.count > 0 else { return false }
        for (part, count) in outcome.changes { repairs[part, default: 0] += count }
        let list = outcome.changes.sorted { $0.key.rawValue < $1.key.rawValue }
        logger.notice(
            "put back what somebody else had changed",
            metadata: Dictionary(
                list.map { ($0.key.rawValue, "\($0.value), \(repairs[$0.key] ?? 0) since the start") },
                uniquingKeysWith: { first, _ in first }))
        return true
    }

    /// Looks at what no notification tells of: settings of the host, and routes that went with somebody's device.
    public func lookAtHost() { kernelChanged([.links, .rules], facts: true) }

    /// Links disappeared: their attachments are over, whether a DEL comes or not.
    public func linksDeleted(_ indexes: Set<Int32>) {
        guard isStarted else { return }
        let ended = attachments.values.filter { $0.hostIndex != 0 && indexes.contains($0.hostIndex) }
        guard !ended.isEmpty else { return }
        for attachment in ended {
            logger.info("its link is gone: attachment ended", metadata: ["attachment": "\(attachment.id)"])
            end(attachment.id)
        }
        convergeAfterEnd(ended)
    }

    /// Events were lost: compares every attachment with the links that are there.
    public func lookAtEverything() {
        guard isStarted else { return }
        if let links = try? reconciler.socket.links() {
            let there = Set(links.map(\.index))
            linksDeleted(Set(attachments.values.map(\.hostIndex)).subtracting(there))
        }
        kernelChanged(.all, facts: true)
    }

    private func forgetPod(of attachment: Attachment) {
        guard !attachment.podUID.isEmpty else { return }
        endedPods[attachment.podUID, default: []].formUnion(attachment.addresses.map(\.address))
    }

    /// Keeps with each attachment what its Pod says now: should the object be gone before the pod is (`kubectl delete --force`),
    /// the pod is judged by that.
    private func takeOverPods() {
        var byName: [String: [String]] = [:]
        for attachment in attachments.values where !attachment.podUID.isEmpty {
            byName["\(attachment.podNamespace)/\(attachment.podName)", default: []].append(attachment.id)
        }
        if byName.isEmpty { return }
        for pod in inventory.pods {
            for id in byName["\(pod.namespace)/\(pod.name)"] ?? [] {
                guard var attachment = attachments[id], pod.hasUID(attachment.podUID) else { continue }
                attachment.labels = pod.labelsForLater
                attachment.annotations[Planner.policyAnnotation] =
                    pod.annotations[Planner.policyAnnotation] ?? attachment.annotations[Planner.policyAnnotation]
                guard attachment != attachments[id] else { continue }
                attachments[id] = attachment
                if store.has(id) { keep("attachment \(id)") { try store.save(attachment) } }
            }
        }
    }

    func end(_ id: String) {
        if let attachment = attachments[id] { forgetPod(of: attachment) }
        attachments[id] = nil
        replaced[id] = nil
        store.remove(id)
    }

    /// Takes the routing of attachments away that have ended; also while nobody knows what else is wanted.
    func convergeAfterEnd(_ ended: [Attachment]) {
        if isInformed { return converge("attachments ended") }
        let live = Set(attachments.values.flatMap { $0.addresses.map(\.address) })
        try? reconciler.deletePodRules(of: Set(ended.flatMap { $0.addresses.map(\.address) }).subtracting(live))
    }

    // MARK: reading

    /// All that others want to know, of one instant.
    public func snapshot() -> NodeSnapshot {
        NodeSnapshot(
            nodeName: settings.nodeName, configuration: settings.configuration, facts: facts, inventory: inventory,
            unknown: unknown, isInformed: isInformed, plan: plan, failures: failures, meshProblem: meshProblem,
            repairs: repairs, storeProblem: storeProblem)
    }

    /// Commands that would make the kernel equal to the plan, in their order; empty when it is.
    public func differences() throws -> [String] { isInformed ? try reconciler.differences(plan.host) : [] }
    public func firewallCounters() throws -> [KernelFirewall.CountedRule] { try reconciler.firewallCounters() }
}

/// One node's state at one instant.
public struct NodeSnapshot: Sendable {
    public let nodeName: String
    public let configuration: Configuration
    public let facts: LocalFacts
    public let inventory: Inventory
    public let unknown: [String]
    public let isInformed: Bool
    public let plan: Plan
    public let failures: [ApplyOutcome.Failure]
    public let meshProblem: String
    public let repairs: [KernelPart: Int]
    public let storeProblem: String
}

import CLinux
import Firewall
import FoundationEssentials
import Glibc
import HelperProtocol
import Inventory
import Liveness
import Logging
import Model
import Netlink
import Planner
import Reconcile

/// The state of one node, and the order of the events that change it: inventory, attachments, plan, kernel.
///
/// Everything here runs on a dedicated thread (`KernelThread`). CNI calls are in `Attachments/`, the timers of the mesh
/// are in `MeshWatch.swift`, and what is published is in `Publishing.swift`.
public actor NodeAgent {
    public struct Settings: Sendable {
        public var nodeName: String
        public var runDirectory: String
        public var configuration: Configuration
        /// nil: this node has no part in a mesh.
        public var keys: WireGuardKeyFile?
        /// Where the installer tells since when the plugin is in the chain; nil: nowhere.
        public var stateDirectory: String?
        public init(
            nodeName: String, runDirectory: String, configuration: Configuration, keys: WireGuardKeyFile? = nil,
            stateDirectory: String? = nil
        ) {
            self.keys = keys
            self.stateDirectory = stateDirectory
            self.nodeName = nodeName
            self.runDirectory = runDirectory
            self.configuration = configuration
        }
    }

    nonisolated let settings: Settings
    nonisolated let logger: Logger
    public nonisolated let source: any InventorySource
    public nonisolated let publisher: any NodePublisher
    nonisolated let thread: KernelThread
    public nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }
    let store: AttachmentStore
    let reconciler: Reconciler
    public nonisolated let failOver: FailOver
    public nonisolated let echoes: EchoMonitor
    nonisolated let targets: TargetChecks
    nonisolated let connections: ConnectionFlush
    private nonisolated let foreignChains: ForeignChainsWatch
    private var forwardDrops: [ForwardDrop] = []

    // MARK: what is known

    /// The last inventory that was known completely.
    var inventory = Inventory() {
        didSet { signsOfLife.note(isFollowed: inventory.followsNodes, now: Int64(time(nil))) }
    }
    /// Since when the Nodes' signs of life reach this helper.
    private var signsOfLife = SignsOfLife()
    /// Why the present inventory of the source is not complete; empty if it is. Nothing is removed because of an
    /// incomplete inventory.
    var unknown: [String] = ["it has not been read yet"]
    /// An inventory was known completely since the start. Before that nothing is planned, and the kernel stays as it is.
    var isInformed = false
    /// `start` has loaded what was: nothing acts before.
    private var isStarted = false
    var facts: LocalFacts
    /// Those that the last plan was made of.
    private var plannedFacts: LocalFacts?
    var attachments: [String: Attachment] = [:]
    var servedADDs = ServedADDs()
    var waitingADDs: [WaitingADD] = []
    /// What pods have that never had an ADD.
    private var adopted = AttachmentStore.Adopted()
    /// Why pods were adopted, by attachment, as people were told last.
    var toldAdoptions: [String: String] = [:]
    /// Attachments whose address belongs to another pod now, by ID, with that pod.
    private var outlived: [String: Pod] = [:]
    /// Pods whose ADD is expected, and for whose policies something is made ahead of it.
    private var madeAhead: Set<String> = []
    /// The same, for which nothing is made ahead, because the kernel has refused something while it was.
    private var notMadeAhead: Set<String> = []
    /// Pods whose attachment has ended.
    var endedPods = EndedPods()

    /// Addresses of pods that are gone and whose connections are to be forgotten, with the task that does it. The kernel goes
    /// through its whole table of connections for it, which costs some milliseconds of a processor: it is done for all pods
    /// that end within half a second, or as soon as another pod gets one of the addresses.
    private var forgetting: [IPAddress: Task<Void, Never>] = [:]
    private var toForget: Set<IPAddress> = []
    private var nextForgetting: Task<Void, Never>?
    /// The addresses that connections through this gateway may be translated to, when connection tracking was last
    /// checked.
    private var toldTranslations: [UInt16: IPAddress]?

    /// What this node as a gateway can reach and what it cannot.
    private var unreachable = TargetVerdicts(answering: [])
    /// Where the kernel's groups of next hops pointed when this helper started, by slot.
    private var waysAtStart: [String: String] = [:]

    // MARK: what is wanted, and what came of it

    var plan = Plan()
    private var savedIDs = AssignedIDs()
    private var savedOverlay: IPAddress?
    private var savedServed: [AssignedPolicy] = []
    private var savedAnswering: Set<EgressSpecification> = []
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
    /// How many objects that other programs had changed were repaired since the start, by kind.
    private var repairs: [KernelPart: Int] = [:]
    /// The last changes of gateways, the newest first.
    private var lastMoves: [NodeSnapshot.Move] = []
    /// Why something could not be kept on disk; empty where all could.
    private var storeProblem = ""

    // MARK: what is told to others

    nonisolated let publications: AsyncStream<[String: String]>
    let publication: AsyncStream<[String: String]>.Continuation
    nonisolated let reports: AsyncStream<[PolicyReport]>
    let report: AsyncStream<[PolicyReport]>.Continuation
    /// Others will be told of the plan that is there then.
    private var isToTell = false
    var lastReports: [PolicyReport] = []
    var gatewaysInUse: Set<String> = []
    var gatewaysInDoubt: Set<String> = []
    /// The interval of echoes that this node asks for as a gateway, milliseconds; nil: none.
    var askedEchoInterval: Int?
    private var lastProblems: Set<InventoryProblem> = []

    // MARK: the mesh

    /// Judges whether a Kilo runs here too.
    private var kilo = KiloOnThisNode(start: Int64(time(nil)))
    /// What it came to last.
    private(set) var kiloHere = KiloOnThisNode.Verdict.absent
    /// The mesh of this node is Culvert's: it was before this helper started, or Kilo has left it to Culvert since.
    private var hasMesh = false
    /// What Kilo may have left was looked at, since it was last there.
    private var hasTakenOver = false
    /// What Kilo has left is in the way, and nothing says that it has ended.
    private var isKiloInTheWay = false
    /// Another's key stays published in place of ours.
    private(set) var keyIsHeldBack = false
    /// The kernel was made equal to a plan since the start: until then what an earlier run has published stays.
    private(set) var hasConverged = false
    /// What was published last.
    var lastPublished: PublishedNode?
    var resolvedNames: [String: IPAddress] = [:]
    /// When this node last checked in with Kilo's nodes, seconds since 1970.
    var lastSeen: Int64 = 0
    /// Where peers behind a NAT were seen.
    var discoveredEndpoints: [WireGuardKey: SocketAddress] = [:]

    /// - Throws: where a netlink socket or the run directory cannot be had, or another helper has it.
    public init(
        settings: Settings, source: any InventorySource, publisher: any NodePublisher, logger: Logger
    ) throws {
        self.settings = settings
        self.source = source
        self.publisher = publisher
        self.logger = logger
        thread = try KernelThread("the kernel")
        store = AttachmentStore(runDirectory: settings.runDirectory)
        try store.prepare()
        try store.lock()
        reconciler = try Reconciler(
            privateKey: settings.keys?.privateKey, publicKey: { WireGuardKeyFile.publicKey(of: $0) })
        failOver = try FailOver()
        echoes = try EchoMonitor(failOver: failOver)
        targets = try TargetChecks()
        let background = try KernelThread("long lists")
        connections = try ConnectionFlush(on: background, logger: logger)
        foreignChains = ForeignChainsWatch(on: background)
        let failOver = failOver
        reconciler.groups = { hops, send in failOver.set(hops, send) }
        (publications, publication) = AsyncStream.makeStream(
            of: [String: String].self, bufferingPolicy: .bufferingNewest(1))
        (reports, report) = AsyncStream.makeStream(of: [PolicyReport].self, bufferingPolicy: .bufferingNewest(1))
        facts = LocalFacts(nodeName: settings.nodeName)
    }

    nonisolated var deletedDirectory: String { "\(settings.runDirectory)/deleted" }
    public nonisolated var nodeName: String { settings.nodeName }
    public nonisolated var runDirectory: String { settings.runDirectory }
    public nonisolated var configuration: Configuration { settings.configuration }
    /// Of sockets whose notifications are our own changes.
    public var eventPorts: (route: Set<UInt32>, firewall: Set<UInt32>) {
        ([reconciler.routePort, failOver.port], [reconciler.firewallPort, connections.firewallPort])
    }

    // MARK: start

    /// Takes over what an earlier run left: attachments whose link is still there, numbers, kernel state. Drains the
    /// DELs that came in between. To be called once, before `cni.sock` listens and before any event is served.
    public func start() async throws {
        plan.ids = store.loadIDs()
        savedIDs = plan.ids
        // Numbers that are used in the kernel and missing from the file are not given to anything else.
        plan.ids.retired = try reconciler.numbersInUse()
        plan.ids.retired.tunnels.subtract(plan.ids.tunnels.values)
        plan.ids.retired.tables.subtract(plan.ids.tables.values)
        plan.ids.retired.nextHops.subtract(plan.ids.nextHops.values)
        waysAtStart = try waysInKernel()
        savedOverlay = store.loadOverlayAddress()
        facts.lastOverlayAddress = try savedOverlay ?? reconciler.tunnelAddress()
        let deletions = try loadAttachments()
        adopted = store.loadAdopted()
        plan.served = store.loadServed()
        savedServed = plan.served
        savedAnswering = store.loadAnswering()
        unreachable = TargetVerdicts(answering: savedAnswering)
        targets.begin(unreachable)
        isStarted = true
        let first = await source.inventory()
        // What an earlier run has published stays published until WireGuard was checked, because other nodes use it.
        discoveredEndpoints = first.nodes[settings.nodeName]?.mesh.discoveredEndpoints ?? [:]
        hasMesh = try reconciler.hasMeshRoutes()
        askedEchoInterval = first.nodes[settings.nodeName]?.annotations[EchoPace.annotation].flatMap { Int($0) }
        try refreshFacts()
        take(first, reason: "start")
        if !isInformed {
            logger.error(
                "the inventory is not known: the kernel stays as it is, and no pod can start",
                metadata: ["why": "\(unknown.joined(separator: "; "))"])
        }
        for id in deletions { store.forgetDeletion(id) }
    }

    /// Which way each slot has in the kernel, for those that an earlier run has made.
    private func waysInKernel() throws -> [String: String] {
        let members = try reconciler.groupMembers()
        let keys = Dictionary(plan.ids.nextHops.map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
        var ways: [String: String] = [:]
        for (key, id) in plan.ids.nextHops {
            if let slot = Planner.slot(ofGroup: key), let way = members[id].flatMap({ keys[$0] }) { ways[slot] = way }
        }
        return ways
    }

    /// - Returns: the records of DELs that were served.
    private func loadAttachments() throws -> [String] {
        let (found, damaged) = try store.load()
        for path in damaged {
            logger.error("a file is not a valid record of an attachment: removed it", metadata: ["file": "\(path)"])
            unlink(path)
        }
        let links = Dictionary(
            try reconciler.socket.links().map { ($0.index, $0.name) }, uniquingKeysWith: { a, _ in a })
        var gone: Set<IPAddress> = []
        endedPods = store.loadEnded()
        for attachment in found {
            if attachment.hostIndex != 0, links[attachment.hostIndex] != attachment.hostName {
                logger.info(
                    "the pod's link is gone: the attachment has ended", metadata: ["attachment": "\(attachment.id)"])
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
                logger.info(
                    "a DEL that was recorded while the helper was down is done", metadata: ["attachment": "\(id)"])
                store.remove(id)
                forgetPod(of: attachment)
                gone.formUnion(attachment.addresses.map(\.address))
            }
        }
        let live = Set(attachments.values.flatMap { $0.addresses.map(\.address) })
        gone.subtract(live)
        try? reconciler.deletePodRules(of: gone)
        // The helper may have stopped before it had forgotten the connections of those that ended last.
        forgetConnections(of: gone.union(endedPods.addressesWithConnections.subtracting(live)))
        return deletions
    }

    // MARK: planning

    /// Reads the node's own facts, and publishes them if they have changed.
    func refreshFacts() throws {
        let lastOverlay = facts.overlayAddress ?? facts.lastOverlayAddress
        let leftOut = facts.leftOutOfMesh
        let bootBefore = facts.bootTime
        facts = try LocalFactsReader(socket: reconciler.socket).read(
            nodeName: settings.nodeName, node: inventory.nodes[settings.nodeName],
            wireGuardDevice: settings.keys == nil ? nil : settings.configuration.mesh.interface,
            before: facts.wireGuard)
        facts.lastOverlayAddress = facts.overlayAddress ?? lastOverlay
        facts.chain = chainRecord
        // A clock that is corrected a little is no news.
        let boot = LocalFactsReader.bootTime
        facts.bootTime = bootBefore.flatMap { abs($0 - boot) <= 2 ? $0 : nil } ?? boot
        if settings.configuration.mesh.kiloInterop {
            facts.leftOutOfMesh = silentForKilo(before: leftOut)
        }
        lookForKiloHere()
        facts.isMeshLeftToKilo = !hasMesh && kiloHere != .absent
        facts.forwardDrops = forwardDrops
        facts.publicKey = settings.keys?.publicKey
        facts.resolvedNames = resolvedNames
        publishNode()
    }

    private var chainRecord: ChainRecord? { settings.stateDirectory.flatMap { ChainRecordFile.read($0) } }

    /// Nodes that Kilo would leave out of the mesh at this moment.
    ///
    /// - Parameter leftOut: those that are left out already. Where signs of life have not come for long, no other is.
    func silentForKilo(before leftOut: Set<String>) -> Set<String> {
        let now = Int64(time(nil))
        return MeshTopology.notReadyForKilo(
            inventory.nodes, clock: now,
            silenceCountsOf: signsOfLife.have(lasted: MeshTopology.kiloSilence, at: now) ? nil : leftOut
        ).subtracting([settings.nodeName])
    }

    /// Why the mesh of this node is not Culvert's alone; empty where it is.
    var kiloProblem: String {
        let remedy = "keep Kilo off this node (stop its pod, or set the nodeSelector of its DaemonSet)"
        let consequence =
            hasMesh
            ? "nothing of the mesh is published from here"
            : "the mesh of this node is left to Kilo"
        switch kiloHere {
        case .absent:
            return isKiloInTheWay
                ? "the device \(KiloLeftovers.device) of Kilo is up, and may have the UDP port and the routes that this node needs: "
                    + "if Kilo does not run here any more, run culvertd cleanup --kilo" : ""
        case .undecided(let age):
            return
                "Kilo was here \(age) s ago: \(consequence) until it has been silent for \(KiloOnThisNode.patience) s"
        case .running:
            return "Kilo runs on this node too, and writes another key into the Node: \(consequence) until it has been "
                + "silent for \(KiloOnThisNode.lifetime) s; \(remedy)"
        }
    }

    /// Looks whether a Kilo is on this node, and takes over what one has left that is not there any more.
    private func lookForKiloHere() {
        guard let keys = settings.keys, isInformed else { return }
        let told = inventory.nodes[settings.nodeName]?.mesh
        let verdict = kilo.judge(
            key: told?.key, lastSeen: told?.lastSeen.seconds, own: keys.publicKey,
            written: lastPublished?.annotations["kilo.squat.ai/last-seen"].flatMap { Int64($0) },
            heardSince: signsOfLife.since, now: Int64(time(nil)))
        let isNews = verdict == .running && kiloHere != .running
        // Kilo's key stays in force until WireGuard has ours.
        if verdict == .absent, kiloHere != .absent, told?.key != keys.publicKey { keyIsHeldBack = true }
        kiloHere = verdict
        if isNews {
            logger.error(
                "Kilo and Culvert both publish annotations of this node", metadata: ["error": "\(kiloProblem)"])
            let (publisher, name, problem) = (publisher, settings.nodeName, kiloProblem)
            Task { await publisher.record(ObjectEvent(.node(name: name), reason: "KiloRunsToo", message: problem)) }
        }
        guard verdict == .absent else {
            hasTakenOver = false
            return
        }
        guard !hasTakenOver else { return }
        hasMesh = true
        let leftovers = KiloLeftovers(socket: reconciler.socket)
        do {
            guard settings.configuration.mesh.kiloInterop else {
                // Of a cluster that is not told to have Kilo's nodes, nobody knows whether Kilo has ended.
                isKiloInTheWay = try leftovers.isUp()
                hasTakenOver = !isKiloInTheWay
                return
            }
            let done = try leftovers.takeOver()
            hasTakenOver = true
            isKiloInTheWay = false
            if !done.isEmpty {
                logger.notice("took over from Kilo", metadata: ["done": "\(done.joined(separator: "; "))"])
            }
        } catch {
            if !isKiloInTheWay {
                logger.error("what Kilo has left cannot be taken over", metadata: ["error": "\(error)"])
            }
            isKiloInTheWay = true
        }
    }

    func replan() {
        findOutlived()
        let attached = attachments.values.filter { outlived[$0.id] == nil }
        let ended = endedPods.addresses
        var expected = Planner.expectedAttachments(
            inventory: inventory, nodeName: settings.nodeName, attached: Array(attachments.values), ended: ended,
            defaultPolicy: adopted.defaultPolicy)
        notMadeAhead.formIntersection(expected.map(\.id))
        expected.removeAll { notMadeAhead.contains($0.id) }
        madeAhead = Set(expected.map(\.id))
        let others = Planner.adoptedAttachments(
            inventory: inventory, nodeName: settings.nodeName, attached: attached, ended: ended,
            defaultPolicy: settings.configuration.defaultPolicy ?? adopted.defaultPolicy
        ).map { attachment in
            var attachment = attachment
            attachment.assignment = adopted.assignments[attachment.id]
            attachment.grantedAnnotation = adopted.granted.map { $0[attachment.id] ?? "" }
            return attachment
        }
        plannedFacts = facts
        var previous = failOver.previous
        previous.ways = waysAtStart
        plan = Planner.plan(
            configuration: settings.configuration, localFacts: facts, inventory: inventory,
            attachments: attached + others, expected: expected, gatewayHealth: failOver.health, previous: previous,
            previousIDs: plan.ids,
            previouslyServed: plan.served, unreachable: unreachable, memory: &memory)
        for (id, pod) in outlived.sorted(by: { $0.key < $1.key }) {
            plan.warnings.append(
                "the attachment of \(attachments[id]?.displayName ?? id) has no routing: its address now belongs to \(pod.namespace)/\(pod.name), which got it without an ADD"
            )
        }
        tellOthersSoon()
    }

    /// After what is under way: no ADD waits for it.
    private func tellOthersSoon() {
        if isToTell { return }
        isToTell = true
        Task {
            isToTell = false
            tellOthers()
        }
    }

    private func findOutlived() {
        let before = outlived
        outlived = Planner.outlivedAttachments(
            Array(attachments.values), inventory: inventory, nodeName: settings.nodeName, ended: endedPods.addresses)
        for (id, pod) in outlived where before[id]?.uid != pod.uid {
            logger.notice(
                "an attachment has no routing: its address now belongs to another pod, which got it without an ADD",
                metadata: ["attachment": "\(id)", "pod": "\(pod.namespace)/\(pod.name)"])
        }
    }

    /// An ADD has told the network's `defaultPolicy`, which is that of adopted pods too. A name that no policy has cuts
    /// nobody off who was there before.
    func learnDefaultPolicy(_ name: String) {
        guard name != adopted.defaultPolicy else { return }
        guard name.isEmpty || plan.policies.contains(where: { $0.name == name }) else {
            return logger.warning(
                "defaultPolicy names a policy that does not exist: adopted pods do not get it",
                metadata: ["policy": "\(name)"])
        }
        adopted.defaultPolicy = name
        keep("the defaultPolicy of adopted pods") { try store.saveAdopted(adopted) }
        guard settings.configuration.defaultPolicy == nil else { return }
        // Not while the ADD is waited for.
        Task { [weak self] in await self?.converge("adopted pods have another defaultPolicy") }
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
        var isBehind = failOver.prepare(plan.liveness)
        var outcome: ApplyOutcome
        do {
            outcome = try reconciler.apply(plan.host, looking: looking)
            if !outcome.meshDeviceProblem.isEmpty, facts.wireGuard != .none {
                // Everything else, without the mesh; `lookAtWireGuard` tries again.
                meshDeviceProblem = outcome.meshDeviceProblem
                facts.wireGuard = .none
                replan()
                isBehind = failOver.prepare(plan.liveness)
                outcome = try reconciler.apply(plan.host, looking: .all)
            } else if outcome.meshDeviceProblem.isEmpty, facts.wireGuard != .none {
                meshDeviceProblem = ""
            }
        } catch {
            reconciler.invalidate()
            failOver.retry()
            settle([.init(operation: "looking at the kernel", message: "\(error)")], reason: reason)
            throw error
        }
        if !outcome.isComplete, !madeAhead.isEmpty {
            // What is made ahead must keep nobody from anything: without it, the kernel may take all that is left.
            notMadeAhead.formUnion(madeAhead)
            logger.notice(
                "the kernel refused something: nothing is made any more for pods before their ADD",
                metadata: ["refused": "\(outcome.failures.first?.operation ?? "")", "pods": "\(notMadeAhead.count)"])
            replan()
            saveIDs()
            isBehind = failOver.prepare(plan.liveness)
            do { outcome = try reconciler.apply(plan.host, looking: .all) } catch {
                // The outcome before tells what is missing; it is tried again.
                logger.error("the kernel cannot be looked at", metadata: ["error": "\(error)"])
            }
        }
        settle(outcome.failures, reason: reason)
        failOver.retry()
        if outcome.isComplete {
            // Objects that no plan wants any more are gone from the kernel, so their numbers are free.
            plan.ids.retired = .init()
            failOver.settle(plan.liveness)
            waysAtStart = [:]
            forgetOldTranslations()
        } else if let used = try? reconciler.numbersInUse() {
            // The same for objects that are gone while something else is refused, perhaps for ever.
            plan.ids.retired.formIntersection(used)
            failOver.settle(plan.liveness, inKernel: used.nextHops)
        }
        if isBehind { Task { converge("a gateway was lost while this was planned") } }
        echoes.follow(plan.liveness)
        targets.follow(plan.liveness.targetChecks, known: plan.liveness.checkedEgresses)
        if outcome.count > 0 {
            logger.debug("kernel changed", metadata: ["changes": "\(outcome.count)", "reason": "\(reason)"])
        }
        remember()
        let wireGuardProblem = meshDeviceProblem.isEmpty ? reconciler.wireGuardProblem : meshDeviceProblem
        // Whoever goes by the key that stands is served by whoever has it. Ours is worth nothing before WireGuard has it.
        let standing = inventory.nodes[settings.nodeName]?.mesh.key
        keyIsHeldBack =
            standing != settings.keys?.publicKey
            && (!wireGuardProblem.isEmpty || standing != nil && facts.wireGuard == .none)
        hasConverged = true
        publishNode()
        let problem = [kiloProblem, wireGuardProblem].filter { !$0.isEmpty }.joined(separator: "; ")
        if problem != meshProblem {
            meshProblem = problem
            if !meshProblem.isEmpty {
                logger.error("WireGuard is not as planned", metadata: ["error": "\(meshProblem)"])
            }
        }
        return outcome
    }

    /// The same for callers that cannot report a failure: it is logged, shown in status, and tried again.
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
        var others = AttachmentStore.Adopted(defaultPolicy: adopted.defaultPolicy)
        for entry in plan.attachments {
            if entry.attachment.adopted {
                others.assignments[entry.attachment.id] = entry.assigned
                if !entry.grantedAnnotation.isEmpty {
                    others.granted?[entry.attachment.id] = entry.grantedAnnotation
                }
            } else if var attachment = attachments[entry.attachment.id],
                attachment.assignment != entry.assigned || attachment.grantedAnnotation != entry.grantedAnnotation
            {
                attachment.assignment = entry.assigned
                attachment.grantedAnnotation = entry.grantedAnnotation
                attachments[attachment.id] = attachment
                // An ADD that is under way writes its own.
                if store.has(attachment.id) { keep("attachment \(attachment.id)") { try store.save(attachment) } }
            }
        }
        // A restart is no fault. Targets that answer now are served at once. The state of the others is not known.
        let answering = (unreachable.answering ?? []).intersection(plan.liveness.checkedEgresses)
        if plan.served != savedServed || answering != savedAnswering {
            (savedServed, savedAnswering) = (plan.served, answering)
            keep("the policies that this node serves") { try store.saveServed(plan.served, answering: answering) }
        }
        if others != adopted {
            adopted = others
            keep("the assignments of adopted pods") { try store.saveAdopted(others) }
        }
    }

    func keep(_ what: String, _ body: () throws -> Void) {
        do {
            try body()
            storeProblem = ""
        } catch {
            if storeProblem.isEmpty { logger.error("\(what) cannot be saved to disk", metadata: ["error": "\(error)"]) }
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
                        ? "the inventory is not known completely: the last complete one stays in force"
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
        if endedPods.forgetOld(pods: new.pods, now: Date()) { saveEndedPods() }
        takeOverPods()
        // Of a pod that starts soon after the plugin was chained for the first time, the truth is told at once.
        if facts.chain == nil { facts.chain = chainRecord }
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
        guard let outcome = try? tryToConverge("another program changed the kernel", looking: parts), !isNews else {
            return true
        }
        guard outcome.count > 0 else { return false }
        for (part, count) in outcome.changes { repairs[part, default: 0] += count }
        let list = outcome.changes.sorted { $0.key.rawValue < $1.key.rawValue }
        logger.notice(
            "repaired what another program had changed",
            metadata: Dictionary(
                list.map { ($0.key.rawValue, "\($0.value), \(repairs[$0.key] ?? 0) since the start") },
                uniquingKeysWith: { first, _ in first }))
        return true
    }

    /// Looks at what no notification tells of: settings of the host, and routes that went with somebody's device.
    public func lookAtHost() async {
        if let drops = await foreignChains.read() { forwardDrops = drops }
        drainDeletions()
        kernelChanged([.links, .rules], facts: true)
        guard isInformed else { return }
        lookAtGateways()
        if endedPods.forgetOld(pods: inventory.pods, now: Date()) { saveEndedPods() }
    }

    /// Links disappeared: their attachments are over, whether a DEL comes or not.
    public func linksDeleted(_ indexes: Set<Int32>) {
        guard isStarted else { return }
        let ended = attachments.values.filter { $0.hostIndex != 0 && indexes.contains($0.hostIndex) }
        guard !ended.isEmpty else { return }
        for attachment in ended {
            logger.info(
                "the pod's link is gone: the attachment has ended", metadata: ["attachment": "\(attachment.id)"])
            end(attachment.id)
        }
        convergeAfterEnd(ended)
    }

    /// Serves DELs of which the plugin could only leave a record, because this helper did not answer it in time.
    ///
    /// - Parameter id: of this attachment only; nil: of all.
    public func drainDeletions(of id: String? = nil) {
        guard isStarted else { return }
        let records = id.map { store.hasDeletion($0) ? [$0] : [] } ?? store.deletions()
        let ended = records.compactMap { attachments[$0] }
        for attachment in ended {
            logger.notice(
                "a DEL that was recorded while the helper did not answer is done",
                metadata: ["attachment": "\(attachment.id)"])
            end(attachment.id)
        }
        if !ended.isEmpty { convergeAfterEnd(ended) }
        for record in records { store.forgetDeletion(record) }
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

    /// A container without an identity is not adopted by anything.
    func forgetPod(of attachment: Attachment) {
        guard !attachment.podUID.isEmpty else { return }
        endedPods.note(attachment, now: Date())
        guard let ended = endedPods.pods[attachment.podUID] else { return }
        keep("a pod whose attachment has ended") { try store.addEnded(attachment.podUID, ended) }
    }

    func saveEndedPods() { keep("pods whose attachment has ended") { try store.saveEnded(endedPods) } }

    /// Keeps with each attachment what its Pod says now: should the object be gone before the pod is (`kubectl delete --force`),
    /// the pod is judged by that.
    private func takeOverPods() {
        var byName: [String: [String]] = [:]
        for attachment in attachments.values where !attachment.podName.isEmpty {
            byName["\(attachment.podNamespace)/\(attachment.podName)", default: []].append(attachment.id)
        }
        if byName.isEmpty { return }
        for pod in inventory.pods {
            for id in byName["\(pod.namespace)/\(pod.name)"] ?? [] {
                guard var attachment = attachments[id], pod.isMeant(byUID: attachment.podUID) else { continue }
                attachment.labels = pod.labels
                attachment.serviceAccount = pod.serviceAccount
                attachment.takeAnnotation(of: pod)
                guard attachment != attachments[id] else { continue }
                attachments[id] = attachment
                if store.has(id) { keep("attachment \(id)") { try store.save(attachment) } }
            }
        }
    }

    /// - Parameter isOver: the pod is over with its attachment; otherwise it may run on without one.
    func end(_ id: String, podIsOver isOver: Bool = true) {
        if let attachment = attachments.removeValue(forKey: id), isOver {
            forgetPod(of: attachment)
            forgetConnections(of: Set(attachment.addresses.map(\.address)))
        }
        servedADDs.forget(id)
        store.remove(id)
    }

    /// Deletes the connection-tracking entries of pods that are gone, but for addresses that a pod has.
    func forgetConnections(of gone: Set<IPAddress>) {
        if gone.isEmpty { return }
        let addresses = gone.subtracting(attachments.values.lazy.flatMap { $0.addresses.map(\.address) })
        if addresses.isEmpty { return }
        toForget.formUnion(addresses)
        let task =
            nextForgetting
            ?? Task { [weak self] in
                // Whoever cannot wait cancels the sleep.
                try? await Task.sleep(for: .milliseconds(500))
                await self?.forgetCollected()
            }
        nextForgetting = task
        for address in addresses { forgetting[address] = task }
    }

    /// The pod is not gone after all.
    func keepConnections(of attachment: Attachment) {
        for network in attachment.addresses where toForget.remove(network.address) != nil {
            forgetting[network.address] = nil
        }
    }

    /// Before the program ends: leaves no connections of pods that are gone.
    public func finish() async {
        nextForgetting?.cancel()
        for task in Set(forgetting.values) { await task.value }
        // In one file: the release before knows no other.
        saveEndedPods()
    }

    private func forgetCollected() async {
        let (addresses, task) = (toForget, nextForgetting)
        (toForget, nextForgetting) = ([], nil)
        await connections.forget(of: addresses)
        // An address may have had another pod meanwhile, whose connections are to be forgotten by the next task.
        let done = addresses.filter { forgetting[$0] == task }
        for address in done { forgetting[address] = nil }
        for uid in endedPods.noteForgotten(done) {
            guard let ended = endedPods.pods[uid] else { continue }
            keep("a pod whose connections are forgotten") { try store.addEnded(uid, ended) }
        }
    }

    /// Of the addresses of an ADD those whose connections with another pod are not forgotten yet.
    func connectionsToForget(_ add: WaitingADD, _ displaced: [Attachment]) -> Set<IPAddress> {
        let others = displaced.filter { !add.forgotten.contains($0.id) }
        let taken = Set(others.flatMap { $0.addresses.map(\.address) })
        return Set(add.addresses.filter { forgetting[$0] != nil || taken.contains($0) })
    }

    /// Returns when the connections of these addresses are forgotten.
    func forgetNow(_ addresses: Set<IPAddress>) async {
        let tasks = addresses.reduce(into: [:]) { $0[$1] = forgetting[$1] }
        let others = addresses.subtracting(tasks.keys)
        if !others.isEmpty { await connections.forget(of: others) }
        for task in Set(tasks.values) {
            task.cancel()
            await task.value
        }
    }

    /// Connections through this gateway go on with the egress address that their policy has now, or not at all.
    private func forgetOldTranslations() {
        guard plan.translations != toldTranslations else { return }
        toldTranslations = plan.translations
        let (connections, translations) = (connections, plan.translations)
        Task { await connections.forget(notTranslatedAs: translations) }
    }

    /// Removes the routing of attachments that have ended, also while the plan is not known.
    func convergeAfterEnd(_ ended: [Attachment]) {
        if isInformed { return converge("attachments ended") }
        let live = Set(attachments.values.flatMap { $0.addresses.map(\.address) })
        try? reconciler.deletePodRules(of: Set(ended.flatMap { $0.addresses.map(\.address) }).subtracting(live))
    }

    // MARK: fail-over

    /// Slots point elsewhere now: the plan follows.
    func failedOver(_ reports: [FailOver.Report]) {
        reconciler.groupsMoved(reports.map(\.move.hop))
        let inUse = reports.filter(\.move.slot.isInUse)
        let moves = inUse.map { NodeSnapshot.Move($0) }
        for (report, move) in zip(inUse, moves) {
            var metadata: Logger.Metadata = [
                "policy": "\(move.policy)", "from": "\(move.from ?? "nowhere")", "to": "\(move.to ?? "nowhere")",
                "why": "\(move.why)", "switched": "\(move.switchedMilliseconds) ms",
            ]
            if !report.refusal.isEmpty { metadata["refused"] = "\(report.refusal)" }
            logger.notice("gateway changed", metadata: metadata)
        }
        lastMoves = Array((moves.reversed() + lastMoves).prefix(32))
        tell(moves)
        converge("a gateway changed", looking: reports.contains { !$0.refusal.isEmpty } ? [.nextHops] : [])
    }

    /// Reports that a gateway is up or down. `failedOver` decides where slots point.
    func healthChanged() {
        guard isInformed else { return }
        lookAtGateways()
        tellOfPolicies()
    }

    /// Targets answer, or do not any more.
    func targetsChanged(_ verdicts: TargetVerdicts) {
        for (egress, why) in verdicts.silent where unreachable.silent[egress] == nil {
            logger.warning(
                "this node is no longer a gateway for an egress identity",
                metadata: ["egress": "\(egress.text)", "why": "\(why)"])
        }
        unreachable = verdicts
        converge("targets changed")
    }

    // MARK: reading

    /// All that others want to know, of one instant.
    public func snapshot() -> NodeSnapshot {
        NodeSnapshot(
            nodeName: settings.nodeName, configuration: settings.configuration, facts: facts, inventory: inventory,
            unknown: unknown, isInformed: isInformed, plan: plan, failures: failures, meshProblem: meshProblem,
            repairs: repairs, storeProblem: storeProblem, moves: lastMoves, echoes: echoes.snapshot,
            askedEchoInterval: askedEchoInterval)
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
    /// The last changes of gateways, the newest first.
    public let moves: [Move]
    public let echoes: EchoMonitor.Snapshot
    /// The interval of echoes that this node asks for as a gateway, milliseconds; nil: none.
    public let askedEchoInterval: Int?

    /// A slot's gateway has changed.
    public struct Move: Sendable {
        public let policy: String
        /// Names of nodes; nil: nowhere, because all were down.
        public let from: String?
        public let to: String?
        public let why: String
        /// ISO 8601.
        public let at: String
        /// For how long the gateway before was silent; nil: it was not.
        public let silentMilliseconds: Double?
        /// How long the kernel took.
        public let switchedMilliseconds: Double

        init(_ report: FailOver.Report) {
            let move = report.move
            policy = move.slot.policy
            from = move.from.candidate?.node
            to = move.to.candidate?.node
            silentMilliseconds = report.silence.map { Double($0 / 1000) / 1000 }
            switchedMilliseconds = Double(report.switching / 1000) / 1000
            at = Date().formatted(.iso8601)
            if let silent = report.silence, let from {
                why =
                    "no echo from \(from) for \(silent / 1_000_000) ms"
                    + (to == nil ? ", and no other gateway is up" : "")
            } else if from == nil {
                why = "a gateway is up again"
            } else if to == nil {
                why = "no gateway is up"
            } else {
                why = "\(to ?? "") is preferred, and up"
            }
        }
    }
}

extension Attachment {
    /// Takes over which policy the Pod's annotation names, or that it names none any more.
    mutating func takeAnnotation(of pod: Pod) {
        let value = pod.annotations[Planner.policyAnnotation]
        if value != nil || isAnnotatedByPod { annotations[Planner.policyAnnotation] = value }
        isAnnotatedByPod = value != nil
    }
}

import CLinux
import CNI
import Firewall
import Foundation
import HelperProtocol
import Inventory
import Jansson
import Logging
import Model
import Netlink
import Planner
import Reconcile
import WireGuard

/// One node's state, and all that changes it: inventory, attachments, plan, kernel.
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

    let settings: Settings
    private let logger: Logger
    private let store: AttachmentStore
    private let reconciler: Reconciler
    public nonisolated let source: any InventorySource
    public private(set) var inventory = Inventory()
    public private(set) var facts: LocalFacts
    private var attachments: [String: Attachment] = [:]
    public private(set) var plan = Plan()
    /// Why the kernel is not as planned; empty when it is.
    public private(set) var datapathProblem = ""
    /// What this node has to say of itself, whenever that changes.
    nonisolated let publications: AsyncStream<[String: String]>
    private let publication: AsyncStream<[String: String]>.Continuation
    /// What became of the policies of which this node is to tell, whenever that changes.
    nonisolated let reports: AsyncStream<[PolicyReport]>
    private let report: AsyncStream<[PolicyReport]>.Continuation
    /// Why there is no WireGuard device; empty where there is, or none is wanted.
    private var deviceProblem = ""
    /// Why WireGuard is not as planned; empty when it is.
    public private(set) var meshProblem = ""
    private var savedIDs = AssignedIDs()
    private var nodeIndex = NodeIndex()
    private var gatewaysInUse: Set<String> = []
    private var lastReports: [PolicyReport] = []
    private var lastProblems: [InventoryProblem] = []
    private var resolvedNames: [String: IPAddress] = [:]
    /// When this node last checked in with Kilo's nodes, seconds since 1970.
    private var lastSeen: Int64 = 0
    /// Where peers behind a NAT were seen.
    private var discoveredEndpoints: [WireGuardKey: SocketAddress] = [:]

    /// - Throws: where a netlink socket or the run directory cannot be had.
    public init(settings: Settings, source: any InventorySource, logger: Logger) throws {
        self.settings = settings
        self.source = source
        self.logger = logger
        store = AttachmentStore(runDirectory: settings.runDirectory)
        try store.prepare()
        reconciler = try Reconciler(
            privateKey: settings.keys?.privateKey, publicKey: { WireGuardKeyFile.publicKey(of: $0) })
        (publications, publication) = AsyncStream.makeStream(
            of: [String: String].self, bufferingPolicy: .bufferingNewest(1))
        (reports, report) = AsyncStream.makeStream(of: [PolicyReport].self, bufferingPolicy: .bufferingNewest(1))
        facts = LocalFacts(nodeName: settings.nodeName)
    }

    public var eventPorts: (route: UInt32, firewall: UInt32) { (reconciler.routePort, reconciler.firewallPort) }

    // MARK: start

    /// Takes over what an earlier run left: attachments whose link is still there, numbers, kernel state. Drains the
    /// DELs that came in between. To be called once, before `cni.sock` listens.
    public func start() async throws {
        inventory = await source.inventory()
        reportProblems()
        savedIDs = store.loadIDs()
        plan.ids = savedIDs
        let (found, damaged) = store.load()
        for path in damaged {
            logger.error("not an attachment, left out and removed", metadata: ["file": "\(path)"])
            unlink(path)
        }
        let links = Dictionary(
            try reconciler.socket.links().map { ($0.index, $0.name) }, uniquingKeysWith: { a, _ in a })
        for attachment in found {
            if attachment.hostIndex != 0, links[attachment.hostIndex] != attachment.hostName {
                logger.info("its link is gone: attachment ended", metadata: ["attachment": "\(attachment.id)"])
                store.remove(attachment.id)
            } else {
                attachments[attachment.id] = attachment
            }
        }
        for id in store.deletions() {
            if attachments.removeValue(forKey: id) != nil {
                logger.info("deleted while the helper was down", metadata: ["attachment": "\(id)"])
                store.remove(id)
            }
        }
        // What an earlier run has told others stays told until WireGuard was looked at: they use it.
        discoveredEndpoints = inventory.nodes[settings.nodeName]?.mesh.discoveredEndpoints ?? [:]
        try refreshFacts()
        replan()
        reconcile(full: true)
        for id in store.deletions() { store.forgetDeletion(id) }
    }

    // MARK: planning

    private func refreshFacts() throws {
        facts = try LocalFactsReader(socket: reconciler.socket).read(
            nodeName: settings.nodeName, node: inventory.nodes[settings.nodeName],
            wireGuardDevice: settings.keys == nil ? nil : settings.configuration.mesh.interface,
            before: facts.wireGuard)
        if settings.configuration.mesh.kiloInterop {
            facts.leftOutOfMesh = MeshTopology.notReadyForKilo(inventory.nodes).subtracting([settings.nodeName])
        }
        facts.publicKey = settings.keys?.publicKey
        facts.resolvedNames = resolvedNames
        do {
            try publish(
                PublishedNode(
                    facts: facts, discovered: discoveredEndpoints, configuration: settings.configuration,
                    node: inventory.nodes[settings.nodeName],
                    wireGuardAddress: plan.host.links.first { $0.kind == .wireguard }?.address, lastSeen: lastSeen))
        } catch { logger.error("\(error)") }
    }

    private func publish(_ node: PublishedNode) throws {
        publication.yield(node.annotations)
        try store.publish(node)
    }

    private func replan() {
        let attached = attachments.values.sorted { $0.id < $1.id }
        let all =
            attached
            + Planner.adoptedAttachments(inventory: inventory, nodeName: settings.nodeName, attached: attached)
        plan = Planner.plan(
            configuration: settings.configuration, localFacts: facts, inventory: inventory, attachments: all,
            previousIDs: plan.ids, index: &nodeIndex)
        let reports = policyReports
        if reports != lastReports {
            lastReports = reports
            report.yield(reports)
        }
        tellGateways()
        let events = plan.policies.compactMap { policy -> ObjectEvent? in
            guard policy.problem != "" else { return nil }
            if policy.gateway == nil && policy.attachments > 0 {
                return ObjectEvent(
                    .policy(name: policy.name, source: policy.source), reason: "NoGateway", message: policy.problem)
            }
            // Of what works in spite of it, one node tells.
            if policy.isLocalGateway, policy.source == .cilium, inventory.cilium?.hasEgressGateway == true {
                return ObjectEvent(
                    .policy(name: policy.name, source: policy.source), reason: "CiliumEgressGatewayActive",
                    message: policy.problem)
            }
            return nil
        }
        if !events.isEmpty {
            let source = source
            Task { for event in events { await source.record(event) } }
        }
    }

    private func tellGateways() {
        let names = Set(plan.policies.filter { $0.attachments > 0 }.compactMap(\.gateway))
        guard names != gatewaysInUse else { return }
        gatewaysInUse = names
        let source = source
        Task { await source.useGateways(names) }
    }

    /// One node tells of each policy: its gateway, or where it has none, the first by name that runs a helper.
    private var policyReports: [PolicyReport] {
        let ours = plan.policies.filter { $0.source == .culvert && ($0.isLocalGateway || $0.gateway == nil) }
        // Looking at every node is only worth it where it decides.
        let rank =
            ours.contains { $0.gateway == nil } ? inventory.nodes.keys.count { $0 < settings.nodeName } : 0
        return ours.map { policy in
            PolicyReport(
                name: policy.name, activeGateways: [policy.gateway].compactMap { $0 }, reason: policy.problem,
                rank: policy.gateway == nil ? rank : 0)
        }
    }

    /// Saves the numbers first: after a crash they must be those that the kernel has.
    private func applyPlan(full: Bool) throws {
        if plan.ids != savedIDs {
            try store.save(plan.ids)
            savedIDs = plan.ids
        }
        let changes: Int
        do {
            changes = try reconciler.apply(plan.host, full: full)
            deviceProblem = ""
        } catch let error as MeshDeviceFailure {
            // Everything else, without the mesh; `lookAtWireGuard` tries again.
            deviceProblem = error.description
            facts.wireGuard = .none
            replan()
            changes = try reconciler.apply(plan.host, full: true)
        }
        if changes > 0 { logger.debug("kernel changed", metadata: ["changes": "\(changes)"]) }
    }

    private func reconcile(full: Bool) {
        do {
            try applyPlan(full: full)
            if !datapathProblem.isEmpty { logger.notice("the kernel is as planned again") }
            datapathProblem = ""
        } catch {
            reconciler.invalidate()
            if datapathProblem != "\(error)" {
                logger.error("the kernel is not as planned", metadata: ["error": "\(error)"])
            }
            datapathProblem = "\(error)"
        }
        let problem = deviceProblem.isEmpty ? reconciler.wireGuardProblem : deviceProblem
        if problem != meshProblem {
            meshProblem = problem
            if !meshProblem.isEmpty {
                logger.error("WireGuard is not as planned", metadata: ["error": "\(meshProblem)"])
            }
        }
    }

    private func reportProblems() {
        for problem in inventory.problems where !lastProblems.contains(problem) {
            logger.warning("inventory: \(problem)")
        }
        lastProblems = inventory.problems
    }

    // MARK: events

    /// The inventory may have changed.
    public func inventoryChanged() async {
        let new = await source.inventory()
        guard new.revision.number >= inventory.revision.number, new != inventory else { return }
        let own = inventory.nodes[settings.nodeName]
        inventory = new
        reportProblems()
        // Of the inventory, facts depend on the own node (and with Kilo's nodes on who of them is there).
        if own != inventory.nodes[settings.nodeName] || settings.configuration.mesh.kiloInterop { try? refreshFacts() }
        replan()
        reconcile(full: false)
        logger.info(
            "inventory read",
            metadata: [
                "nodes": "\(inventory.nodes.count)", "policies": "\(inventory.policies.count)",
                "pods": "\(inventory.pods.count)", "problems": "\(inventory.problems.count)",
            ])
    }

    /// Somebody else changed the kernel: repair what is ours.
    public func kernelChanged() {
        let before = facts
        try? refreshFacts()
        if facts != before { replan() }
        reconcile(full: true)
    }

    /// Links disappeared: their attachments are over, whether a DEL comes or not.
    public func linksDeleted(_ indexes: Set<Int32>) {
        let ended = attachments.values.filter { $0.hostIndex != 0 && indexes.contains($0.hostIndex) }
        guard !ended.isEmpty else { return }
        for attachment in ended {
            logger.info("its link is gone: attachment ended", metadata: ["attachment": "\(attachment.id)"])
            end(attachment.id)
        }
        replan()
        reconcile(full: false)
    }

    /// Events were lost: compares every attachment with the links that are there.
    public func lookAtEverything() {
        if let links = try? reconciler.socket.links() {
            let there = Set(links.map(\.index))
            linksDeleted(Set(attachments.values.map(\.hostIndex)).subtracting(there))
        }
        kernelChanged()
    }

    private func end(_ id: String) {
        attachments[id] = nil
        store.remove(id)
    }

    // MARK: the mesh

    /// DNS names of endpoints.
    public var endpointNames: Set<String> {
        guard settings.configuration.mesh.enabled else { return [] }
        let endpoints = inventory.nodes.values.compactMap(\.mesh.endpoint) + inventory.peers.compactMap(\.endpoint)
        return Set(endpoints.compactMap { if case .name(let name) = $0.host { name } else { nil } })
    }

    /// New answers of the resolver; a name without an answer keeps its last one.
    public func namesResolved(_ answers: [String: IPAddress]) {
        let merged = resolvedNames.merging(answers) { _, new in new }
        guard merged != resolvedNames else { return }
        resolvedNames = merged
        try? refreshFacts()
        replan()
        reconcile(full: false)
    }

    /// Locations, gateways and peers, as this node sees them.
    public var topology: MeshTopology {
        MeshTopology(
            configuration: settings.configuration.mesh,
            nodes: MeshPlan.partakers(MeshPlan.withOwnFacts(inventory, facts: facts), facts: facts),
            peers: inventory.peers)
    }

    /// The WireGuard device of this node, where it is a gateway.
    public func wireGuardDevice() throws -> WireGuardStatus? {
        guard let device = plan.host.wireGuard else { return nil }
        return try reconciler.wireGuardDevice(device.name)
    }

    /// What Kilo's nodes do every 30 seconds: says that this node is there, and looks who has not said so lately.
    public func checkInWithKilo() async {
        guard settings.configuration.mesh.kiloInterop else { return }
        // A newer last-seen alone is no news of the inventory; whatever else has changed is.
        let new = await source.inventory()
        if new != inventory { await inventoryChanged() } else { inventory = new }
        lastSeen = Int64(time(nil))
        let before = facts.leftOutOfMesh
        try? refreshFacts()
        guard facts.leftOutOfMesh != before else { return }
        logger.notice(
            "Kilo would leave these nodes out of the mesh",
            metadata: ["nodes": "\(facts.leftOutOfMesh.sorted().joined(separator: " "))"])
        replan()
        reconcile(full: false)
    }

    /// Looks at WireGuard: where peers with a keepalive are, which others behind a NAT need to know; and whether a
    /// peer that is silent has another endpoint by now.
    public func lookAtWireGuard() {
        if !meshProblem.isEmpty || !datapathProblem.isEmpty {
            try? refreshFacts()
            replan()
            reconcile(full: true)
            if !meshProblem.isEmpty { return }
        }
        guard let wanted = plan.host.wireGuard, let device = try? reconciler.wireGuardDevice(wanted.name) else {
            return
        }
        let now = Int64(time(nil))
        var seen: [WireGuardKey: SocketAddress] = [:]
        let nodes = inventory.nodes.values.filter { $0.mesh.persistentKeepalive > 0 }
        let behindNAT = Set(nodes.compactMap(\.mesh.key)).union(
            inventory.peers.filter { $0.persistentKeepalive > 0 }.map(\.publicKey))
        for peer in wanted.peers where behindNAT.contains(peer.publicKey) {
            if let there = device.peers[peer.publicKey],
                there.configuration.endpoint.map({ plan.host.isRoutedByWireGuard($0.address) }) != true,
                now - there.lastHandshake < WireGuardChanges.handshakeLifetime
            {
                seen[peer.publicKey] = there.configuration.endpoint
            }
        }
        if seen != discoveredEndpoints {
            discoveredEndpoints = seen
            try? refreshFacts()
        }
        let changes = WireGuardChanges.between(
            device.peers, wanted.peers, previous: wanted.peers, now: now, isRouted: plan.host.isRoutedByWireGuard)
        if !changes.isEmpty { reconcile(full: true) }
    }

    // MARK: requests of the plugin

    /// Serves one request. `descriptor` is the pod's netlink socket, already checked, or -1; it is closed here.
    public func serve(_ request: HelperRequest, descriptor: Int32) async -> HelperResponse {
        let pod: PodNetwork?
        do { pod = descriptor >= 0 ? try PodNetwork(adopting: descriptor) : nil } catch {
            return .failed(CNIError(.datapathFailure, "\(error)"))
        }
        do throws(CNIError) {
            switch request.command {
            case .add:
                guard let pod else { throw CNIError(.requestRefused, "ADD came without the pod's netlink socket") }
                try await identify(request)
                do throws(CNIError) { return .done(routes: try add(request, pod)) } catch {
                    if error.code == CNIError.Code.policyRefused.rawValue { record(error, request) }
                    throw error
                }
            case .check:
                guard let pod else { throw CNIError(.requestRefused, "CHECK came without the pod's netlink socket") }
                try check(request, pod)
            case .del: delete(request)
            case .gc: collectGarbage(request)
            case .status:
                if !datapathProblem.isEmpty {
                    throw CNIError(.notAvailable, "the kernel is not as planned", details: datapathProblem)
                }
            case .version: break
            }
            return .done(routes: [])
        } catch {
            logger.warning(
                "\(request.command.rawValue) failed",
                metadata: [
                    "container": "\(request.containerID)", "code": "\(error.code)", "error": "\(error.message)",
                    "details": "\(error.details)",
                ])
            return .failed(error)
        }
    }

    private func add(_ request: HelperRequest, _ pod: PodNetwork) throws(CNIError) -> [CNIResult.AddedRoute] {
        var addresses: [IPNetwork] = []
        for text in request.addresses {
            guard let address = IPNetwork(text).flatMap({ _ in IPAddress(String(text.split(separator: "/")[0])) })
            else {
                throw CNIError(.invalidConfiguration, "prevResult has the address \"\(text)\", which is none")
            }
            addresses.append(IPNetwork(host: address))
        }
        let interface: KernelLink
        do {
            guard let found = try pod.interface(request.interfaceName) else {
                throw NetlinkError(operation: "ip link show dev \(request.interfaceName)", code: ENODEV)
            }
            interface = found
        } catch {
            throw CNIError(
                .datapathFailure, "the pod has no interface \(request.interfaceName)", details: "\(error)")
        }
        // Should the pod vanish from the inventory before its DEL, it keeps what it had.
        let known = inventory.pods.first { request.isOf($0) }
        var attachment = Attachment(
            containerID: request.containerID, interfaceName: request.interfaceName, network: request.network,
            podNamespace: request.podNamespace, podName: request.podName, podUID: request.podUID,
            addresses: addresses,
            labels: known?.labels ?? Dictionary(request.labels, uniquingKeysWith: { _, last in last }),
            annotations: Dictionary(request.annotations, uniquingKeysWith: { _, last in last }),
            defaultPolicy: request.defaultPolicy)
        if interface.kind == "veth" || interface.kind == "netkit", interface.isInOtherNamespace {
            attachment.hostIndex = interface.peerIndex
            attachment.hostName = hostName(of: interface.peerIndex)
            if attachment.hostName.isEmpty { attachment.hostIndex = 0 }
        }

        let before = attachments
        let planBefore = plan
        for old in attachments.values
        where old.id != attachment.id && old.addresses.contains(where: addresses.contains) {
            logger.notice(
                "its address has a new owner: attachment ended",
                metadata: ["attachment": "\(old.id)", "by": "\(attachment.id)"])
            attachments[old.id] = nil
        }
        attachments[attachment.id] = attachment
        replan()
        func undo() {
            attachments = before
            let ids = plan.ids
            plan = planBefore
            plan.ids = ids
            replan()
            reconcile(full: false)
        }
        guard let entry = plan.attachments.first(where: { $0.attachment.id == attachment.id }) else {
            undo()
            throw CNIError(.datapathFailure, "the attachment is not in the plan")
        }
        guard entry.refusal.isEmpty else {
            undo()
            throw CNIError(.policyRefused, entry.refusal)
        }
        do {
            try applyPlan(full: false)
            datapathProblem = ""
            let routes = try pod.setRoutes(
                entry.podRoutes.map { ($0.destination, $0.mtu) }, interface: interface.index)
            for route in routes { attachment.podRoutes[route.destination] = route.mtu }
            attachments[attachment.id] = attachment
            try store.save(attachment)
            for id in before.keys where attachments[id] == nil { store.remove(id) }
            return routes.map {
                CNIResult.AddedRoute(
                    destination: $0.destination.description, gateway: $0.gateway?.description ?? "", mtu: Int64($0.mtu))
            }
        } catch {
            reconciler.invalidate()
            undo()
            _ = try? pod.setRoutes([], interface: interface.index)
            throw CNIError(.datapathFailure, "the pod's routing cannot be programmed", details: "\(error)")
        }
    }

    /// Waits until the inventory knows the pod, and takes what it then says.
    private func identify(_ request: HelperRequest) async throws(CNIError) {
        let pod = PodReference(
            namespace: request.podNamespace, name: request.podName, uid: request.podUID,
            isDecided: request.annotations.contains { $0.0 == Planner.policyAnnotation },
            deadline: .now + .milliseconds(request.timeoutMilliseconds))
        let lookup: PodLookup
        do { lookup = try await source.identify(pod) } catch {
            throw CNIError(.tryAgainLater, error.message)
        }
        guard lookup.origin == .get || lookup.origin == .watch else { return }
        await inventoryChanged()
        guard inventory.pods.contains(where: { request.isOf($0) }) else {
            throw CNIError(.tryAgainLater, "the pod \(request.podNamespace)/\(request.podName) is gone again")
        }
    }

    /// An Event on a pod that may not start.
    private func record(_ error: CNIError, _ request: HelperRequest) {
        guard !request.podNamespace.isEmpty, !request.podName.isEmpty else { return }
        let event = ObjectEvent(
            .pod(namespace: request.podNamespace, name: request.podName, uid: request.podUID),
            reason: "EgressRefused", message: error.message)
        let source = source
        Task { await source.record(event) }
    }

    /// Undoes an ADD whose answer nobody took.
    public func abort(_ request: HelperRequest) {
        logger.notice(
            "the plugin hung up before the answer: ADD undone", metadata: ["container": "\(request.containerID)"])
        delete(request)
    }

    private func hostName(of index: Int32) -> String {
        (try? reconciler.socket.link(index: index))??.name ?? ""
    }

    private func delete(_ request: HelperRequest) {
        let id = "\(request.containerID)_\(request.interfaceName)"
        guard attachments[id] != nil else { return }
        end(id)
        replan()
        reconcile(full: false)
    }

    private func collectGarbage(_ request: HelperRequest) {
        guard let valid = request.validAttachments else { return }
        let keep = Set(valid.map { "\($0.containerID)_\($0.interfaceName)" })
        for attachment in attachments.values
        where attachment.network == request.network && !keep.contains(attachment.id) {
            logger.info("garbage collected", metadata: ["attachment": "\(attachment.id)"])
            end(attachment.id)
        }
        replan()
        reconcile(full: false)
    }

    private func check(_ request: HelperRequest, _ pod: PodNetwork) throws(CNIError) {
        func failed(_ message: String, _ details: String = "") -> CNIError {
            CNIError(.checkFailed, message, details: details)
        }
        let id = "\(request.containerID)_\(request.interfaceName)"
        guard let attachment = attachments[id] else { throw failed("there is no attachment \(id)") }
        let claimed = Set(
            request.addresses.compactMap { IPAddress(String($0.split(separator: "/").first ?? "")) }.map {
                IPNetwork(host: $0)
            })
        guard claimed == Set(attachment.addresses) else {
            throw failed("prevResult has other addresses than the attachment \(id)")
        }
        let differences: [String]
        let present: [KernelRoute]
        do {
            differences = try reconciler.differences(plan.host)
            present = try pod.ownRoutes()
        } catch { throw CNIError(.datapathFailure, "\(error)") }
        guard differences.isEmpty else {
            throw failed("the kernel differs from the plan", differences.prefix(5).joined(separator: "; "))
        }
        for (destination, mtu) in attachment.podRoutes.sorted(by: { $0.key < $1.key }) {
            guard present.contains(where: { $0.destination == destination && Int($0.mtu) == mtu }) else {
                throw failed("the pod has lost its route to \(destination) with mtu \(mtu)")
            }
        }
    }

    // MARK: reading

    /// Commands that would make the kernel equal to the plan; empty when it is.
    public func differences() throws -> [String] { try reconciler.differences(plan.host) }
    public func firewallCounters() throws -> [KernelFirewall.CountedRule] { try reconciler.firewallCounters() }
    public var nodeName: String { settings.nodeName }
    public var configuration: Configuration { settings.configuration }
}

extension HelperRequest {
    /// The inventory's pod is the one that this request is about.
    func isOf(_ pod: Pod) -> Bool {
        !podName.isEmpty && pod.namespace == podNamespace && pod.name == podName
            && (podUID.isEmpty || pod.hasUID(podUID))
    }
}

import Model

/// The planner's result for one node.
public struct Plan: Equatable, Sendable {
    public var host = HostState()
    public var ids = AssignedIDs()
    public var attachments: [AttachmentPlan] = []
    public var policies: [PolicyPlan] = []
    /// Policies that this node serves as a gateway, for the record on disk.
    public var served: [AssignedPolicy] = []
    /// The egress address of each zone of connection tracking that this node uses as a gateway: whatever else is in such a
    /// zone was translated before, and is forgotten.
    public var translations: [UInt16: IPAddress] = [:]
    /// What changes with the gateways' health.
    public var liveness = LivenessPlan()
    /// How large a pod's packet to another location may be, line by line; empty without a mesh.
    public var meshMTU: [PathMTULine] = []
    /// What would break the routing of pods, or is not as it should be, for people.
    public var warnings: [String] = []
    public init() {}
}

/// What one attachment gets.
public struct AttachmentPlan: Equatable, Sendable {
    public struct Policy: Equatable, Sendable {
        public let name: String
        /// nil: no gateway matches, and the destinations are unreachable; or all are down.
        public let gateway: String?
        /// There are candidates, and all of them are down.
        public let isDown: Bool
        /// Set if this node knows it.
        public let egressAddress: IPAddress?
    }
    public let attachment: Attachment
    /// Why it has no ADD; nil: it has one.
    public var adoption: Adoption?
    public var policies: [Policy] = []
    public var table: UInt32?
    /// Smallest path MTU over its policies, bytes.
    public var mtu: Int?
    /// Routes that belong into the pod: destination and path MTU.
    public var podRoutes: [PodRoute] = []
    /// Why an ADD of it must fail; empty when it may go on.
    public var refusal = ""
    /// What it gets, for the record on disk.
    public var assigned: [AssignedPolicy] = []
    /// The value that its annotation is permitted to have, or was before, for the record on disk; empty: none.
    public var grantedAnnotation = ""
    /// Why it is held, or goes on with what a policy said before, one reason each; empty for a pod like any other.
    public var holds: [String] { assigned.map(\.reason).filter { !$0.isEmpty } }
    /// Something that it may send to is unreachable because a policy cannot be carried out.
    public var isHeld: Bool { assigned.contains(where: \.isHeld) }
    /// IPv6 addresses, which no policy of this release covers.
    public var uncovered: [IPAddress] = []

    public struct PodRoute: Equatable, Hashable, Sendable {
        public let destination: IPNetwork
        public let mtu: Int
        public init(destination: IPNetwork, mtu: Int) {
            self.destination = destination
            self.mtu = mtu
        }
    }
    public init(attachment: Attachment) { self.attachment = attachment }
}

/// What became of one policy.
public struct PolicyPlan: Equatable, Sendable {
    public var name: String { shared.content.name }
    public var source: EgressPolicy.Source { shared.content.source }
    /// The gateway that is active; nil: there is none.
    public var gateway: String? { shared.content.gateway }
    /// Nodes that may be its gateway, in order of preference.
    public var candidates: [String] { shared.content.candidates }
    /// The same for every node, whatever the policy's locality says; in order of name.
    public var allCandidates: [String] { shared.content.allCandidates }
    /// Each pod has a gateway of its own: `gateway` is the first by preference.
    public var isSpread: Bool { shared.content.isSpread }
    /// This node is the gateway.
    public var isLocalGateway: Bool { shared.content.isLocalGateway }
    public var egressAddress: IPAddress? { shared.content.egressAddress }
    public var destinations: [IPNetwork] { shared.content.destinations }
    /// `metadata.generation` of the object that was planned; nil: the source does not have it.
    public var generation: Int64? { shared.content.generation }
    public var standing: Standing { shared.content.standing }
    public internal(set) var attachments = 0

    /// All that does not depend on pods.
    struct Content: Equatable, Sendable {
        let name: String
        let source: EgressPolicy.Source
        let gateway: String?
        let candidates: [String]
        let allCandidates: [String]
        let isSpread: Bool
        let isLocalGateway: Bool
        let egressAddress: IPAddress?
        let destinations: [IPNetwork]
        let generation: Int64?
        let standing: Standing
    }
    /// In one place that copies share: every plan has all policies.
    private final class Shared: Sendable {
        let content: Content
        init(_ content: Content) { self.content = content }
    }
    private let shared: Shared
    init(_ content: Content) { shared = Shared(content) }

    public static func == (a: Self, b: Self) -> Bool {
        a.attachments == b.attachments && (a.shared === b.shared || a.shared.content == b.shared.content)
    }

    /// Whether it is carried out, and why not.
    public enum Standing: Equatable, Sendable {
        case inForce
        /// It is not carried out, or not fully, as the nodes are at the moment.
        case impaired(String)
        /// Nothing of it can be carried out, whatever the nodes are.
        case refused(String)
    }
    /// Why it is not (fully) in force; empty when it is.
    public var problem: String {
        switch standing {
        case .inForce: ""
        case .impaired(let why): why
        case .refused(let why): "refused: \(why)"
        }
    }
    /// Why it is refused; nil where it is not.
    public var refusal: String? { if case .refused(let why) = standing { why } else { nil } }
}

public enum Planner {
    /// Of a node: its default egress address, which its helper publishes.
    public static let egressAddressAnnotation = "culvert.dev/egress-address"

    /// Of a pod: the policy's name, or `none`.
    public static let policyAnnotation = "culvert.dev/egress-policy"

    /// The one pure function in the middle: no I/O, no clock, no random numbers.
    ///
    /// - Parameter expected: pods that will have an ADD (`expectedAttachments`); they are not in the plan's `attachments`.
    public static func plan(
        configuration: Configuration, localFacts facts: LocalFacts, inventory: Inventory, attachments: [Attachment],
        expected: [Attachment] = [],
        gatewayHealth: GatewayHealth = GatewayHealth(), previous: GatewayActivation.Previous = .init(),
        previousIDs: AssignedIDs = AssignedIDs(), previouslyServed: [AssignedPolicy] = [],
        unreachable: TargetVerdicts = TargetVerdicts()
    ) -> Plan {
        var memory = PlannerMemory()
        return plan(
            configuration: configuration, localFacts: facts, inventory: inventory, attachments: attachments,
            expected: expected, gatewayHealth: gatewayHealth, previous: previous, previousIDs: previousIDs,
            previouslyServed: previouslyServed, unreachable: unreachable, memory: &memory)
    }

    /// The same plan, sooner where little has changed since the memory was last used.
    public static func plan(
        configuration: Configuration, localFacts facts: LocalFacts, inventory: Inventory, attachments: [Attachment],
        expected: [Attachment] = [],
        gatewayHealth: GatewayHealth = GatewayHealth(), previous: GatewayActivation.Previous = .init(),
        previousIDs: AssignedIDs = AssignedIDs(), previouslyServed: [AssignedPolicy] = [],
        unreachable: TargetVerdicts = TargetVerdicts(), memory: inout PlannerMemory
    ) -> Plan {
        var inventory = inventory
        inventory.nodes = MeshPlan.withOwnFacts(
            inventory, facts: facts, kiloMesh: configuration.mesh.kiloInterop ? configuration.mesh : nil)
        memory.nodes.update(
            inventory, nodeName: facts.nodeName, overlay: configuration.overlay, nodeCIDRs: configuration.nodeCIDRs,
            topologyLabel: configuration.mesh.topologyLabel)
        let node = inventory.nodes[facts.nodeName]
        let attachments = inOrder(attachments)
        let everyone = attachments + inOrder(expected)

        // Who gets what, and where it goes at the moment.
        let catalogue = memory.policyCatalogue(
            configuration: configuration, nodeName: facts.nodeName, inventory: inventory)
        let assignment = PolicyAssignment(
            catalogue: catalogue, inventory: inventory, nodeName: facts.nodeName, attachments: everyone,
            expectedFrom: attachments.count, memory: &memory)
        let used = usedPolicies(assignment.choices)
        // Those of pods that are there. What is expected has no say in how gateways are watched and what is told of them.
        let inUse = expected.isEmpty ? used : usedPolicies(assignment.choices.prefix(attachments.count))
        let ends = TunnelEnds(configuration: configuration, facts: facts, inventory: inventory)

        // What this node does as a gateway, and in the mesh.
        let service = GatewayService(
            catalogue: catalogue, before: previouslyServed, facts: facts, node: node, unreachable: unreachable)
        var health = gatewayHealth
        health.doubtful = memory.nodes.doubtful
        let targetChecks = service.targetChecks(facts: facts, node: node)
        let own = ownHealth(
            facts.nodeName, service: service,
            pending: Set(targetChecks.map(\.egress).filter { unreachable.isPending($0) }))
        for (end, state) in own { health.states[end] = state }
        var plan = Plan()
        let nodes = memory.nodes
        let catalogueOutcome = memory.outcome(
            .init(
                catalogueGeneration: memory.catalogueGeneration, nodesGeneration: memory.nodes.generation,
                facts: facts, health: health, cilium: inventory.cilium,
                services: inventory.services, unreachable: unreachable)
        ) { known in
            let (slots, places) = previous.difference(from: known.previous)
            if slots.isEmpty && places.isEmpty { return }
            known.previous = previous
            var changed: Set<Int> = []
            for slot in slots { changed.formUnion(catalogue.bySlot[slot] ?? []) }
            for place in places { changed.formUnion(catalogue.byPlace[place] ?? []) }
            for place in changed {
                known.activation.decide(
                    catalogue.entries[place].assigned, health: health, previous: previous, address: ends.address)
            }
            let outcome = PlanOutcome(
                overlay: configuration.overlay, facts: facts, inventory: inventory, catalogue: catalogue,
                activation: known.activation, service: service)
            for place in changed {
                let entry = catalogue.entries[place]
                let name = "\(entry.policy.source.rawValue)/\(entry.policy.name)"
                if let index = known.places[name] { known.policies[index] = outcome.policy(entry) }
            }
        } make: {
            let activation = GatewayActivation(
                catalogue.entries.map(\.assigned), health: health, previous: previous, address: ends.address)
            let outcome = PlanOutcome(
                overlay: configuration.overlay, facts: facts, inventory: inventory, catalogue: catalogue,
                activation: activation, service: service)
            let policies = outcome.policies()
            return .init(
                senders: senders(
                    catalogue.entries.filter { $0.couldSelectHere && $0.refusal.isEmpty }.map(\.assigned), ends: ends),
                activation: activation, previous: previous, policies: policies,
                places: Dictionary(
                    policies.enumerated().map { ("\($1.source.rawValue)/\($1.name)", $0) },
                    uniquingKeysWith: { first, _ in first }),
                warnings: outcome.warningsOfPolicies()
                    + PlanWarnings.ofDestinations(
                        catalogue: catalogue, index: nodes, hasNodeCIDRs: !configuration.nodeCIDRs.isEmpty)
                    + PlanWarnings.ofServices(catalogue: catalogue, configuration: configuration, inventory: inventory))
        }
        let activation = GatewayActivation(
            used, health: health, previous: previous, before: catalogueOutcome.activation, address: ends.address)
        let mesh = meshPlan(
            configuration: configuration, facts: facts, inventory: inventory, warnings: &plan.warnings)

        // Tunnels, next hops, tables.
        let tunnels = ends.local.map { local in
            TunnelLinks(
                encapsulation: configuration.encapsulation, local: local,
                overlayMTU: ends.overlayMTU,
                senders: senders(used, ends: ends, before: catalogueOutcome.senders)
                    + (mesh?.senders ?? []).map { .init(gateway: $0, identity: .defaultAddress) },
                served: Set(service.served.map(\.identity)), previous: previousIDs)
        }
        let strictUplink = facts.hasStrictUplink ? facts.underlayDevice : nil
        let hops = memory.nextHops(
            .init(
                outcomeGeneration: memory.outcomeGeneration, policies: used,
                choices: used.map { activation.choice(of: $0) }, tunnels: tunnels?.tunnels, uplink: strictUplink,
                numbers: previousIDs.nextHops,
                retired: previousIDs.retired.nextHops)
        ) {
            NextHops(
                used, activation: activation, tunnels: tunnels, nodeName: facts.nodeName, overlay: ends.address,
                uplink: strictUplink, previous: previousIDs)
        }
        let keptInputs = PlannerMemory.KeptInputs(
            configuration: configuration, cilium: inventory.cilium, services: inventory.services, local: ends.local,
            others: used.isEmpty
                ? []
                : (mesh?.keptNetworks ?? []) + [facts.apiServerAddress].compactMap { $0.map { IPNetwork(host: $0) } },
            generation: memory.nodes.generation)
        let kept =
            used.isEmpty ? KeptNetworks(v4: []) : memory.keptNetworks(keptInputs, inventory: inventory)
        let tableNumbers = AssignedIDs.assign(
            Set(assignment.tableKeys.filter { !$0.isEmpty })
                .union(service.otherInterfaces.keys),
            previous: previousIDs.tables, first: Ownership.firstTable, retired: previousIDs.retired.tables)
        let tables = PolicyTables(
            attachments: everyone, assignment: assignment, numbers: tableNumbers, kept: kept, memory: &memory)

        plan.served = service.policies
        plan.liveness.targetChecks = targetChecks
        plan.liveness.checkedEgresses = Set(service.specifications.filter { !$0.targets.isEmpty })
        func sessions(_ policies: [AssignedPolicy]) -> [LivenessPlan.Session] {
            EchoRouting.sessions(policies, hops: hops, nodeName: facts.nodeName) {
                EchoPace.asked(by: inventory.nodes[$0])
            }
        }
        plan.liveness.sessions = sessions(inUse)
        plan.liveness.servedIntervals = service.echoIntervals
        let unwatched = EchoRouting.unwatched(inUse, hops: hops, nodeName: facts.nodeName)
        if let first = unwatched.first {
            plan.warnings.append(
                "it is not known whether gateway \(first)\(unwatched.count == 1 ? "" : " (and \(unwatched.count - 1) more)") is "
                    + "alive: there are more next hops than echo sessions (the maximum is \(Ownership.mostEchoSessions)); "
                    + "mode: active-standby needs fewer than spread")
        }
        plan.liveness.slots = hops.inOrder
        if !expected.isEmpty {
            let slotsInUse = Set(inUse.map(\.slot))
            for place in plan.liveness.slots.indices where !slotsInUse.contains(plan.liveness.slots[place].key) {
                plan.liveness.slots[place].isInUse = false
            }
        }
        plan.liveness.own = own
        plan.liveness.doubtful = health.doubtful
        plan.liveness.destination = tunnels?.local
        plan.liveness.source = EchoRouting.source(of: node, besides: tunnels?.local)
        plan.liveness.obstacle = EchoRouting.obstacle(plan.liveness, facts: facts, overlay: configuration.overlay)
        plan.ids.tunnels = tunnels?.numbers ?? previousIDs.tunnels
        plan.ids.nextHops = hops.numbers
        plan.ids.tables = tableNumbers
        plan.ids = plan.ids.retiring(previousIDs)

        // The state of this node's kernel.
        plan.host.links = tunnels?.links ?? []
        plan.host.neighbours = tunnels?.neighbours ?? []
        plan.host.fouPorts = tunnels?.fouPorts ?? []
        plan.host.nextHops = hops.hops
        for table in tables.routes(hops, memory: &memory) { plan.host.add(table) }
        plan.host.add(service.routes(tableNumbers))
        plan.host.rules = tables.rules
        EchoRouting.add(expected.isEmpty ? plan.liveness.sessions : sessions(used), hops: hops, to: &plan.host)
        if let tunnels {
            plan.host.rules += TunnelGuard.rules(tunnels) { service.table(of: $0, tableNumbers) }
            plan.host.add(
                TunnelGuard.routes(
                    node: node, pods: attachments.flatMap(\.addressesV4), mesh: mesh?.reachedNetworks ?? []))
        }
        if let tunnels, let mesh {
            mesh.add(to: &plan.host, tunnels: tunnels)
            plan.meshMTU = mesh.pathMTU(tunnels)
        }
        plan.host.neighbours = Array(Set(plan.host.neighbours)).sorted { ($0.device, $0.peer) < ($1.device, $1.peer) }
        plan.host.rules = Rule.inOrder(plan.host.rules)
        plan.host.firewall = FirewallPlan.table(
            .init(
                tunnels: tunnels?.tunnels, local: tunnels?.local, node: node, generation: nodes.generation,
                serving: service.served, refused: service.refused, configuration: configuration,
                isNative: inventory.cilium?.isNative == true),
            tunnels: tunnels, index: nodes, tables: tables, mesh: mesh, memory: &memory)

        plan.translations = SourceTranslation.translations(
            tunnels: tunnels, serving: service.served, mesh: mesh != nil)

        // Warnings for people.
        let outcome = PlanOutcome(
            overlay: configuration.overlay, facts: facts, inventory: inventory, catalogue: catalogue,
            activation: activation, service: service)
        plan.attachments = outcome.attachments(
            attachments, assignment: assignment, tables: tables,
            meshRoutes: tunnels.flatMap { tunnels in mesh?.podRoutes(tunnels: tunnels) } ?? [],
            knowsItself: ends.local != nil
        ) { PodRoutes.mtu(of: $0, tunnels: tunnels, overlay: ends.address) }
        plan.policies = catalogueOutcome.policies
        for entry in plan.attachments {
            for policy in entry.assigned {
                if let place = catalogueOutcome.places[policy.title] {
                    plan.policies[place].attachments += 1
                }
            }
        }
        plan.warnings =
            PlanWarnings.ofNode(
                facts: facts, inventory: inventory, node: node, overlay: configuration.overlay,
                honorsCiliumPolicies: configuration.honorCiliumPolicies)
            + (tables.tables.allSatisfy(\.pods.isEmpty)
                ? []
                : PlanWarnings.ofInbound(facts: facts, cilium: inventory.cilium)
                    + PlanWarnings.ofForeignChains(
                        facts: facts,
                        seesReplies: configuration.overlay != .none && inventory.cilium?.isNative != true))
            + plan.warnings + catalogueOutcome.warnings + outcome.warnings(plan.attachments)
            + PlanWarnings.ofPace(plan.liveness.sessions)
        return plan
    }

    /// By ID. An ID is put together from two texts: each once.
    private static func inOrder(_ attachments: [Attachment]) -> [Attachment] {
        let ids = attachments.map(\.id)
        return attachments.indices.sorted { ids[$0] < ids[$1] }.map { attachments[$0] }
    }

    /// The policies of these pods, each slot once, in order of the pods.
    private static func usedPolicies(_ choices: some Sequence<PolicyAssignment.Choice>) -> [AssignedPolicy] {
        var seenPolicies: Set<ObjectIdentifier> = []
        var seen: Set<String> = []
        var used: [AssignedPolicy] = []
        for choice in choices {
            for policy in choice.policies
            where seenPolicies.insert(policy.identity).inserted && seen.insert(policy.slot).inserted {
                used.append(policy)
            }
        }
        return used
    }

    /// This node's own ways out need no echo: either it serves them, or it does not.
    ///
    /// - Parameter pending: those that it does not serve yet, because their targets are being asked for the first time.
    private static func ownHealth(
        _ node: String, service: GatewayService, pending: Set<EgressSpecification>
    ) -> [GatewayEnd: GatewayHealth.State] {
        var health: [GatewayEnd: GatewayHealth.State] = [:]
        for egress in service.specifications {
            let end = GatewayEnd(node: node, identity: EgressIdentity(egress))
            if case .serves? = service.result(egress) {
                health[end] = .up
            } else {
                health[end] = pending.contains(egress) ? .unknown : .down
            }
        }
        return health
    }

    /// Tunnels exist to every gateway that a pod here uses or could come to use, before it has to.
    ///
    /// - Parameter before: those that there are already.
    private static func senders(
        _ policies: [AssignedPolicy], ends: TunnelEnds, before: [TunnelLinks.Sender] = []
    ) -> [TunnelLinks.Sender] {
        var senders = before
        var seen = Set(before)
        for policy in policies {
            for candidate in policy.candidates {
                guard let address = ends.address(of: candidate.node) else { continue }
                let sender = TunnelLinks.Sender(gateway: address, identity: EgressIdentity(candidate.egress))
                if seen.insert(sender).inserted { senders.append(sender) }
            }
        }
        return senders
    }

    private static func meshPlan(
        configuration: Configuration, facts: LocalFacts, inventory: Inventory, warnings: inout [String]
    ) -> MeshPlan? {
        guard configuration.mesh.enabled, !facts.isMeshLeftToKilo else { return nil }
        let topology = MeshTopology(
            configuration: configuration.mesh,
            nodes: MeshPlan.partakers(inventory.nodes, facts: facts), peers: inventory.peers)
        let mesh = MeshPlan(configuration: configuration, facts: facts, inventory: inventory, topology: topology)
        warnings += topology.problems.map { "mesh: \($0)" } + (mesh?.warnings ?? []).map { "mesh: \($0)" }
        if mesh == nil {
            warnings.append("mesh: no gateway is known for \(facts.nodeName), so it is not part of a mesh")
        }
        return mesh
    }
}

extension Planner {
    /// For containers of which neither identity nor labels are known.
    public static let labelsRemedy =
        "set labels with CULVERT_LABELS in CNI_ARGS, if the caller of the plugins passes it on, or with args.cni.labels"
}

extension Attachment {
    /// The container has neither an identity nor labels that a policy could select, and has not chosen a policy itself.
    public var isUnknown: Bool {
        !adopted && (podNamespace.isEmpty || podName.isEmpty) && labels.isEmpty && annotations.isEmpty
    }
    /// `namespace/name` of a pod, or the container's ID.
    public var displayName: String {
        podName.isEmpty ? containerID : podNamespace.isEmpty ? podName : "\(podNamespace)/\(podName)"
    }
}

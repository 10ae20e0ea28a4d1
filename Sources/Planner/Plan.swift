import Model

/// What the planner says about one node.
public struct Plan: Equatable, Sendable {
    public var host = HostState()
    public var ids = AssignedIDs()
    public var attachments: [AttachmentPlan] = []
    public var policies: [PolicyPlan] = []
    /// Policies that this node serves as a gateway, for the record on disk.
    public var served: [AssignedPolicy] = []
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
        /// nil: no gateway matches, and the destinations are unreachable.
        public let gateway: String?
        /// Where this node knows it.
        public let egressAddress: IPAddress?
    }
    public let attachment: Attachment
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
    public let name: String
    public let source: EgressPolicy.Source
    /// The gateway that is active; nil: there is none.
    public let gateway: String?
    /// Nodes that may be its gateway, in order of preference.
    public let candidates: [String]
    /// This node is the gateway.
    public let isLocalGateway: Bool
    public let egressAddress: IPAddress?
    public let destinations: [IPNetwork]
    public internal(set) var attachments: Int
    /// Why it is not (fully) in force; empty when it is.
    public let problem: String
    /// Nothing of it can be carried out, whatever the nodes are.
    public var isRefused: Bool { problem.hasPrefix("refused: ") }
}

public enum Planner {
    /// Of a node: its default egress address, which its helper publishes.
    public static let egressAddressAnnotation = "culvert.dev/egress-address"

    /// Of a pod: the policy's name, or `none`.
    public static let policyAnnotation = "culvert.dev/egress-policy"

    /// The one pure function in the middle: no I/O, no clock, no random numbers.
    public static func plan(
        configuration: Configuration, localFacts facts: LocalFacts, inventory: Inventory, attachments: [Attachment],
        gatewayHealth: GatewayHealth = GatewayHealth(), previousIDs: AssignedIDs = AssignedIDs(),
        previouslyServed: [AssignedPolicy] = []
    ) -> Plan {
        var memory = PlannerMemory()
        return plan(
            configuration: configuration, localFacts: facts, inventory: inventory, attachments: attachments,
            gatewayHealth: gatewayHealth, previousIDs: previousIDs, previouslyServed: previouslyServed, memory: &memory)
    }

    /// The same plan, sooner where little has changed since the memory was last used.
    public static func plan(
        configuration: Configuration, localFacts facts: LocalFacts, inventory: Inventory, attachments: [Attachment],
        gatewayHealth: GatewayHealth = GatewayHealth(), previousIDs: AssignedIDs = AssignedIDs(),
        previouslyServed: [AssignedPolicy] = [], memory: inout PlannerMemory
    ) -> Plan {
        var inventory = inventory
        inventory.nodes = MeshPlan.withOwnFacts(inventory, facts: facts)
        memory.nodes.update(
            inventory, nodeName: facts.nodeName, overlay: configuration.overlay, nodeCIDRs: configuration.nodeCIDRs)
        let node = inventory.nodes[facts.nodeName]
        let attachments = attachments.sorted { $0.id < $1.id }

        // Who gets what, and where it goes at the moment.
        let catalogue = memory.policyCatalogue(
            configuration: configuration, nodeName: facts.nodeName, inventory: inventory)
        let assignment = PolicyAssignment(
            catalogue: catalogue, inventory: inventory, nodeName: facts.nodeName, attachments: attachments,
            memory: &memory)
        let used = usedPolicies(attachments, assignment)
        let ends = TunnelEnds(configuration: configuration, facts: facts, inventory: inventory)
        func canReach(_ gateway: String) -> Bool { ends.address(of: gateway) != nil }

        // What this node does as a gateway, and in the mesh.
        let service = GatewayService(catalogue: catalogue, before: previouslyServed, facts: facts, node: node)
        var plan = Plan()
        let nodes = memory.nodes
        let catalogueOutcome = memory.outcome(
            .init(
                catalogueGeneration: memory.catalogueGeneration, nodesGeneration: memory.nodes.generation,
                facts: facts, health: gatewayHealth, cilium: inventory.cilium)
        ) {
            let activation = GatewayActivation(
                catalogue.entries.map(\.assigned), health: gatewayHealth, canReach: canReach)
            let outcome = PlanOutcome(
                facts: facts, inventory: inventory, catalogue: catalogue, activation: activation, service: service)
            let policies = outcome.policies()
            return .init(
                senders: senders(
                    catalogue.entries.filter { $0.couldSelectHere && $0.refusal.isEmpty }.map(\.assigned), ends: ends),
                activation: activation, policies: policies,
                places: Dictionary(
                    policies.enumerated().map { ("\($1.source.rawValue)/\($1.name)", $0) },
                    uniquingKeysWith: { first, _ in first }),
                warnings: outcome.warningsOfPolicies()
                    + PlanWarnings.ofDestinations(
                        catalogue: catalogue, index: nodes, hasNodeCIDRs: !configuration.nodeCIDRs.isEmpty))
        }
        let activation = GatewayActivation(
            used, health: gatewayHealth, before: catalogueOutcome.activation, canReach: canReach)
        let mesh = meshPlan(
            configuration: configuration, facts: facts, inventory: inventory, warnings: &plan.warnings)

        // Tunnels, next hops, tables.
        let tunnels = ends.local.map { local in
            TunnelLinks(
                tunnelProtocol: configuration.tunnelProtocol, local: local,
                overlayMTU: ends.overlayMTU,
                senders: senders(used, ends: ends, before: catalogueOutcome.senders)
                    + (mesh?.senders ?? []).map { .init(gateway: $0, identity: .defaultAddress) },
                served: Set(service.served.map(\.identity)), previous: previousIDs)
        }
        let strictUplink = facts.hasStrictUplink ? facts.underlayDevice : nil
        let hops = NextHops(
            used, activation: activation, tunnels: tunnels, nodeName: facts.nodeName, overlay: ends.address,
            uplink: strictUplink, previous: previousIDs)
        let keptInputs = PlannerMemory.KeptInputs(
            configuration: configuration, cilium: inventory.cilium, local: ends.local,
            others: used.isEmpty ? [] : mesh?.keptNetworks ?? [], generation: memory.nodes.generation)
        let kept =
            used.isEmpty ? KeptNetworks(v4: []) : memory.keptNetworks(keptInputs, inventory: inventory)
        let tableNumbers = AssignedIDs.assign(
            Set(
                attachments.compactMap { assignment.choices[$0.id]?.policies }.filter { !$0.isEmpty }.map(
                    PolicyTables.key)
            )
            .union(service.otherInterfaces.keys),
            previous: previousIDs.tables, first: Ownership.firstTable, retired: previousIDs.retired.tables)
        let tables = PolicyTables(
            attachments: attachments, assignment: assignment, numbers: tableNumbers, kept: kept,
            keptInputs: keptInputs, memory: &memory)

        plan.served = service.policies
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
        plan.host.rules.sort(by: Rule.isBefore)
        plan.host.firewall = FirewallPlan.table(
            tunnels: tunnels, node: node, index: memory.nodes, serving: service.served, tables: tables,
            overlay: configuration.overlay, mesh: mesh)

        // What people are told.
        let outcome = PlanOutcome(
            facts: facts, inventory: inventory, catalogue: catalogue, activation: activation, service: service)
        plan.attachments = outcome.attachments(
            attachments, assignment: assignment, tables: tables,
            meshRoutes: tunnels.flatMap { tunnels in mesh?.podRoutes(tunnels: tunnels) } ?? [],
            knowsItself: ends.local != nil
        ) { PodRoutes.mtu(of: $0, tunnels: tunnels, overlay: ends.address) }
        plan.policies = catalogueOutcome.policies
        for entry in plan.attachments {
            for policy in entry.assigned {
                if let place = catalogueOutcome.places["\(policy.source.rawValue)/\(policy.name)"] {
                    plan.policies[place].attachments += 1
                }
            }
        }
        plan.warnings =
            PlanWarnings.ofNode(
                facts: facts, inventory: inventory, node: node, honorsCiliumPolicies: configuration.honorCiliumPolicies)
            + plan.warnings + catalogueOutcome.warnings + outcome.warnings(plan.attachments)
        return plan
    }

    /// The policies of the pods here, each slot once, in order of the pods.
    private static func usedPolicies(_ attachments: [Attachment], _ assignment: PolicyAssignment) -> [AssignedPolicy] {
        var seen: Set<String> = []
        var used: [AssignedPolicy] = []
        for attachment in attachments {
            for policy in assignment.choices[attachment.id]?.policies ?? [] where seen.insert(policy.slot).inserted {
                used.append(policy)
            }
        }
        return used
    }

    /// Tunnels exist to every gateway that a pod here uses or could come to use, before it has to.
    ///
    /// - Parameter before: those that there are already.
    private static func senders(
        _ policies: [AssignedPolicy], ends: TunnelEnds, before: [TunnelLinks.Sender] = []
    ) -> [TunnelLinks.Sender] {
        var senders = before
        var seen = Set(before)
        for policy in policies where !policy.gateways.isEmpty {
            let identity = EgressIdentity(policy.egress)
            for gateway in policy.gateways {
                guard let address = ends.address(of: gateway) else { continue }
                let sender = TunnelLinks.Sender(gateway: address, identity: identity)
                if seen.insert(sender).inserted { senders.append(sender) }
            }
        }
        return senders
    }

    private static func meshPlan(
        configuration: Configuration, facts: LocalFacts, inventory: Inventory, warnings: inout [String]
    ) -> MeshPlan? {
        guard configuration.mesh.enabled else { return nil }
        let topology = MeshTopology(
            configuration: configuration.mesh,
            nodes: MeshPlan.partakers(inventory.nodes, facts: facts), peers: inventory.peers)
        let mesh = MeshPlan(configuration: configuration, facts: facts, inventory: inventory, topology: topology)
        warnings += topology.problems.map { "mesh: \($0)" } + (mesh?.warnings ?? []).map { "mesh: \($0)" }
        if mesh == nil { warnings.append("mesh: no gateway is known for \(facts.nodeName), so it is in no mesh") }
        return mesh
    }
}

extension Attachment {
    /// `namespace/name` of a pod, or the container's ID.
    public var displayName: String {
        podName.isEmpty ? containerID : podNamespace.isEmpty ? podName : "\(podNamespace)/\(podName)"
    }
}

import Model

/// What the planner says about one node.
public struct Plan: Equatable, Sendable {
    public var host = HostState()
    public var ids = AssignedIDs()
    public var attachments: [AttachmentPlan] = []
    public var policies: [PolicyPlan] = []
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
    public let gateway: String?
    /// This node is the gateway.
    public let isLocalGateway: Bool
    public let egressAddress: IPAddress?
    public let destinations: [IPNetwork]
    public var attachments: Int
    /// Why it is not (fully) in force; empty when it is.
    public let problem: String
}

public enum Planner {
    /// Destinations that always keep their normal path, whatever the cluster looks like.
    static let alwaysKept = ["169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"].compactMap { IPNetwork($0) }

    /// Of a node: its default egress address, which its helper publishes.
    public static let egressAddressAnnotation = "culvert.dev/egress-address"

    /// Of a pod: the policy's name, or `none`.
    public static let policyAnnotation = "culvert.dev/egress-policy"

    /// The one pure function in the middle: no I/O, no clock, no random numbers.
    public static func plan(
        configuration: Configuration, localFacts facts: LocalFacts, inventory: Inventory, attachments: [Attachment],
        gatewayHealth: GatewayHealth = GatewayHealth(), previousIDs: AssignedIDs = AssignedIDs()
    ) -> Plan {
        var index = NodeIndex()
        return plan(
            configuration: configuration, localFacts: facts, inventory: inventory, attachments: attachments,
            gatewayHealth: gatewayHealth, previousIDs: previousIDs, index: &index)
    }

    /// The same plan, sooner where few nodes have changed since the index was last used.
    public static func plan(
        configuration: Configuration, localFacts facts: LocalFacts, inventory: Inventory, attachments: [Attachment],
        gatewayHealth: GatewayHealth = GatewayHealth(), previousIDs: AssignedIDs = AssignedIDs(),
        index: inout NodeIndex
    ) -> Plan {
        var plan = Plan()
        var inventory = inventory
        inventory.nodes = MeshPlan.withOwnFacts(inventory, facts: facts)
        index.update(inventory, nodeName: facts.nodeName, overlay: configuration.overlay)
        let node = inventory.nodes[facts.nodeName]
        let assignment = PolicyAssignment(
            configuration: configuration, nodeName: facts.nodeName, inventory: inventory, health: gatewayHealth,
            index: &index)
        plan.warnings = warnings(
            facts: facts, inventory: inventory, node: node, honorsCiliumPolicies: configuration.honorCiliumPolicies)

        let choices = attachments.sorted { $0.id < $1.id }.map { ($0, assignment.policies(for: $0)) }
        let ownOuter = node.flatMap { MeshPlan.outerAddress($0, overlay: configuration.overlay) }
        guard let local = (configuration.overlay == .cilium ? facts.overlayAddress : nil) ?? ownOuter else {
            plan.ids = previousIDs
            plan.attachments = choices.map { attachment, choice in
                var entry = AttachmentPlan(attachment: attachment)
                switch choice {
                case .refused(let why): entry.refusal = why
                case .policies(let policies) where !policies.isEmpty:
                    entry.refusal = "this node's overlay address (cilium_host) is not known"
                default: break
                }
                return entry
            }
            return plan
        }

        // Tunnels.
        let encryption = inventory.cilium?.encryptionOverhead ?? 0
        let overlayMTU =
            configuration.overlay == .none
            ? facts.underlayMTU : facts.underlayMTU - TunnelLinks.Overhead.overlay - encryption
        func overlay(of gateway: String) -> IPAddress? {
            gateway == facts.nodeName
                ? local
                : inventory.nodes[gateway].flatMap { MeshPlan.outerAddress($0, overlay: configuration.overlay) }
        }
        var mesh: MeshPlan?
        if configuration.mesh.enabled {
            let topology = MeshTopology(
                configuration: configuration.mesh,
                nodes: MeshPlan.partakers(inventory.nodes, facts: facts), peers: inventory.peers)
            mesh = MeshPlan(configuration: configuration, facts: facts, inventory: inventory, topology: topology)
            plan.warnings += topology.problems.map { "mesh: \($0)" } + (mesh?.warnings ?? []).map { "mesh: \($0)" }
            if mesh == nil {
                plan.warnings.append("mesh: no gateway is known for \(facts.nodeName), so it is in no mesh")
            }
        }
        var senders: [(gateway: IPAddress, identity: EgressIdentity)] = []
        var serving: [EgressPolicy.Egress: GatewayEgress.Result] = [:]
        for assigned in assignment.active {
            guard let gateway = assigned.gateway, let address = overlay(of: gateway) else { continue }
            if assigned.policy.couldSelectPods(on: facts.nodeName, inventory: inventory),
                !senders.contains(where: { $0 == (address, assigned.identity) })
            {
                senders.append((address, assigned.identity))
            }
            if gateway == facts.nodeName {
                serving[assigned.policy.egress] = GatewayEgress.resolve(
                    assigned.policy.egress, facts: facts, node: node)
            }
        }
        for gateway in mesh?.senders ?? [] where !senders.contains(where: { $0 == (gateway, .defaultAddress) }) {
            senders.append((gateway, .defaultAddress))
        }
        let served = serving.values.compactMap { if case .serves(let egress) = $0 { egress } else { nil } }
            .sorted { $0.identity < $1.identity }
        let tunnels = TunnelLinks(
            tunnelProtocol: configuration.tunnelProtocol, local: local, overlayMTU: overlayMTU, senders: senders,
            served: Set(served.map(\.identity)), previous: previousIDs.tunnels)
        plan.ids.tunnels = tunnels.numbers
        plan.host.links = tunnels.links
        plan.host.neighbours = tunnels.neighbours
        if configuration.tunnelProtocol == .fou {
            plan.host.fouPorts = [
                FOUPort(port: Ownership.fouIPIPPort, ipProtocol: 4, local: local),
                FOUPort(port: Ownership.fouGREPort, ipProtocol: 47, local: local),
            ]
        }

        // Next hops: one per policy and gateway.
        let withGateway = assignment.active.filter {
            $0.gateway != nil && $0.policy.couldSelectPods(on: facts.nodeName, inventory: inventory)
        }
        // A reply that comes in for a pod is checked for its reverse path with the pod's own rule, so with a strict
        // filter on the uplink the route of a pod whose gateway is this node must name the uplink too.
        let strict =
            max(facts.reversePathFilterAll ?? 0, facts.interface(facts.underlayDevice)?.reversePathFilter ?? 0) == 1
        func namesUplink(_ assigned: PolicyAssignment.Assigned) -> Bool { strict && assigned.gateway == facts.nodeName }
        /// What the routes of a policy name.
        func routedKey(_ assigned: PolicyAssignment.Assigned) -> String {
            assigned.key + (namesUplink(assigned) ? "#pair" : "")
        }
        let uplinkKey = "uplink/\(facts.underlayDevice)"
        plan.ids.nextHops = AssignedIDs.assign(
            Set(withGateway.flatMap { namesUplink($0) ? [$0.key, routedKey($0), uplinkKey] : [$0.key] }),
            previous: previousIDs.nextHops, first: Ownership.firstNextHop)
        for assigned in withGateway {
            guard let id = plan.ids.nextHops[assigned.key], let gateway = assigned.gateway.flatMap(overlay(of:)),
                let target = tunnels.nextHop(gateway: gateway, identity: assigned.identity)
            else { continue }
            plan.host.nextHops.append(NextHop(id: id, target: target))
            if namesUplink(assigned), let uplink = plan.ids.nextHops[uplinkKey],
                let pair = plan.ids.nextHops[routedKey(assigned)]
            {
                plan.host.nextHops.append(NextHop(id: pair, target: .pair(used: id, named: uplink)))
            }
        }
        if let uplink = plan.ids.nextHops[uplinkKey] {
            // Should the tunnel vanish, this address answers nobody: nothing leaks by the uplink.
            plan.host.nextHops.append(
                NextHop(id: uplink, target: .via(TunnelLinks.nobody, device: facts.underlayDevice)))
        }
        plan.host.nextHops.sort { $0.id < $1.id }

        // Tables: one per set of policies that some pod has; plus one per other egress interface.
        var setsByKey: [String: [PolicyAssignment.Assigned]] = [:]
        var keyByAttachment: [String: String] = [:]
        for (attachment, choice) in choices {
            guard case .policies(let policies) = choice, !policies.isEmpty, !attachment.addressesV4.isEmpty else {
                continue
            }
            let key = policies.map(\.key).joined(separator: "|")
            setsByKey[key] = policies
            keyByAttachment[attachment.id] = key
        }
        let otherInterfaces = Dictionary(
            served.compactMap { egress in egress.viaInterface.map { ("egress/\($0.name)", $0) } },
            uniquingKeysWith: { first, _ in first })
        plan.ids.tables = AssignedIDs.assign(
            Set(setsByKey.keys).union(otherInterfaces.keys), previous: previousIDs.tables, first: Ownership.firstTable)

        let kept =
            setsByKey.isEmpty
            ? []
            : keptNetworks(configuration: configuration, inventory: inventory, local: local, index: index)
                + (mesh?.keptNetworks ?? [])
        var podSets: [GatewayFirewall.PodSet] = []
        var verdictsByKey: [String: [(prefix: IPNetwork, verdict: EgressPolicyRoutes.Verdict)]] = [:]
        let tables = setsByKey.compactMap { key, policies in plan.ids.tables[key].map { (table: $0, key, policies) } }
        for (table, key, policies) in tables.sorted(by: { $0.table < $1.table }) {
            let verdicts = EgressPolicyRoutes.verdicts(
                policies: policies.map(\.policy), kept: kept, family: .v4)
            verdictsByKey[key] = verdicts
            for (prefix, verdict) in verdicts {
                switch verdict {
                case .thrown: plan.host.routes.append(Route(table: table, destination: prefix, kind: .throwOn))
                case .claimed(let index):
                    if let id = plan.ids.nextHops[routedKey(policies[index])] {
                        plan.host.routes.append(Route(table: table, destination: prefix, kind: .nextHop(id)))
                    }
                    plan.host.routes.append(
                        Route(
                            table: table, destination: prefix, kind: .unreachable, metric: Ownership.backstopMetric))
                }
            }
            let pods = Set(
                choices.filter { keyByAttachment[$0.0.id] == key }.flatMap { $0.0.addressesV4 })
            podSets.append(
                GatewayFirewall.PodSet(
                    table: table, pods: pods, destinations: EgressPolicyRoutes.claimedRanges(verdicts)))
            for pod in pods {
                plan.host.rules.append(
                    Rule(priority: Ownership.podRulePriority, source: IPNetwork(host: pod), table: table))
            }
        }
        for (key, interface) in otherInterfaces {
            if let table = plan.ids.tables[key] {
                plan.host.routes += GatewayEgress.routes(table: table, interface: interface)
            }
        }
        mesh?.add(to: &plan.host, tunnels: tunnels)
        plan.meshMTU = mesh?.pathMTU(tunnels) ?? []
        plan.host.neighbours = Array(Set(plan.host.neighbours)).sorted { ($0.device, $0.peer) < ($1.device, $1.peer) }
        plan.host.routes = Route.inOrder(plan.host.routes)

        // What comes out of a tunnel is routed by the main table, or by that of its egress interface.
        let tableByIdentity = Dictionary(
            served.compactMap { egress in
                egress.viaInterface.flatMap { plan.ids.tables["egress/\($0.name)"] }.map { (egress.identity, $0) }
            }, uniquingKeysWith: { first, _ in first })
        for tunnel in tunnels.tunnels.values {
            plan.host.rules.append(
                Rule(
                    priority: Ownership.tunnelRulePriority, incoming: tunnel.link.name,
                    table: tableByIdentity[tunnel.identity] ?? Rule.mainTable))
        }
        plan.host.rules.sort {
            ($0.priority, $0.incoming ?? "", $0.source?.address.low ?? 0)
                < ($1.priority, $1.incoming ?? "", $1.source?.address.low ?? 0)
        }

        plan.host.firewall = GatewayFirewall.table(
            tunnels: tunnels, node: node, index: index, serving: served,
            podSets: podSets.sorted { $0.table < $1.table }, overlay: configuration.overlay, mesh: mesh)

        // What each attachment and each policy got.
        func egressAddress(_ assigned: PolicyAssignment.Assigned) -> IPAddress? {
            switch assigned.policy.egress {
            case .address(let address): return address
            case .untranslated: return nil
            default:
                if case .serves(let egress)? = serving[assigned.policy.egress], assigned.gateway == facts.nodeName {
                    return egress.address
                }
                return assigned.policy.egress == .defaultAddress
                    ? assigned.gateway.flatMap { inventory.nodes[$0]?.annotations[egressAddressAnnotation] }
                        .flatMap { IPAddress($0) }
                    : nil
            }
        }
        let meshRoutes = choices.isEmpty ? [] : mesh?.podRoutes(tunnels: tunnels) ?? []
        for (attachment, choice) in choices {
            var entry = AttachmentPlan(attachment: attachment)
            entry.podRoutes = attachment.addressesV4.isEmpty ? [] : meshRoutes
            entry.uncovered = attachment.addresses.filter { $0.family == .v6 }.map(\.address)
            switch choice {
            case .refused(let why): entry.refusal = why
            case .policies(let policies):
                if policies.isEmpty { entry.uncovered = [] }
                entry.policies = policies.map {
                    AttachmentPlan.Policy(name: $0.policy.name, gateway: $0.gateway, egressAddress: egressAddress($0))
                }
                if let key = keyByAttachment[attachment.id] {
                    entry.table = plan.ids.tables[key]
                    let mtus = policies.map { assigned in
                        assigned.gateway.flatMap(overlay(of:))
                            .flatMap { tunnels.tunnel(gateway: $0, identity: assigned.identity)?.podMTU }
                    }
                    entry.mtu = mtus.compactMap { $0 }.min()
                    for (prefix, verdict) in verdictsByKey[key] ?? [] {
                        if case .claimed(let index) = verdict, let mtu = mtus[index] {
                            entry.podRoutes.append(.init(destination: prefix, mtu: mtu))
                        }
                    }
                }
            }
            plan.attachments.append(entry)
        }
        for assigned in assignment.active {
            let count = plan.attachments.count { $0.policies.contains { $0.name == assigned.policy.name } }
            var problem =
                assigned.gateway == nil ? "no node with an overlay address matches egressGateway.nodeSelector" : ""
            if assigned.gateway == facts.nodeName, case .refuses(let why)? = serving[assigned.policy.egress] {
                problem = why
                plan.warnings.append("policy \(assigned.policy.name): \(why); its packets are dropped here")
            }
            if problem.isEmpty, assigned.policy.source == .cilium, inventory.cilium?.hasEgressGateway == true {
                problem = "Cilium's own egress gateway is on and acts on this policy too"
            }
            plan.policies.append(
                PolicyPlan(
                    name: assigned.policy.name, source: assigned.policy.source, gateway: assigned.gateway,
                    isLocalGateway: assigned.gateway == facts.nodeName, egressAddress: egressAddress(assigned),
                    destinations: assigned.policy.destinations, attachments: count, problem: problem))
        }
        for (policy, reason) in assignment.refused {
            plan.policies.append(
                PolicyPlan(
                    name: policy.name, source: policy.source, gateway: nil, isLocalGateway: false, egressAddress: nil,
                    destinations: policy.destinations, attachments: 0, problem: "refused: \(reason)"))
        }
        plan.policies.sort { ($0.name, $0.source.rawValue) < ($1.name, $1.source.rawValue) }
        for entry in plan.attachments where !entry.uncovered.isEmpty {
            let list = entry.uncovered.map(\.description).joined(separator: ", ")
            plan.warnings.append(
                "\(entry.attachment.displayName): no policy covers its IPv6 (\(list)), which keeps its normal path")
        }
        return plan
    }

    /// Pod CIDRs, every address of every node, services, the API server, and what the configuration adds.
    private static func keptNetworks(
        configuration: Configuration, inventory: Inventory, local: IPAddress, index: NodeIndex
    ) -> [IPNetwork] {
        var kept = alwaysKept + configuration.serviceCIDRs + configuration.excludedCIDRs
        kept.append(IPNetwork(host: local))
        kept += index.networks.lazy.map(NodeIndex.network)
        for key in ["ipv4-service-range", "ipv6-service-range", "k8s-service-cidr"] {
            if let network = inventory.cilium?.data[key].flatMap({ IPNetwork($0) }) { kept.append(network) }
        }
        for server in (inventory.cilium?.data["k8s-api-server"] ?? "").split(whereSeparator: { " ,".contains($0) }) {
            var host = server
            if let slash = host.lastIndex(of: "/") { host = host[host.index(after: slash)...] }
            if let colon = host.lastIndex(of: ":") { host = host[..<colon] }
            if let address = IPAddress(String(host)) { kept.append(IPNetwork(host: address)) }
        }
        return kept
    }

    private static func warnings(
        facts: LocalFacts, inventory: Inventory, node: Node?, honorsCiliumPolicies: Bool
    ) -> [String] {
        var warnings: [String] = []
        if node == nil { warnings.append("node \(facts.nodeName) is not in the inventory") }
        if facts.overlayAddress == nil && node?.overlayV4 == nil {
            warnings.append("no overlay address: there is no cilium_host with an address, and the inventory names none")
        }
        if let seen = facts.overlayAddress, let told = node?.overlayV4, seen != told {
            warnings.append("cilium_host has \(seen), but the inventory says \(told): peers drop this node's packets")
        }
        if facts.reversePathFilterAll == 1 {
            warnings.append(
                "net.ipv4.conf.all.rp_filter is 1: replies to pods with a policy, which come in by Cilium, are lost on "
                    + "this node; Cilium needs 0 (sysctl -w net.ipv4.conf.all.rp_filter=0)")
        }
        if facts.isLive && inventory.cilium == nil {
            warnings.append("the inventory has no ConfigMap cilium-config: this node's kind of routing is unverified")
        }
        if inventory.cilium?.hasEgressGateway == true {
            warnings.append(
                honorsCiliumPolicies
                    ? "Cilium's own egress gateway is on: both it and Culvert act on CiliumEgressGatewayPolicy objects, and "
                        + "Cilium's eBPF programs come first; switch one off (egressGateway.enabled=false in Cilium, or "
                        + "egress.honorCiliumPolicies: false here)"
                    : "Cilium's own egress gateway is on: of a pod that a CiliumEgressGatewayPolicy selects too, Cilium takes "
                        + "the packets to that policy's destinations before any route is looked up")
        }
        if let skipped = inventory.cilium?.skipsRouteLookup {
            warnings.append(
                skipped.certain
                    ? "policies for pods of this node are refused: \(skipped.reason)"
                    : "routing is unverified: \(skipped.reason)")
        }
        return warnings
    }
}

extension Attachment {
    /// `namespace/name` of a pod, or the container's ID.
    public var displayName: String {
        podName.isEmpty ? containerID : podNamespace.isEmpty ? podName : "\(podNamespace)/\(podName)"
    }
}

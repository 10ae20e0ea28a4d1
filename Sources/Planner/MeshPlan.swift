import Model

/// One node's part in the mesh: WireGuard where it is its segment's gateway, and the way to the gateway where it is not.
public struct MeshPlan {
    let topology: MeshTopology
    private let configuration: Configuration
    private let facts: LocalFacts
    private let node: Node
    private let segmentIndex: Int
    private let endpoints: Set<IPAddress>
    /// By segment: where its gateway is, or was seen if it is behind a NAT; nil where that is not known.
    private let gatewayEndpoints: [SocketAddress?]
    /// Networks of outside peers that are routed.
    private let peerNetworks: [IPNetwork]
    /// What is reached by the mesh, of every other segment in turn, with the routes' metric.
    private var destinations: [(network: IPNetwork, metric: UInt32)] = []
    private(set) var warnings: [String] = []

    private var mesh: MeshConfiguration { configuration.mesh }
    var segment: MeshTopology.Segment { topology.segments[segmentIndex] }
    var isGateway: Bool { segment.gateway.name == node.name }
    var device: String { mesh.interface }

    /// A gateway whose node has no WireGuard. Networks of other locations are unreachable, and take no other path.
    private var lacksWireGuard: Bool { isGateway && facts.wireGuard == .none }

    /// The largest packet that WireGuard can carry, bytes.
    private var wireGuardMTU: Int {
        let isOverV6 = endpoints.contains { $0.family == .v6 }
        return facts.underlayMTU
            - (isOverV6 ? TunnelLinks.Overhead.wireGuardOverV6 : TunnelLinks.Overhead.wireGuard)
    }

    /// nil where there is no mesh, or this node is not in it: the warnings of `topology` say why.
    init?(configuration: Configuration, facts: LocalFacts, inventory: Inventory, topology: MeshTopology) {
        guard let node = inventory.nodes[facts.nodeName],
            let index = topology.segments.firstIndex(where: { $0.key == topology.segmentKey(node) })
        else { return nil }
        self.topology = topology
        self.configuration = configuration
        self.facts = facts
        self.node = node
        segmentIndex = index
        let discovered = MeshPlan.discoveredEndpoints(topology, node: node)
        gatewayEndpoints = topology.segments.map { segment in
            let told = MeshTopology.endpoint(of: segment.gateway, port: configuration.mesh.port).flatMap {
                MeshPlan.address(of: $0, facts: facts)
            }
            // A node that publishes a public address is behind no NAT. Where it was seen is only the view of one peer.
            let isBehindNAT = segment.gateway.mesh.persistentKeepalive > 0 && told?.address.isPublic != true
            return (isBehindNAT ? segment.gateway.mesh.key.flatMap { discovered[$0] } : nil) ?? told
        }
        let peerEndpoints = topology.peers.compactMap { peer in
            peer.endpoint.flatMap { MeshPlan.address(of: $0, facts: facts) }
        }
        let endpoints = Set((gatewayEndpoints.compactMap { $0 } + peerEndpoints).map(\.address))
        self.endpoints = endpoints
        peerNetworks = topology.peers.flatMap(\.allowedIPs).filter { network in
            network.family == .v4 && !endpoints.contains { network.contains($0) }
        }
        for peer in topology.peers {
            for network in peer.allowedIPs where endpoints.contains(where: { network.contains($0) }) {
                warnings.append(
                    "peer \(peer.name): \(network) holds the endpoint of a peer, and is not routed: that would be a loop"
                )
            }
        }
        if lacksWireGuard {
            warnings.append(
                "this node is the gateway of its location, and its kernel has no WireGuard: other locations are unreachable; "
                    + "load the module (modprobe wireguard), or run wireguard-go \(device) as the helper's user")
        }
        destinations = topology.segments.indices.flatMap { $0 == index ? [] : destinations(of: $0) }
        warnings += overlayWarning(inventory.cilium)
    }

    /// With granularity `full`, users expect that all traffic between nodes is encrypted. With an overlay this is not
    /// so for pods of one location: the overlay takes their packets before any route is looked up.
    private func overlayWarning(_ cilium: CiliumSettings?) -> [String] {
        guard configuration.overlay != .none, (cilium?.encryptionOverhead ?? 0) == 0 else { return [] }
        var neighbours = 0
        for (index, other) in topology.segments.enumerated() where index != segmentIndex {
            for member in other.nodes where topology.areNeighbours(node, member) { neighbours += 1 }
        }
        if neighbours == 0 { return [] }
        let remedy =
            configuration.overlay == .cilium
            ? "switch on Cilium's own encryption (encryption.enabled=true, encryption.type=wireguard)"
            : "use flannel's backend wireguard"
        return [
            "granularity full does not encrypt what pods here and on \(neighbours) other nodes of this location send each "
                + "other: the overlay \(configuration.overlay.rawValue) carries those packets outside WireGuard; \(remedy)"
        ]
    }

    /// The inventory with what this node knows of itself better than anybody.
    ///
    /// - Parameter kiloMesh: the mesh with Kilo's nodes, in which every node publishes its endpoint; nil: there is none.
    public static func withOwnFacts(
        _ inventory: Inventory, facts: LocalFacts, kiloMesh: MeshConfiguration?
    ) -> [String: Node] {
        guard let told = inventory.nodes[facts.nodeName] else { return inventory.nodes }
        var own = told
        own.mesh.key = facts.publicKey ?? own.mesh.key
        if let mesh = kiloMesh, facts.isLive {
            own.mesh.endpoint = ownEndpoint(of: own, facts: facts, configuration: mesh)
        }
        if let address = facts.privateAddress, let known = own.mesh.privateAddress, known.address == address.address,
            known.prefixLength == known.address.family.bits
        {
            own.mesh.privateAddress = address
        }
        // Writing would copy them all.
        if own == told { return inventory.nodes }
        var nodes = inventory.nodes
        nodes[facts.nodeName] = own
        return nodes
    }

    /// Where other locations find this node, in a mesh with Kilo's nodes: what the user forces, else its external address, else
    /// a public address on an interface of its own, else its private one. Never what it has published before, which would
    /// outlive its reason.
    public static func ownEndpoint(
        of node: Node, facts: LocalFacts, configuration: MeshConfiguration
    ) -> Endpoint? {
        if node.mesh.isEndpointForced, let forced = node.mesh.endpoint { return forced }
        // Of the interface that has the default route first, as Kilo looks for it.
        let interfaces =
            facts.interfaces.filter { $0.name == facts.underlayDevice }
            + facts.interfaces.filter { $0.name != facts.underlayDevice }
        let found = interfaces.filter { $0.name != "kilo0" }.flatMap(\.hostAddresses).first { $0.isPublic }
        let address =
            node.externalIPs.first ?? found ?? node.mesh.privateAddress?.address ?? node.internalIPs.first
        return address.map { Endpoint(host: .address($0), port: configuration.port) }
    }

    /// The nodes less those that have no part in the mesh.
    public static func partakers(_ nodes: [String: Node], facts: LocalFacts) -> [String: Node] {
        facts.leftOutOfMesh.isEmpty ? nodes : nodes.filter { !facts.leftOutOfMesh.contains($0.key) }
    }

    private static func address(of endpoint: Endpoint, facts: LocalFacts) -> SocketAddress? {
        switch endpoint.host {
        case .address(let address): SocketAddress(address, port: endpoint.port)
        case .name(let name): facts.resolvedNames[name].map { SocketAddress($0, port: endpoint.port) }
        }
    }

    /// Where tunnels to a node end.
    static func outerAddress(_ node: Node, overlay: Configuration.Overlay) -> IPAddress? {
        switch overlay {
        case .cilium: node.overlayV4
        // The address of flannel.1 is the first of the node's pod network.
        case .flannel: node.podCIDRs.first { $0.family == .v4 }?.address
        case .none: node.mesh.privateAddress?.address ?? node.nodeV4 ?? node.externalIPs.first { $0.family == .v4 }
        }
    }

    // MARK: inside the location

    /// Packets to that node of the own location go through a tunnel, because the network between would drop them.
    func usesTunnel(to other: Node) -> Bool {
        switch mesh.strategy {
        case .always: true
        case .never: false
        case .crosssubnet:
            !(node.mesh.privateAddress.map { own in
                other.mesh.privateAddress.map { own.network.contains($0.address) } ?? false
            } ?? false)
        }
    }

    /// Nodes that this one sends to through tunnels with a fixed remote, by the ends' addresses: its gateway.
    var senders: [IPAddress] {
        guard !isGateway, configuration.overlay != .flannel, usesTunnel(to: segment.gateway) else { return [] }
        return [MeshPlan.outerAddress(segment.gateway, overlay: configuration.overlay)].compactMap { $0 }
    }

    /// The device that has the node address.
    private var privateDevice: String {
        facts.interfaces.first { interface in
            node.mesh.privateAddress.map { interface.hostAddresses.contains($0.address) } ?? false
        }?.name ?? facts.underlayDevice
    }

    /// How the gateway is reached from a node that is none.
    private func wayToGateway(_ tunnels: TunnelLinks) -> Route.Kind? {
        way(to: segment.gateway, tunnels, fixedRemote: true)
    }

    private func way(to other: Node, _ tunnels: TunnelLinks, fixedRemote: Bool) -> Route.Kind? {
        guard usesTunnel(to: other) else {
            return other.mesh.privateAddress.map { .via($0.address, device: privateDevice) }
        }
        guard let outer = MeshPlan.outerAddress(other, overlay: configuration.overlay) else { return nil }
        if configuration.overlay == .flannel { return .via(outer, device: "flannel.1") }
        if !fixedRemote { return .via(outer, device: Ownership.mainTunnel) }
        switch tunnels.nextHop(gateway: outer, identity: .defaultAddress) {
        case .device(let name)?: return .device(name)
        case .via(let address, let name)?: return .via(address, device: name)
        default: return nil
        }
    }

    /// What of another segment is reached by the mesh: pods, with the metric that lets Cilium's own routes go first,
    /// and the rest.
    private func destinations(of index: Int) -> [(network: IPNetwork, metric: UInt32)] {
        let other = topology.segments[index]
        let podMetric = configuration.overlay == .none ? 0 : Ownership.meshMetric
        var result = [(IPNetwork(host: other.wireGuardAddress), UInt32(0))]
        result.reserveCapacity(1 + 2 * other.nodes.count)
        for member in other.nodes {
            // Neighbours have the overlay for that, and a tunnel peer's own address through its tunnel is a loop.
            if configuration.overlay != .none, topology.areNeighbours(node, member) { continue }
            for network in member.podCIDRs where network.family == .v4 { result.append((network, podMetric)) }
            if let address = member.mesh.privateAddress?.address, address.family == .v4, !endpoints.contains(address) {
                result.append((IPNetwork(host: address), 0))
            }
        }
        for network in other.allowedLocationIPs where network.family == .v4 { result.append((network, 0)) }
        return result
    }

    /// Addresses that must never be routed by the mesh: those of nodes that the overlay or a link of its own reaches.
    private var ownAddresses: Set<IPNetwork> {
        var own: Set<IPNetwork> = Set(node.addresses.map { IPNetwork(host: $0) })
        for member in segment.nodes {
            own.formUnion(member.podCIDRs)
            own.formUnion(member.addresses.map { IPNetwork(host: $0) })
        }
        return own
    }

    // MARK: routes

    /// Everything of the mesh but the tunnels themselves, which `TunnelLinks` has made.
    func add(to host: inout HostState, tunnels: TunnelLinks) {
        let own = ownAddresses
        let source = node.mesh.privateAddress?.address ?? node.nodeV4
        var taken: Set<IPNetwork> = []
        var routes: [Route] = []
        func route(_ network: IPNetwork, _ kind: Route.Kind, metric: UInt32 = 0) {
            guard !own.contains(network), taken.insert(network).inserted else { return }
            routes.append(
                Route(
                    table: Rule.mainTable, destination: network, kind: kind, metric: metric,
                    source: kind == .unreachable ? nil : source))
        }
        let outward: Route.Kind? =
            isGateway ? (lacksWireGuard ? .unreachable : .device(device)) : wayToGateway(tunnels)
        if let outward {
            for (network, metric) in destinations { route(network, outward, metric: metric) }
            if !isGateway { route(IPNetwork(host: segment.wireGuardAddress), outward) }
            for network in peerNetworks { route(network, outward) }
        }
        if isGateway && !lacksWireGuard {
            host.links.append(
                Link(name: device, kind: .wireguard, mtu: wireGuardMTU, address: segment.wireGuardAddress))
            host.wireGuard = wireGuard()
            addInwardRoutes(to: &host, &routes, tunnels)
            host.rules.append(
                Rule(priority: Ownership.tunnelRulePriority, incoming: device, table: Ownership.locationTable))
            if segment.nodes.contains(where: { $0.name != node.name && usesTunnel(to: $0) }) {
                // What the gateway itself answers from its WireGuard address to its own location goes by the tunnel too: the
                // network between would drop that source.
                host.rules.append(
                    Rule(
                        priority: Ownership.tunnelRulePriority, source: IPNetwork(host: segment.wireGuardAddress),
                        table: Ownership.locationTable))
            }
        }
        if mesh.manageLocalRoutes && configuration.overlay == .none {
            addLocalRoutes(to: &host, &routes, tunnels, source: source)
        }
        host.add(routes)
    }

    /// What comes from other locations for a node of this one would be dropped by the network between, because its
    /// source is foreign: it goes through the tunnel.
    private func addInwardRoutes(
        to host: inout HostState, _ routes: inout [Route], _ tunnels: TunnelLinks
    ) {
        for member in segment.nodes where member.name != node.name && usesTunnel(to: member) {
            guard let way = way(to: member, tunnels, fixedRemote: false) else { continue }
            var networks = member.podCIDRs.filter { $0.family == .v4 }
            // flannel.1 carries its own pods already.
            if configuration.overlay == .flannel { networks = [] }
            if let address = member.mesh.privateAddress?.address { networks.append(IPNetwork(host: address)) }
            for network in networks {
                routes.append(Route(table: Ownership.locationTable, destination: network, kind: way))
            }
            if configuration.overlay != .flannel,
                let outer = MeshPlan.outerAddress(member, overlay: configuration.overlay),
                let neighbour = tunnels.mainTunnelNeighbour(peer: outer)
            {
                host.neighbours.append(neighbour)
            }
        }
    }

    /// Pods of the own location, where nothing else routes them (Kilo's `--local`).
    private func addLocalRoutes(
        to host: inout HostState, _ routes: inout [Route], _ tunnels: TunnelLinks, source: IPAddress?
    ) {
        for member in segment.nodes where member.name != node.name {
            guard let way = way(to: member, tunnels, fixedRemote: false) else { continue }
            for network in member.podCIDRs where network.family == .v4 {
                routes.append(
                    Route(table: Rule.mainTable, destination: network, kind: way, source: source))
            }
            // From pods to the node's address too: the network between would drop a pod's address.
            if usesTunnel(to: member), !isGateway, let address = member.mesh.privateAddress?.address {
                routes.append(
                    Route(table: Ownership.locationTable, destination: IPNetwork(host: address), kind: way))
            }
        }
        for network in node.podCIDRs where network.family == .v4 {
            host.rules.append(
                Rule(priority: Ownership.tunnelRulePriority, source: network, table: Ownership.locationTable))
        }
    }

    // MARK: WireGuard

    private func wireGuard() -> WireGuardDevice? {
        guard let key = node.mesh.key ?? facts.publicKey else { return nil }
        var device = WireGuardDevice(name: device, listenPort: mesh.port, publicKey: key)
        let discovered = MeshPlan.discoveredEndpoints(topology, node: node)
        let keepalive = max(mesh.persistentKeepalive, node.mesh.persistentKeepalive)
        var claimed: Set<IPNetwork> = []
        for (index, other) in topology.segments.enumerated() where index != segmentIndex {
            guard let key = other.gateway.mesh.key else { continue }
            // WireGuard gives an address to the last peer that claims it; here it is always the first.
            let networks = (other.ownNetworks + other.allowedLocationIPs).filter { claimed.insert($0).inserted }
                .sorted()
            device.peers.append(
                WireGuardPeer(
                    publicKey: key, endpoint: gatewayEndpoints[index], persistentKeepalive: keepalive,
                    allowedIPs: networks))
        }
        for peer in topology.peers {
            let seen = peer.persistentKeepalive > 0 ? discovered[peer.publicKey] : nil
            let told = peer.endpoint.flatMap { MeshPlan.address(of: $0, facts: facts) }
            device.peers.append(
                WireGuardPeer(
                    publicKey: peer.publicKey, presharedKey: peer.presharedKey, endpoint: seen ?? told,
                    persistentKeepalive: keepalive,
                    allowedIPs: peer.allowedIPs.filter { claimed.insert($0).inserted }.sorted()))
        }
        device.peers.sort { $0.publicKey < $1.publicKey }
        return device
    }

    /// Where peers behind a NAT were seen: by this node, else by the first node that tells, in the order of segments. A
    /// private address says something only to those who are where the teller is: it sees nodes of its own location from
    /// inside their NAT.
    private static func discoveredEndpoints(
        _ topology: MeshTopology, node: Node
    ) -> [WireGuardKey: SocketAddress] {
        var result = node.mesh.discoveredEndpoints
        for segment in topology.segments {
            for other in segment.nodes where !other.mesh.discoveredEndpoints.isEmpty && other.name != node.name {
                let near = topology.areNeighbours(node, other)
                for (key, seen) in other.mesh.discoveredEndpoints
                where result[key] == nil && (near || seen.address.isPublic) {
                    result[key] = seen
                }
            }
        }
        return result
    }

    // MARK: what others need

    /// Inner sources that a tunnel's other end may send besides its own: a gateway all that lies behind it, a gateway's
    /// nodes what their location may reach.
    var tunnelSources: [(outer: IPAddress, networks: [IPNetwork])] {
        if isGateway {
            guard !segment.allowedLocationIPs.isEmpty else { return [] }
            return segment.nodes.filter { $0.name != node.name }.compactMap { member in
                MeshPlan.outerAddress(member, overlay: configuration.overlay).map { ($0, segment.allowedLocationIPs) }
            }
        }
        guard let outer = MeshPlan.outerAddress(segment.gateway, overlay: configuration.overlay) else { return [] }
        return [(outer, peerNetworks + destinations.map(\.network) + [IPNetwork(host: segment.wireGuardAddress)])]
    }

    /// Packets from other locations for a network beside the cluster leave with this node's address, because such a
    /// network has no route to other locations.
    var locationTranslation: [FirewallRule] {
        guard isGateway, let address = node.mesh.privateAddress?.address ?? node.nodeV4, address.family == .v4,
            !segment.allowedLocationIPs.isEmpty
        else { return [] }
        return [
            FirewallRule([
                .ipv4Only, .lookup([.destinationAddress], set: MeshPlan.locationSet, negated: false),
                .incoming(device, prefix: false, negated: false), .snat(address),
            ])
        ]
    }
    static let locationSet = "location_ips"

    /// The sets of those rules.
    var firewallSets: [FirewallSet] {
        guard isGateway, !segment.allowedLocationIPs.isEmpty else { return [] }
        return [
            FirewallSet(
                name: MeshPlan.locationSet, key: .address, interval: true,
                elements: IPRanges.of(segment.allowedLocationIPs).map {
                    .init(first: $0.lowerBound, last: $0.upperBound)
                })
        ]
    }

    /// What this node reaches by the mesh.
    var reachedNetworks: [IPNetwork] { [mesh.subnet] + peerNetworks + destinations.map(\.network) }

    /// Destinations that egress policies leave alone.
    var keptNetworks: [IPNetwork] {
        [mesh.subnet] + peerNetworks + topology.segments.flatMap(\.allowedLocationIPs)
    }

    /// Routes into pods: what they reach by the mesh, with the size that passes all of it under either kind of routing.
    func podRoutes(tunnels: TunnelLinks) -> [AttachmentPlan.PodRoute] {
        let mtu = pathMTU(tunnels).last?.bytes ?? 0
        guard mtu > 0 else { return [] }
        return IPRanges.of(peerNetworks + destinations.map(\.network)).flatMap(IPRanges.networks).map {
            AttachmentPlan.PodRoute(destination: $0, mtu: mtu)
        }
    }

    /// The sum of the deepest path to another location, line by line; the last line is what is left for a pod's packet.
    func pathMTU(_ tunnels: TunnelLinks) -> [PathMTULine] {
        var lines = [PathMTULine(what: "\(facts.underlayDevice), the underlay", bytes: facts.underlayMTU)]
        let passesTunnels =
            segment.nodes.contains { $0.name != node.name && usesTunnel(to: $0) }
            || topology.segments.contains { $0.nodes.count > 1 && mesh.strategy != .never }
        lines.append(PathMTULine(what: "in WireGuard between gateways", bytes: wireGuardMTU))
        var rest = wireGuardMTU
        if passesTunnels, let tunnel = tunnels.tunnels.values.map(\.link.mtu).min() {
            lines.append(PathMTULine(what: "in the overlay and the tunnel inside a location", bytes: tunnel))
            rest = min(rest, tunnel)
        }
        lines.append(
            PathMTULine(what: "of a pod, under eBPF host routing too", bytes: rest - TunnelLinks.Overhead.ebpfAllowance)
        )
        return lines
    }
}

/// One line of `culvertctl mtu`.
public struct PathMTULine: Equatable, Sendable {
    public let what: String
    /// The largest IP packet that passes up to here.
    public let bytes: Int
    public init(what: String, bytes: Int) {
        self.what = what
        self.bytes = bytes
    }
}

import Inventory
import Model
import TestSupport
import Testing

@testable import Planner

/// Random meshes, and packets that are walked through the plans of all their nodes.
@Suite struct MeshPropertyTests {
    typealias Random = SeededGenerator

    struct World {
        var inventory = Inventory()
        var configuration = Configuration()
    }

    static func world(_ seed: UInt64) -> World {
        var random = Random(seed: seed)
        var world = World()
        world.configuration.mesh.enabled = true
        world.configuration.mesh.strategy = MeshConfiguration.Strategy.allCases.randomElement(using: &random) ?? .always
        world.configuration.mesh.granularity = random.chance(25) ? .full : .location
        world.configuration.overlay = random.chance(60) ? .cilium : random.chance(50) ? .none : .flannel
        if world.configuration.overlay == .none { world.configuration.mesh.manageLocalRoutes = random.chance(50) }
        world.configuration.tunnelProtocol = random.chance(70) ? .ipip : .fou
        let locations = Int.random(in: 1...4, using: &random)
        for number in 1...Int.random(in: 2...9, using: &random) {
            var node = Node(name: "n\(number)")
            let location = Int.random(in: 0..<locations, using: &random)
            node.mesh.location = "l\(location)"
            node.podCIDRs = [IPNetwork(IPAddress(v4: 0x0AF4_0000 + UInt32(number) << 8), prefixLength: 24)]
            node.overlayAddresses = [IPAddress(v4: 0x0AF4_0001 + UInt32(number) << 8)]
            let address = IPAddress(v4: 0x0A01_0000 + UInt32(location) << 16 + UInt32(number))
            if !random.chance(10) {
                node.mesh.privateAddress = InterfaceAddress(address, prefixLength: random.chance(50) ? 24 : 32)
                node.internalIPs = [address]
            }
            if random.chance(50) || node.mesh.privateAddress == nil {
                node.externalIPs = [IPAddress(v4: 0xC633_6400 + UInt32(number))]
            }
            if !random.chance(10) { node.mesh.key = WireGuardKey(MeshManifests.key(number)) }
            node.mesh.wantsToBeGateway = random.chance(20)
            if random.chance(10) { node.mesh.granularity = .full }
            if random.chance(20) {
                node.mesh.allowedLocationIPs = [
                    IPNetwork(
                        IPAddress(v4: 0xC0A8_0000 + UInt32.random(in: 0..<8, using: &random) << 8),
                        prefixLength: Int.random(in: 21...25, using: &random))
                ]
            }
            world.inventory.nodes[node.name] = node
        }
        for number in 0..<Int.random(in: 0...2, using: &random) {
            var peer = MeshPeer(
                name: "p\(number)",
                publicKey: MeshManifests.wireGuardKey(500 + number))
            peer.allowedIPs = [IPNetwork(host: IPAddress(v4: 0x0A05_0001 + UInt32.random(in: 0..<2, using: &random)))]
            world.inventory.peers.append(peer)
        }
        return world
    }

    static func plan(_ name: String, _ world: World) -> Plan {
        Planner.plan(
            configuration: world.configuration, localFacts: LocalFacts(nodeName: name), inventory: world.inventory,
            attachments: [])
    }

    /// The network of the nodes, by their plans.
    struct Walk {
        let world: World
        let plans: [String: Plan]
        let topology: MeshTopology

        init(_ world: World) {
            self.world = world
            plans = Dictionary(
                world.inventory.nodes.keys.map { ($0, MeshPropertyTests.plan($0, world)) },
                uniquingKeysWith: { a, _ in a })
            topology = MeshTopology(
                configuration: world.configuration.mesh, nodes: world.inventory.nodes, peers: world.inventory.peers)
        }

        enum End: Equatable {
            /// Came to this node, which has the destination.
            case arrived(String)
            /// A node has no route of ours: the overlay's or nobody's business.
            case left(String)
            case lost(String)
        }

        private func owner(ofOuter address: IPAddress) -> String? {
            world.inventory.nodes.values.first {
                MeshPlan.outerAddress($0, overlay: world.configuration.overlay) == address
            }?.name
        }

        /// Walks a packet from a pod of `start`.
        func packet(from source: IPAddress, to destination: IPAddress, start: String) -> (end: End, path: [String]) {
            var path = [start]
            var here = start
            var incoming: String?
            while true {
                guard let plan = plans[here], let node = world.inventory.nodes[here] else {
                    return (.lost("no plan"), path)
                }
                if path.count > 1,
                    node.podCIDRs.contains(where: { $0.contains(destination) }) || node.addresses.contains(destination)
                {
                    return (.arrived(here), path)
                }
                var tables = [Rule.mainTable]
                // What comes out of a tunnel has been let in, and has the mark that says so.
                if let incoming,
                    let table = plan.host.rules.first(where: {
                        $0.incoming == incoming && $0.table != Ownership.guardTable
                    })?.table
                {
                    tables = table == Rule.mainTable ? tables : [table, Rule.mainTable]
                }
                var found: Route?
                for table in tables where found == nil {
                    found = plan.host.routes.filter { $0.table == table && $0.destination.contains(destination) }
                        .max { ($0.destination.prefixLength, $1.metric) < ($1.destination.prefixLength, $0.metric) }
                }
                guard let route = found else { return (.left(here), path) }
                var next: String?
                switch route.kind {
                case .device(let device) where device == plan.host.wireGuard?.name:
                    guard
                        let peer = plan.host.wireGuard?.peers.first(where: {
                            $0.allowedIPs.contains { $0.contains(destination) }
                        })
                    else { return (.lost("\(here): no WireGuard peer for \(destination)"), path) }
                    if world.inventory.peers.contains(where: { $0.publicKey == peer.publicKey }) {
                        return (.arrived("peer"), path)
                    }
                    next = world.inventory.nodes.values.first { $0.mesh.key == peer.publicKey }?.name
                    guard let other = next.flatMap({ plans[$0] }), let device = other.host.wireGuard,
                        let own = node.mesh.key, let back = device.peers.first(where: { $0.publicKey == own }),
                        back.allowedIPs.contains(where: { $0.contains(source) })
                    else { return (.lost("\(next ?? "?") does not take \(source) from \(here)"), path) }
                    incoming = device.name
                case .device(let device):
                    guard case .ipip(_, let remote?, _)? = plan.host.links.first(where: { $0.name == device })?.kind
                    else {
                        return (.lost("\(here): \(device) has no remote"), path)
                    }
                    next = owner(ofOuter: remote)
                    incoming = Ownership.mainTunnel
                case .via(let gateway, let device) where device.hasPrefix("cni-culvert"):
                    next = owner(ofOuter: gateway)
                    incoming = Ownership.mainTunnel
                case .via(let gateway, let device):
                    // flannel.1, or the underlay.
                    next =
                        device == "flannel.1"
                        ? owner(ofOuter: gateway)
                        : world.inventory.nodes.values.first { $0.mesh.privateAddress?.address == gateway }?.name
                    incoming = nil
                default: return (.lost("\(here): \(route.kind)"), path)
                }
                guard let next else { return (.lost("\(here): nobody has \(route.kind)"), path) }
                if incoming == Ownership.mainTunnel, !accepts(source, at: next, from: here) {
                    return (.lost("\(next)'s firewall drops \(source) from \(here)"), path)
                }
                if path.contains(next) { return (.lost("a loop: \(path) and \(next) again"), path + [next]) }
                path.append(next)
                here = next
            }
        }

        /// The input chain's set of outer and inner sources.
        private func accepts(_ source: IPAddress, at node: String, from sender: String) -> Bool {
            guard let other = world.inventory.nodes[sender],
                let outer = MeshPlan.outerAddress(other, overlay: world.configuration.overlay)
            else { return false }
            return (plans[node]?.host.firewall?.sets ?? []).contains { set in
                guard set.name.hasPrefix("tunnel_peers_"), let length = Int(set.name.dropFirst(13)) else {
                    return false
                }
                let network = IPNetwork(source, prefixLength: length).address.v4Value
                return set.elements.contains(.init(pair: outer.v4Value, first: network, last: network))
            }
        }
    }

    static let seeds = 0..<20

    @Test(arguments: seeds) func everyTwoNodesPlansAgree(_ block: Int) {
        for seed in UInt64(block * 100)..<UInt64(block * 100 + 100) {
            let world = Self.world(seed)
            let walk = Walk(world)
            let inMesh = Dictionary(
                walk.topology.segments.flatMap { segment in segment.nodes.map { ($0.name, segment.key) } },
                uniquingKeysWith: { a, _ in a })
            for from in world.inventory.nodes.values {
                for to in world.inventory.nodes.values where from.name != to.name {
                    let source = IPAddress(v4: from.podCIDRs[0].address.v4Value + 10)
                    let destination = IPAddress(v4: to.podCIDRs[0].address.v4Value + 10)
                    let (end, path) = walk.packet(from: source, to: destination, start: from.name)
                    let together = inMesh[from.name] != nil && inMesh[to.name] != nil
                    if case .lost(let why) = end {
                        Issue.record("seed \(seed): \(from.name) to \(to.name) by \(path): \(why)")
                    }
                    if together, inMesh[from.name] != inMesh[to.name], !walk.topology.areNeighbours(from, to) {
                        let last = path.last ?? ""
                        // The last step inside a location may be the overlay's own.
                        let isThere =
                            end == .arrived(to.name) || (end == .left(last) && inMesh[last] == inMesh[to.name])
                        #expect(isThere, "seed \(seed): \(from.name) to \(to.name) ended as \(end) by \(path)")
                    }
                }
                for peer in walk.topology.peers {
                    guard inMesh[from.name] != nil, let address = peer.allowedIPs.first?.address else { continue }
                    let (end, path) = walk.packet(
                        from: IPAddress(v4: from.podCIDRs[0].address.v4Value + 10), to: address, start: from.name)
                    #expect(end == .arrived("peer"), "seed \(seed): \(from.name) to \(peer.name) by \(path)")
                }
            }
        }
    }

    @Test(arguments: seeds) func theOrderOfAnInventoryDoesNotMatter(_ block: Int) {
        for seed in UInt64(block * 25)..<UInt64(block * 25 + 25) {
            let world = Self.world(seed)
            var random = Random(seed: seed ^ 0xABCD)
            var other = world
            other.inventory.nodes = [:]
            other.inventory.nodes.reserveCapacity(Int.random(in: 1...300, using: &random))
            for (name, node) in world.inventory.nodes.shuffled(using: &random) { other.inventory.nodes[name] = node }
            other.inventory.peers.shuffle(using: &random)
            for name in world.inventory.nodes.keys {
                #expect(Self.plan(name, world) == Self.plan(name, other), "seed \(seed), \(name)")
            }
        }
    }

    @Test(arguments: seeds) func removingANodeLeavesTheOthersTheirKeysAndPeers(_ block: Int) {
        for seed in UInt64(block * 50)..<UInt64(block * 50 + 50) {
            let world = Self.world(seed)
            guard let removed = world.inventory.nodes.keys.sorted().first else { continue }
            var smaller = world
            smaller.inventory.nodes[removed] = nil
            let gone = world.inventory.nodes[removed]?.mesh.key
            for name in smaller.inventory.nodes.keys {
                guard let before = Self.plan(name, world).host.wireGuard,
                    let after = Self.plan(name, smaller).host.wireGuard
                else { continue }
                #expect(before.publicKey == after.publicKey)
                let keys = Set(after.peers.map(\.publicKey))
                for peer in before.peers where peer.publicKey != gone {
                    #expect(keys.contains(peer.publicKey), "seed \(seed): \(name) dropped a peer when \(removed) went")
                }
            }
        }
    }
}

extension SeededGenerator {
    mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
}

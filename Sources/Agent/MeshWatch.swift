import CLinux
import Inventory
import Logging
import Model
import Planner
import Reconcile
import WireGuard

/// What the mesh needs from time to time: names of endpoints, a sign of life, a look at WireGuard.
extension NodeAgent {
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
        converge("names of endpoints were resolved")
    }

    /// Locations, gateways and peers, as this node sees them.
    public var topology: MeshTopology {
        MeshTopology(
            configuration: settings.configuration.mesh,
            nodes: MeshPlan.partakers(
                MeshPlan.withOwnFacts(
                    inventory, facts: facts,
                    kiloMesh: settings.configuration.mesh.kiloInterop
                        ? settings.configuration.mesh : nil), facts: facts),
            peers: inventory.peers)
    }

    /// The WireGuard device of this node, where it is a gateway.
    public func wireGuardDevice() throws -> WireGuardStatus? {
        guard let device = plan.host.wireGuard else { return nil }
        return try reconciler.wireGuardDevice(device.name)
    }

    /// Publishes a sign of life every 30 seconds, as Kilo's nodes do.
    public func checkInWithKilo() async {
        guard settings.configuration.mesh.kiloInterop else { return }
        lastSeen = Int64(time(nil))
        publishNode()
    }

    /// Looks for nodes without a sign of life for a minute. A newer `last-seen` alone does not change the inventory,
    /// and no new plan is made for it. A node that is gone, or that is back, does change it.
    public func lookWhoIsSilent() async {
        let hasKilosNodes = settings.configuration.mesh.kiloInterop
        guard hasKilosNodes || kiloHere != .absent, settings.keys != nil else { return }
        let new = await source.inventory()
        if new.revision.number != inventory.revision.number || !new.unknown.isEmpty {
            take(new, reason: "looking who is in the mesh")
        } else {
            inventory = new
        }
        let silent = silentForKilo(before: facts.leftOutOfMesh)
        guard hasKilosNodes, silent != facts.leftOutOfMesh else { return }
        logger.notice(
            "Kilo would leave these nodes out of the mesh",
            metadata: ["nodes": "\(MeshTopology.some(silent.sorted()))"])
        try? refreshFacts()
        converge("nodes of the mesh came or went")
    }

    /// Looks at WireGuard: where peers with a keepalive are, which others behind a NAT need to know; and whether a
    /// peer that is silent has another endpoint by now.
    public func lookAtWireGuard() {
        if !meshProblem.isEmpty || kiloHere != .absent {
            try? refreshFacts()
            converge("WireGuard was not as planned", looking: .all)
            if !meshProblem.isEmpty { return }
        }
        guard let wanted = plan.host.wireGuard else {
            // A node that is no gateway any more sees no peer, and what it saw grows old.
            if isInformed, !discoveredEndpoints.isEmpty {
                discoveredEndpoints = [:]
                try? refreshFacts()
            }
            return
        }
        guard let device = try? reconciler.wireGuardDevice(wanted.name) else { return }
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
        if !changes.isEmpty { converge("WireGuard peers changed", looking: .all) }
    }
}

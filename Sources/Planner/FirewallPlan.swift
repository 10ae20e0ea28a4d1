import Model

/// The table `inet culvert`, put together.
enum FirewallPlan {
    /// What the table is made of besides the pods here and a mesh, with which no frame is kept.
    struct World: Equatable {
        /// nil where this node's overlay address is not known.
        var tunnels: [String: TunnelLinks.Tunnel]?
        var local: IPAddress?
        var node: Node?
        /// Of the index of nodes.
        var generation: Int
        var serving: [GatewayEgress]
        /// What this node would serve and cannot.
        var refused: [EgressIdentity]
        var configuration: Configuration
        /// Pods' packets come by the nodes' own routes, not by the overlay's devices.
        var isNative: Bool
    }

    /// What is the same whichever pods there are. What belongs to the pods stands in its middle.
    struct Frame {
        var setsBefore: [FirewallSet] = []
        var setsAfter: [FirewallSet] = []
        var chainsBefore: [FirewallChain] = []
        var chainsAfter: [FirewallChain] = []
    }

    /// - Parameter tunnels: those of the world; nil where this node's overlay address is not known.
    static func table(
        _ world: World, tunnels: TunnelLinks?, index: NodeIndex, tables: PolicyTables, mesh: MeshPlan?,
        memory: inout PlannerMemory
    ) -> FirewallTable {
        let frame: Frame
        if mesh == nil, let known = memory.firewallFrame, known.world == world {
            frame = known.frame
        } else {
            frame = FirewallPlan.frame(world, tunnels: tunnels, index: index, mesh: mesh)
            memory.firewallFrame = mesh == nil ? (world, frame) : nil
        }
        return FirewallTable(
            chains: frame.chainsBefore + PodGuard.groupChains(tables) + frame.chainsAfter,
            sets: frame.setsBefore + PodGuard.sets(tables) + frame.setsAfter)
    }

    private static func frame(_ world: World, tunnels: TunnelLinks?, index: NodeIndex, mesh: MeshPlan?) -> Frame {
        var frame = Frame()
        let (serving, overlay) = (world.serving, world.configuration.overlay)
        // What only gateways and members of a mesh need: a node that receives nothing is spared every other node's change.
        let receives = tunnels != nil && (!serving.isEmpty || mesh != nil)
        if let tunnels {
            let sources =
                receives
                ? TunnelFilter.InnerSources(
                    node: world.node, index: index, local: tunnels.local, overlay: overlay, mesh: mesh) : nil
            if let sources {
                frame.setsBefore += sources.sets
                let keys = serving.map(\.identity).filter { $0 != .defaultAddress }
                frame.setsBefore.append(
                    FirewallSet(
                        name: "egress_keys", key: .number, interval: false,
                        elements: keys.map { .init(first: $0.key, last: $0.key) }))
            }
            frame.chainsBefore.append(
                TunnelFilter.chain(
                    tunnels: tunnels, local: tunnels.local, serving: serving, overlay: overlay, mesh: mesh != nil,
                    sources: sources))
        }
        frame.setsAfter += InboundFlows.sets
        // Pods of other nodes, whose connections leave here: both directions of their handshakes pass the forward hook.
        if receives {
            let ranges = index.podRanges.map { UInt32($0 >> 32)...UInt32(truncatingIfNeeded: $0) }
            frame.setsAfter.append(
                FirewallSet(
                    name: "remote_pods", key: .address, interval: true,
                    elements: IPRanges.merge(ranges).map { .init(first: $0.lowerBound, last: $0.upperBound) }))
        }
        let zones = SourceTranslation.zones(tunnels: tunnels, serving: serving, mesh: mesh != nil)
        if !zones.isEmpty { frame.setsAfter.append(SourceTranslation.flowsWithoutZone) }
        frame.setsAfter += mesh?.firewallSets ?? []
        let overlayDevices = TunnelFilter.overlayDevices(overlay)
        var tracking = PodGuard.trackingChain(overlayDevices: overlayDevices)
        if let tunnels {
            // A member of a mesh receives with the default identity, whether it serves it or not.
            let isMemberOnly = mesh != nil && !(serving.map(\.identity) + world.refused).contains(.defaultAddress)
            let noGateway = world.refused + (isMemberOnly ? [.defaultAddress] : [])
            let envelopes = tunnels.encapsulation.envelopes.map(\.match)
            tracking.rules =
                EchoFirewall.incoming(
                    local: tunnels.local, envelopes: envelopes, receives: receives,
                    refused: receives ? noGateway.flatMap(tunnels.devices) : [])
                + zones + tracking.rules
            frame.chainsBefore.append(EchoFirewall.outgoing(local: tunnels.local, envelopes: envelopes))
        }
        frame.chainsBefore += [
            InboundFlows.leavingChain,
            InboundFlows.arrivingChain(comesPastOverlay: overlayDevices != nil && !world.isNative),
        ]
        frame.chainsAfter = [
            tracking, PodGuard.guardChain(overlayDevices: overlayDevices),
            SegmentSizeClamp.chain(tunnels: tunnels, serving: serving),
            SourceTranslation.chain(tunnels: tunnels, serving: serving, mesh: mesh),
            SourceTranslation.checkChain(tunnels: tunnels, serving: serving, mesh: mesh != nil),
        ]
        return frame
    }
}

import Model

/// The table `inet culvert`, put together.
enum FirewallPlan {
    /// - Parameters:
    ///   - tunnels: nil where this node's overlay address is not known.
    ///   - refused: what this node would serve and cannot.
    ///   - isNative: pods' packets come by the nodes' own routes, not by the overlay's devices.
    static func table(
        tunnels: TunnelLinks?, node: Node?, index: NodeIndex, serving: [GatewayEgress],
        refused: [EgressIdentity], tables: PolicyTables,
        overlay: Configuration.Overlay, isNative: Bool, mesh: MeshPlan?
    ) -> FirewallTable {
        var sets: [FirewallSet] = []
        var chains: [FirewallChain] = []
        // What only gateways and members of a mesh need: a node that receives nothing is spared every other node's change.
        let receives = tunnels != nil && (!serving.isEmpty || mesh != nil)
        if let tunnels {
            let sources =
                receives
                ? TunnelFilter.InnerSources(
                    node: node, index: index, local: tunnels.local, overlay: overlay, mesh: mesh) : nil
            if let sources {
                sets += sources.sets
                let keys = serving.map(\.identity).filter { $0 != .defaultAddress }
                sets.append(
                    FirewallSet(
                        name: "egress_keys", key: .number, interval: false,
                        elements: keys.map { .init(first: $0.key, last: $0.key) }))
            }
            chains.append(
                TunnelFilter.chain(
                    tunnels: tunnels, local: tunnels.local, serving: serving, overlay: overlay, mesh: mesh != nil,
                    sources: sources))
        }
        sets += PodGuard.sets(tables) + InboundFlows.sets
        // Pods of other nodes, whose connections leave here: both directions of their handshakes pass the forward hook.
        if receives {
            let ranges = index.podRanges.map { UInt32($0 >> 32)...UInt32(truncatingIfNeeded: $0) }
            sets.append(
                FirewallSet(
                    name: "remote_pods", key: .address, interval: true,
                    elements: IPRanges.merge(ranges).map { .init(first: $0.lowerBound, last: $0.upperBound) }))
        }
        let zones = SourceTranslation.zones(tunnels: tunnels, serving: serving, mesh: mesh != nil)
        if !zones.isEmpty { sets.append(SourceTranslation.flowsWithoutZone) }
        let overlayDevices = TunnelFilter.overlayDevices(overlay)
        var tracking = PodGuard.trackingChain(overlayDevices: overlayDevices)
        if let tunnels {
            // A member of a mesh receives with the default identity, whether it serves it or not.
            let isMemberOnly = mesh != nil && !(serving.map(\.identity) + refused).contains(.defaultAddress)
            let noGateway = refused + (isMemberOnly ? [.defaultAddress] : [])
            let envelopes = tunnels.encapsulation.envelopes.map(\.match)
            tracking.rules =
                EchoFirewall.incoming(
                    local: tunnels.local, envelopes: envelopes, receives: receives,
                    refused: receives ? noGateway.flatMap(tunnels.devices) : [])
                + zones + tracking.rules
            chains.append(EchoFirewall.outgoing(local: tunnels.local, envelopes: envelopes))
        }
        chains += [
            InboundFlows.leavingChain,
            InboundFlows.arrivingChain(comesPastOverlay: overlayDevices != nil && !isNative),
        ]
        chains += PodGuard.groupChains(tables)
        chains += [
            tracking, PodGuard.guardChain(overlayDevices: overlayDevices),
            SegmentSizeClamp.chain(tunnels: tunnels, serving: serving),
            SourceTranslation.chain(tunnels: tunnels, serving: serving, mesh: mesh),
            SourceTranslation.checkChain(tunnels: tunnels, serving: serving, mesh: mesh != nil),
        ]
        return FirewallTable(chains: chains, sets: sets + (mesh?.firewallSets ?? []))
    }
}

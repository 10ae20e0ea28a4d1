import Model

/// What this node does as a gateway: with which address and by which interface each identity leaves.
struct GatewayEgress: Equatable {
    let identity: EgressIdentity
    /// nil: not translated.
    let address: IPAddress?
    /// Table to route by; the main one where nil.
    let viaInterface: LocalFacts.Interface?

    /// - Returns: the egress, or the reason why this node has none and drops the packets.
    static func resolve(_ egress: EgressPolicy.Egress, facts: LocalFacts, node: Node?) -> Result {
        let identity = EgressIdentity(egress)
        switch egress {
        case .untranslated: return .serves(GatewayEgress(identity: identity, address: nil, viaInterface: nil))
        case .defaultAddress:
            let address =
                facts.egressAddressV4 ?? (facts.isLive ? nil : node?.nodeV4)
            guard let address else {
                return .refuses("\(facts.underlayDevice), the default route's interface, has no IPv4 address")
            }
            return .serves(GatewayEgress(identity: identity, address: address, viaInterface: nil))
        case .address(let address):
            guard let interface = facts.interface(with: address) else {
                if !facts.isLive {
                    return .serves(GatewayEgress(identity: identity, address: address, viaInterface: nil))
                }
                return .refuses("egressIP \(address) is on no interface of \(facts.nodeName)")
            }
            let other = interface.name != facts.underlayDevice && interface.gateway != nil
            return .serves(GatewayEgress(identity: identity, address: address, viaInterface: other ? interface : nil))
        case .interface(let name):
            guard let interface = facts.interface(name),
                let address = interface.hostAddresses.first(where: { $0.family == .v4 })
            else {
                return .refuses("interface \(name) does not exist on \(facts.nodeName) or has no IPv4 address")
            }
            return .serves(
                GatewayEgress(
                    identity: identity, address: address,
                    viaInterface: name == facts.underlayDevice ? nil : interface))
        }
    }

    enum Result: Equatable {
        case serves(GatewayEgress)
        case refuses(String)
    }

    /// Routes for packets that leave by another interface than the default route's.
    static func routes(table: UInt32, interface: LocalFacts.Interface) -> [Route] {
        var routes: [Route] = []
        let networks = Set(interface.addresses.filter { $0.family == .v4 && !$0.isHost })
        for network in networks {
            routes.append(Route(table: table, destination: network, kind: .device(interface.name)))
        }
        let way: Route.Kind = interface.gateway.map { .via($0, device: interface.name) } ?? .device(interface.name)
        routes.append(Route(table: table, destination: .everythingV4, kind: way))
        routes.append(
            Route(table: table, destination: .everythingV4, kind: .unreachable, metric: Ownership.backstopMetric))
        return routes
    }
}

/// The table `inet culvert`.
enum GatewayFirewall {
    /// Beginning of the names of the overlay's devices, by which packets for this node's overlay address arrive; nil:
    /// there is no overlay.
    static func overlayDevices(_ overlay: Configuration.Overlay) -> String? {
        switch overlay {
        case .cilium: "cilium_"
        case .flannel: "flannel."
        case .none: nil
        }
    }
    static let sourcePriority: Int32 = -300
    static let sourceNATPriority: Int32 = 100 - 10

    /// One policy table of this node's pods.
    struct PodSet {
        let table: UInt32
        let pods: Set<IPAddress>
        let destinations: [ClosedRange<UInt32>]
    }

    static func table(
        tunnels: TunnelLinks, node: Node?, index: NodeIndex, serving: [GatewayEgress], podSets: [PodSet],
        overlay: Configuration.Overlay = .cilium, mesh: MeshPlan? = nil
    ) -> FirewallTable {
        var sets: [FirewallSet] = []
        let local = tunnels.local
        // What only gateways and members of a mesh need: a node that receives nothing is spared every other node's change.
        let receives = !serving.isEmpty || mesh != nil
        let sources =
            receives ? InnerSources(node: node, index: index, local: local, overlay: overlay, mesh: mesh) : nil
        if let sources {
            sets += sources.sets
            let keys = serving.map(\.identity).filter { $0 != .defaultAddress }
            sets.append(
                FirewallSet(
                    name: "egress_keys", key: .number, interval: false,
                    elements: keys.map { .init(first: $0.key, last: $0.key) }))
        }
        for set in podSets {
            sets.append(
                FirewallSet(
                    name: "pods_\(set.table)", key: .address, interval: false,
                    elements: set.pods.map { .init(first: $0.v4Value, last: $0.v4Value) }))
            sets.append(
                FirewallSet(
                    name: "dst_\(set.table)", key: .address, interval: true,
                    elements: set.destinations.map { .init(first: $0.lowerBound, last: $0.upperBound) }))
        }
        // Pods of other nodes, whose connections leave here: both directions of their handshakes pass the forward hook.
        if receives {
            let ranges = index.podRanges.map { UInt32($0 >> 32)...UInt32(truncatingIfNeeded: $0) }
            sets.append(
                FirewallSet(
                    name: "remote_pods", key: .address, interval: true,
                    elements: IPRanges.merge(ranges).map { .init(first: $0.lowerBound, last: $0.upperBound) }))
        }

        var chains = [
            inputChain(
                tunnels: tunnels, local: local, serving: serving, overlay: overlay, mesh: mesh != nil, sources: sources)
        ]
        chains.append(
            FirewallChain(
                name: "prerouting", kind: .filter, hook: .prerouting, priority: sourcePriority,
                rules: podSets.map { set in
                    FirewallRule([
                        .incoming(Ownership.linkPrefix, prefix: true, negated: true), .ipv4Only,
                        .lookup([.sourceAddress], set: "pods_\(set.table)", negated: false),
                        .lookup([.destinationAddress], set: "dst_\(set.table)", negated: false), .notrack,
                    ])
                }))
        chains.append(clampChain(tunnels: tunnels, serving: serving))
        chains.append(
            FirewallChain(
                name: "postrouting", kind: .nat, hook: .postrouting, priority: sourceNATPriority,
                rules: serving.flatMap { egress in
                    guard let address = egress.address else { return [FirewallRule]() }
                    return tunnels.devices(of: egress.identity).map { device in
                        // What the device itself sends, encapsulated, has it as its incoming interface too. And by the
                        // same tunnels come other locations' packets for pods here.
                        FirewallRule(
                            [.ipv4Only, .match(.sourceAddress, local.v4Value, negated: true)]
                                + (mesh == nil
                                    ? [] : [.lookup([.destinationAddress], set: "remote_pods", negated: true)])
                                + [
                                    .incoming(device, prefix: false, negated: false),
                                    .outgoing(Ownership.linkPrefix, prefix: true, negated: true), .snat(address),
                                ])
                    }
                } + (mesh?.locationTranslation ?? [])))
        return FirewallTable(chains: chains, sets: sets + (mesh?.firewallSets ?? []))
    }

    /// Outer source and the inner sources that it may send: its pod CIDRs, its own node and overlay addresses, and what
    /// lies behind it. One set per prefix length that occurs, which are few: each is a hash table, so that one node's
    /// change costs the kernel the same in a cluster of any size.
    private struct InnerSources {
        /// The sets of one kind of sender, by prefix length, the longest first.
        struct Group {
            let name: String
            let prefixLengths: [Int]
            let sets: [FirewallSet]
            func setName(_ prefixLength: Int) -> String { "\(name)_\(prefixLength)" }

            /// - Parameter pairs: outer and inner source, 32 bits each, by prefix length.
            init(_ name: String, _ pairs: [[UInt64]]) {
                self.name = name
                prefixLengths = (0...32).reversed().filter { !pairs[$0].isEmpty }
                sets = prefixLengths.map { length in
                    FirewallSet(
                        name: "\(name)_\(length)", key: .addressPair, interval: false,
                        elements: pairs[length].map { pair in
                            let inner = UInt32(truncatingIfNeeded: pair)
                            return .init(pair: UInt32(pair >> 32), first: inner, last: inner)
                        })
                }
            }
        }
        let peers: Group
        let own: Group
        /// Outer sources of all peers.
        let outer: FirewallSet

        init(node: Node?, index: NodeIndex, local: IPAddress, overlay: Configuration.Overlay, mesh: MeshPlan?) {
            func add(_ network: IPNetwork, _ outer: IPAddress, to pairs: inout [[UInt64]]) {
                guard network.family == .v4, outer.family == .v4 else { return }
                pairs[network.prefixLength].append(
                    UInt64(outer.v4Value) << 32 | UInt64(network.address.v4Value))
            }
            outer = FirewallSet(
                name: "tunnel_outer", key: .address, interval: false,
                elements: index.outerAddresses.map { .init(first: $0, last: $0) })
            var pairs = index.innerSources
            for source in mesh?.tunnelSources ?? [] {
                for network in source.networks { add(network, source.outer, to: &pairs) }
            }
            peers = Group("tunnel_peers", pairs)
            var own = [[UInt64]](repeating: [], count: 33)
            node?.forEachNetwork { add($0, local, to: &own) }
            self.own = Group("tunnel_self", own)
        }
        var sets: [FirewallSet] { peers.sets + own.sets + [outer] }
    }

    /// One kind of tunnel packet as the input hook sees it.
    private struct Envelope {
        /// Tells packets of this kind from all others.
        let match: [FirewallStatement]
        /// What a good one has besides.
        let wellFormed: [FirewallStatement]
        /// Where the inner IPv4 source is.
        let innerSource: PacketField
        let name: String
    }

    /// Judges tunnel packets on the outer packet, while both headers can be seen.
    private static func inputChain(
        tunnels: TunnelLinks, local: IPAddress, serving: [GatewayEgress], overlay: Configuration.Overlay, mesh: Bool,
        sources: InnerSources?
    ) -> FirewallChain {
        // Without an overlay there is no telling by which interface a peer's packets come.
        let fromPeers: [FirewallStatement] =
            overlayDevices(overlay).map { [.incoming($0, prefix: true, negated: false)] } ?? []
        let toUs: [FirewallStatement] = [.ipv4Only, .match(.destinationAddress, local.v4Value, negated: false)]
        let servesDefault = serving.contains { $0.identity == .defaultAddress }
        let servesKeys = serving.contains { $0.identity != .defaultAddress }
        var rules: [FirewallRule] = []
        for envelope in envelopes(tunnels.tunnelProtocol) {
            let served =
                switch envelope.name {
                case "ipip": servesDefault || mesh
                case "gre": servesKeys
                case "vxlan": !serving.isEmpty || mesh
                default: false
                }
            let base = toUs + envelope.match
            func accept(_ interface: [FirewallStatement], _ group: InnerSources.Group, _ comment: String) {
                for length in group.prefixLengths {
                    let inner =
                        length == 32 ? envelope.innerSource : .network(envelope.innerSource, prefixLength: length)
                    let source = FirewallStatement.lookup(
                        [.sourceAddress, inner], set: group.setName(length), negated: false)
                    rules.append(
                        FirewallRule(
                            base + interface + envelope.wellFormed + [source, .counter, .accept],
                            comment: "\(envelope.name): \(comment), /\(length)"))
                }
            }
            if served, let sources {
                accept(fromPeers, sources.peers, "from peers")
                accept([.incoming("lo", prefix: false, negated: false)], sources.own, "from self")
                if let devices = overlayDevices(overlay) {
                    rules.append(
                        FirewallRule(
                            base + [
                                .incoming(devices, prefix: true, negated: true),
                                .incoming("lo", prefix: false, negated: true), .counter, .drop,
                            ], comment: "\(envelope.name): wrong interface"))
                }
                rules.append(
                    FirewallRule(
                        base + fromPeers + [
                            .lookup([.sourceAddress], set: "tunnel_outer", negated: true), .counter, .drop,
                        ], comment: "\(envelope.name): outer source is no peer"))
                rules.append(
                    FirewallRule(
                        base + [.counter, .drop], comment: "\(envelope.name): inner source or header not allowed"))
            } else {
                rules.append(FirewallRule(base + [.counter, .drop], comment: "\(envelope.name): not a gateway for it"))
            }
        }
        return FirewallChain(name: "input", kind: .filter, hook: .input, priority: 0, rules: rules)
    }

    private static func envelopes(_ tunnelProtocol: Configuration.TunnelProtocol) -> [Envelope] {
        // By the IPv4 header's field: nft 1.0.6 aborts when it lists `meta l4proto 4` before a raw match in a concatenation.
        func ip(_ number: UInt32) -> [FirewallStatement] { [.match(.ipProtocol, number, negated: false)] }
        func udp(_ port: UInt16) -> [FirewallStatement] {
            [.match(.layer4Protocol, 17, negated: false)] + [.match(.udpDestinationPort, UInt32(port), negated: false)]
        }
        /// GRE header "key only" with IPv4 inside and a key that this gateway knows; `offset` in bits.
        func greHeader(_ offset: Int) -> [FirewallStatement] {
            [
                .match(.transport(offset: offset, bits: 32), 0x2000_0800, negated: false),
                .lookup([.transport(offset: offset + 32, bits: 32)], set: "egress_keys", negated: false),
            ]
        }
        let ipip = Envelope(
            match: ip(4), wellFormed: [], innerSource: .transport(offset: 96, bits: 32), name: "ipip")
        let gre = Envelope(
            match: ip(47), wellFormed: greHeader(0), innerSource: .transport(offset: 64 + 96, bits: 32),
            name: "gre")
        let fouIPIP = Envelope(
            match: udp(Ownership.fouIPIPPort), wellFormed: [], innerSource: .transport(offset: 64 + 96, bits: 32),
            name: "ipip")
        let fouGRE = Envelope(
            match: udp(Ownership.fouGREPort), wellFormed: greHeader(64),
            innerSource: .transport(offset: 64 + 64 + 96, bits: 32), name: "gre")
        // UDP 8, VXLAN 8, Ethernet 14 bytes; the type field is the last two of them.
        let vxlan = Envelope(
            match: udp(Ownership.vxlanPort),
            wellFormed: [.match(.transport(offset: (8 + 8 + 12) * 8, bits: 16), 0x0800, negated: false)],
            innerSource: .transport(offset: (8 + 8 + 14 + 12) * 8, bits: 32), name: "vxlan")
        switch tunnelProtocol {
        case .ipip: return [ipip, gre]
        case .fou: return [fouIPIP, fouGRE]
        // Frames to the sending end of the tunnel to self are nobody's.
        case .vxlan:
            return [
                vxlan,
                Envelope(
                    match: udp(Ownership.vxlanSelfPort), wellFormed: [], innerSource: .sourceAddress,
                    name: "vxlan to self"),
            ]
        }
    }

    /// Adopted pods have no routes with the smaller MTU, so handshakes through the gateway are clamped.
    private static func clampChain(tunnels: TunnelLinks, serving: [GatewayEgress]) -> FirewallChain {
        var rules: [FirewallRule] = []
        if !serving.isEmpty, let smallest = tunnels.tunnels.values.map(\.podMTU).min() {
            let clamp = FirewallStatement.clampMSS(UInt16(clamping: smallest - 40))
            rules.append(
                FirewallRule([.incoming(Ownership.linkPrefix, prefix: true, negated: false), .tcpSyn, clamp]))
            rules.append(
                FirewallRule([
                    .incoming("cilium_", prefix: true, negated: true), .ipv4Only,
                    .lookup([.destinationAddress], set: "remote_pods", negated: false), .tcpSyn, clamp,
                ]))
        }
        return FirewallChain(name: "forward", kind: .filter, hook: .forward, priority: -150, rules: rules)
    }
}

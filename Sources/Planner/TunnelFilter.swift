import Model

/// Which packets a gateway accepts from its tunnels: the input hook of the table `inet culvert`.
enum TunnelFilter {
    /// Beginning of the names of the overlay's devices, by which packets for this node's overlay address arrive; nil:
    /// there is no overlay.
    static func overlayDevices(_ overlay: Configuration.Overlay) -> String? {
        switch overlay {
        case .cilium: "cilium_"
        case .flannel: "flannel."
        case .none: nil
        }
    }

    /// Outer source and the inner sources that it may send: its pod CIDRs, its own node and overlay addresses, and what
    /// lies behind it. One set per prefix length that occurs, which are few: each is a hash table, so that one node's
    /// change costs the kernel the same in a cluster of any size.
    struct InnerSources {
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

    /// Judges tunnel packets on the outer packet, while both headers can be seen. What is let in gets the mark that the rules
    /// about tunnels ask for: without this table nothing that comes out of a tunnel goes anywhere.
    static func chain(
        tunnels: TunnelLinks, local: IPAddress, serving: [GatewayEgress], overlay: Configuration.Overlay, mesh: Bool,
        sources: InnerSources?
    ) -> FirewallChain {
        // Without an overlay there is no telling by which interface a peer's packets come.
        let fromPeers: [FirewallStatement] =
            overlayDevices(overlay).map { [.incoming($0, prefix: true, negated: false)] } ?? []
        let toUs: [FirewallStatement] = [.ipv4Only, .match(.destinationAddress, local.v4Value, negated: false)]
        // What other nodes of a location send for the mesh comes with the default identity.
        let received = serving.map(\.identity) + (mesh ? [.defaultAddress] : [])
        var rules: [FirewallRule] = []
        for envelope in tunnels.encapsulation.envelopes {
            let base = toUs + envelope.match
            func accept(_ interface: [FirewallStatement], _ group: InnerSources.Group, _ comment: String) {
                for length in group.prefixLengths {
                    let inner =
                        length == 32 ? envelope.innerSource : .network(envelope.innerSource, prefixLength: length)
                    let source = FirewallStatement.lookup(
                        [.sourceAddress, inner], set: group.setName(length), negated: false)
                    rules.append(
                        FirewallRule(
                            base + interface + envelope.wellFormed
                                + [source, .counter, .setMark(Ownership.acceptedMark), .accept],
                            comment: "\(envelope.name): \(comment), /\(length)"))
                }
            }
            if envelope.isOpen(receiving: received), let sources {
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
}

import Model

/// What the firewall does with echoes and with the packets of our own tunnels: no connection is kept of them, on either end.
enum EchoFirewall {
    /// UDP to the port of echoes.
    private static let echo: [FirewallStatement] = [
        .match(.layer4Protocol, 17, negated: false),
        .match(.udpDestinationPort, UInt32(EchoRouting.port), negated: false),
    ]
    /// On its way back to one of the nodes that send here.
    private static let toPeer: [FirewallStatement] = [
        .ipv4Only, .lookup([.destinationAddress], set: "tunnel_outer", negated: false),
    ]

    /// Before connection tracking, of what comes in: the packets of our tunnels to this node, echoes that are back, and at a
    /// gateway the echoes of others on their way back.
    ///
    /// - Parameter refused: devices of identities that this node cannot serve. Their echoes are dropped, so that the senders
    ///   go elsewhere.
    static func incoming(
        local: IPAddress, envelopes: [[FirewallStatement]], receives: Bool, refused: [String]
    ) -> [FirewallRule] {
        let toUs: [FirewallStatement] = [.ipv4Only, .match(.destinationAddress, local.v4Value, negated: false)]
        var rules = envelopes.map { FirewallRule(toUs + $0 + [.notrack]) }
        rules.append(FirewallRule(toUs + echo + [.notrack]))
        for device in refused {
            rules.append(
                FirewallRule(
                    [.incoming(device, prefix: false, negated: false)] + toPeer + echo + [.counter, .drop],
                    comment: "echo: not a gateway for it, \(device)"))
        }
        if receives {
            rules.append(
                FirewallRule(
                    [.incoming(Ownership.linkPrefix, prefix: true, negated: false)] + toPeer + echo + [
                        .match(.udpSourcePort, UInt32(Ownership.provingPort), negated: true), .notrack,
                        // A rule behind it that chose a zone would have it tracked again.
                        .accept,
                    ]))
        }
        return rules
    }

    /// The same of what this node sends.
    static func outgoing(local: IPAddress, envelopes: [[FirewallStatement]]) -> FirewallChain {
        let fromUs: [FirewallStatement] = [.ipv4Only, .match(.sourceAddress, local.v4Value, negated: false)]
        let toUs: [FirewallStatement] = [.ipv4Only, .match(.destinationAddress, local.v4Value, negated: false)]
        return FirewallChain(
            name: "output", kind: .filter, hook: .output, priority: PodGuard.trackingPriority,
            rules: envelopes.map { FirewallRule(fromUs + $0 + [.notrack]) } + [FirewallRule(toUs + echo + [.notrack])])
    }

    /// Translates the echoes that ask for it, also those to a node whose address lies in a pod network.
    static func translation(_ device: String, _ address: IPAddress) -> FirewallRule {
        FirewallRule([.incoming(device, prefix: false, negated: false)] + toPeer + echo + [.snat(address)])
    }

    /// An echo that comes out of a tunnel and goes back to its sender, with whatever source address.
    static let onItsWayBack = FirewallRule(
        [.incoming(Ownership.linkPrefix, prefix: true, negated: false)] + toPeer + echo + [.accept])
}

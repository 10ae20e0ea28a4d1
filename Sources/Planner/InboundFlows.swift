import Model

/// Only what a pod started itself leaves by its gateway. What came to it from outside (a host port, a node port, a routed pod
/// address) is answered on the way it came: the firewall keeps in mind what came in, and marks the pod's answers to it, which
/// a rule before the pod's own sends by the main table.
///
/// A pod's own flows are not tracked (`PodGuard`), so connection tracking cannot tell the two apart. These sets do. Nothing
/// that the pod started itself must get into them:
/// - TCP: the pod has answered a SYN from outside with a SYN and ACK. A connection of its own answers a SYN otherwise
///   (RFC 5961, section 4.2). Or connection tracking has seen both directions of it, opened from outside.
/// - UDP: the destination was translated on the way in; or the datagram came past the overlay, by which all answers to a pod's
///   own flows come back, and the pod itself has sent nothing to there for a while.
/// - ping: an echo request has come in.
///
/// eBPF host routing asks neither marks nor netfilter: there, answers to inbound flows go to the gateway.
enum InboundFlows {
    /// TCP whose first segment was seen, and nothing else yet.
    private static let opened = "inbound_opened"
    private static let answered = "inbound_flows"
    private static let pings = "inbound_pings"
    /// What pods have sent of UDP by themselves.
    private static let own = "own_datagrams"
    /// TCP of which one side has said that it is over.
    private static let closing = "inbound_closing"
    /// What pods have sent to a Service whose end is outside: the answers have to be translated back.
    private static let translated = "own_translated"
    private static let leaving = "pod_leaving"
    private static let arriving = "pod_arriving"

    /// How long a flow is kept in mind after its last packet, in seconds.
    private enum Timeout {
        /// A SYN that the pod has not answered.
        static let opened: UInt64 = 60
        /// More than TCP's two hours of keep-alive (RFC 9293, section 3.8.4).
        static let tcp: UInt64 = 3 * 3600
        /// TCP that is not confirmed yet, or over.
        static let unconfirmed: UInt64 = 120
        static let udp: UInt64 = 180
        static let ping: UInt64 = 30
    }
    /// Elements of each set, at most. What does not get in goes to the gateway.
    private static let size: UInt32 = 131_072

    static var sets: [FirewallSet] {
        [
            FirewallSet(name: opened, key: .flow, dynamicSize: size),
            FirewallSet(name: answered, key: .flow, dynamicSize: size),
            FirewallSet(name: pings, key: .addressPair, dynamicSize: size),
            FirewallSet(name: own, key: .flow, dynamicSize: size),
            FirewallSet(name: closing, key: .flow, dynamicSize: size),
            FirewallSet(name: translated, key: .flow, dynamicSize: size),
        ]
    }

    /// Keys have the outside first.
    static let ofArriving: [PacketField] = [
        .sourceAddress, .destinationAddress, .layer4Protocol, .sourcePort, .destinationPort,
    ]
    private static let ofLeaving: [PacketField] = [
        .destinationAddress, .sourceAddress, .layer4Protocol, .destinationPort, .sourcePort,
    ]
    private static let tcp = FirewallStatement.match(.layer4Protocol, 6, negated: false)
    private static let udp = FirewallStatement.match(.layer4Protocol, 17, negated: false)
    private static func ping(_ type: UInt32) -> [FirewallStatement] {
        [.ipv4Only, .match(.layer4Protocol, 1, negated: false), .match(.icmpType, type, negated: false)]
    }

    /// What a pod sends to a claimed destination, before connection tracking: answers to inbound flows are marked and tracked,
    /// everything else is neither.
    static var leavingChain: FirewallChain {
        let answer: [FirewallStatement] = [.setMark(Ownership.inboundMark), .accept]
        func known(_ set: String) -> FirewallStatement { .lookup(ofLeaving, set: set, negated: false) }
        return FirewallChain(
            name: leaving,
            rules: [
                FirewallRule(
                    [
                        .ipv4Only, .tcpFlags(value: [.syn, .ack], mask: [.syn, .ack]), known(opened),
                        .update(ofLeaving, set: answered, seconds: Timeout.unconfirmed),
                    ] + answer),
                // Nobody listens at that port.
                FirewallRule([.ipv4Only, .tcpFlags(value: .rst, mask: .rst), known(opened)] + answer),
                // The pod closes it. What comes in afterwards does not lengthen it again.
                FirewallRule([
                    .ipv4Only, .tcpFlags(value: .fin, mask: .fin), known(answered),
                    .update(ofLeaving, set: closing, seconds: Timeout.unconfirmed),
                    .update(ofLeaving, set: answered, seconds: Timeout.unconfirmed),
                ]),
                FirewallRule([
                    .ipv4Only, .tcpFlags(value: .rst, mask: .rst), known(answered),
                    .update(ofLeaving, set: answered, seconds: Timeout.unconfirmed),
                ]),
                // Only what comes in lengthens it: a flood of SYNs that nobody goes on with is soon forgotten.
                FirewallRule([.ipv4Only, tcp, known(answered)] + answer),
                FirewallRule(
                    [.ipv4Only, udp, known(answered), .update(ofLeaving, set: answered, seconds: Timeout.udp)]
                        + answer),
                FirewallRule(
                    ping(0) + [.lookup([.destinationAddress, .sourceAddress], set: pings, negated: false)] + answer),
                FirewallRule([.ipv4Only, udp, .update(ofLeaving, set: own, seconds: Timeout.udp)]),
                // This bit, if another program has set it, must not lead past the pod's own rule.
                FirewallRule([.clearMark(Ownership.inboundMark), .notrack]),
            ])
    }

    static let goToLeaving = FirewallStatement.jump(leaving)
    static let goToArriving = FirewallStatement.jump(arriving)

    /// What comes to a pod from a claimed destination, in the forward hook, after its destination was translated.
    ///
    /// - Parameter comesPastOverlay: whatever gets here has not come by the overlay, which brings the answers to pods' own flows.
    static func arrivingChain(comesPastOverlay: Bool) -> FirewallChain {
        var rules = [
            // A pod can write any source address: what comes in by the way that leads to its source has come from there. The
            // look-up has the mark, so that the pod's own rule has no part in it.
            FirewallRule([.setMark(Ownership.inboundMark)]),
            FirewallRule([.comesByNoRouteBack, .clearMark(Ownership.inboundMark), .goBack]),
            FirewallRule([.clearMark(Ownership.inboundMark)]),
            FirewallRule([
                .ipv4Only, .originalDirection, .tcpFlags(value: .syn, mask: [.syn, .ack, .rst, .fin]),
                .update(ofArriving, set: opened, seconds: Timeout.opened),
            ]),
            // Also what was opened before a policy selected the pod. What the pod opened itself is not tracked in the one
            // direction, and so never established.
            FirewallRule([
                .ipv4Only, .originalDirection, .connectionState(.established), tcp,
                .lookup(ofArriving, set: closing, negated: true),
                .update(ofArriving, set: answered, seconds: Timeout.tcp),
            ]),
            FirewallRule([
                .ipv4Only, .originalDirection, .destinationTranslated, udp,
                .update(ofArriving, set: answered, seconds: Timeout.udp),
            ]),
        ]
        if comesPastOverlay {
            rules.append(
                FirewallRule([
                    .ipv4Only, .originalDirection, udp, .lookup(ofArriving, set: own, negated: false),
                    .update(ofArriving, set: own, seconds: Timeout.udp),
                ]))
            rules.append(
                FirewallRule([
                    .ipv4Only, .originalDirection, udp, .lookup(ofArriving, set: own, negated: true),
                    .update(ofArriving, set: answered, seconds: Timeout.udp),
                ]))
        }
        rules.append(
            FirewallRule(ping(8) + [.update([.sourceAddress, .destinationAddress], set: pings, seconds: Timeout.ping)]))
        return FirewallChain(name: arriving, rules: rules)
    }

    /// In the forward hook: a pod's packet to a Service whose end is outside, on its way into the tunnel.
    static let keepTranslated: [FirewallStatement] = [
        .originalDirection, .destinationTranslated, .update(ofLeaving, set: translated, seconds: Timeout.tcp),
    ]
    static let isNotTranslated = FirewallStatement.lookup(ofArriving, set: translated, negated: true)

    /// Marked packets leave as if there were no policy.
    static let rule = Rule(
        priority: Ownership.inboundRulePriority,
        mark: .init(value: Ownership.inboundMark, mask: Ownership.inboundMark), table: Rule.mainTable)
}

extension Planner {
    /// Sets that the firewall fills with flows of pods; keys have the outside first, then the pod.
    public static var flowSets: [FirewallSet] { InboundFlows.sets }
}

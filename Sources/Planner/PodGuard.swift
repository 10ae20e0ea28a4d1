import Model

/// What the firewall of a pod's own node does with the traffic that a policy claims.
///
/// Pods of which the same destinations are claimed share a set of these destinations and four short chains, and verdict maps
/// say which pod belongs to which. So a packet passes the same few rules whatever the number of policies, and a pod that comes
/// or goes changes one element of each map.
enum PodGuard {
    /// Before connection tracking.
    static let trackingPriority: Int32 = -300
    static let guardPriority: Int32 = -150
    static let comment = "pods: claimed traffic past its tunnel"

    /// All pods here that have a policy.
    private static let pods = "pods"

    /// By pod, the chain for its packets, in one hook and direction.
    private enum Map: String, CaseIterable {
        /// From the pod, before connection tracking.
        case leaving = "pods_leaving"
        /// To the pod, before connection tracking.
        case returning = "pods_returning"
        /// From the pod, when it is forwarded.
        case guarded = "pods_guarded"
        /// To the pod, when it is forwarded.
        case arriving = "pods_arriving"

        func rule(_ before: [FirewallStatement]) -> FirewallRule {
            let key: PacketField =
                switch self {
                case .leaving, .guarded: .sourceAddress
                case .returning, .arriving: .destinationAddress
                }
            return FirewallRule(before + [.ipv4Only, .lookUpChain([key], map: rawValue)])
        }

        func chain(_ group: PolicyTables.Group) -> FirewallChain {
            let to = FirewallStatement.lookup([.destinationAddress], set: group.destinations.name, negated: false)
            let from = FirewallStatement.lookup([.sourceAddress], set: group.destinations.name, negated: false)
            let rule: FirewallRule
            switch self {
            case .leaving: rule = FirewallRule([.ipv4Only, to, InboundFlows.goToLeaving])
            case .returning:
                rule = FirewallRule([.ipv4Only, from, InboundFlows.isNotTranslated, .notrack])
            case .guarded:
                rule = FirewallRule(
                    [
                        .ipv4Only, to, .outgoing(Ownership.linkPrefix, prefix: true, negated: true),
                        .marked(Ownership.inboundMark, negated: true), .counter, .drop,
                    ], comment: "\(comment), destinations \(group.destinations.name)")
            case .arriving: rule = FirewallRule([.ipv4Only, from, InboundFlows.goToArriving])
            }
            return FirewallChain(name: FirewallSet.chain(map: rawValue, number: group.number), rules: [rule])
        }
    }

    /// The destinations, and which pods they are claimed of.
    static func sets(_ tables: PolicyTables) -> [FirewallSet] {
        var chains: [UInt32: UInt32] = [:]
        for group in tables.groups {
            for pod in group.podsV4 { chains[pod.v4Value] = group.number }
        }
        let addresses = chains.keys.sorted()
        let all = FirewallSet(
            name: pods, key: .address, interval: false, elements: addresses.map { .init(first: $0, last: $0) })
        let elements = addresses.map { FirewallSet.Element(pair: chains[$0] ?? 0, first: $0, last: $0) }.sorted()
        return [all] + tables.groups.map(\.destinations)
            + Map.allCases.map { FirewallSet(map: $0.rawValue, elements: elements) }
    }

    /// What is claimed of the pods of a group.
    static func destinations(group: UInt32, _ ranges: [ClosedRange<UInt32>]) -> FirewallSet {
        FirewallSet(
            name: "claimed_\(String(group, radix: 16))", key: .address, interval: true,
            elements: ranges.map { .init(first: $0.lowerBound, last: $0.upperBound) })
    }

    /// The chains that the maps name.
    static func groupChains(_ tables: PolicyTables) -> [FirewallChain] {
        Map.allCases.flatMap { map in tables.groups.map { map.chain($0) } }
    }

    /// What a pod starts itself is not tracked: its replies come back past netfilter, or by another interface, and whoever drops
    /// what connection tracking calls invalid would drop them. Where they do pass here, by the overlay, they are not tracked
    /// either.
    static func trackingChain(overlayDevices: String?) -> FirewallChain {
        var rules = [Map.leaving.rule([.incoming(Ownership.linkPrefix, prefix: true, negated: true)])]
        if let overlayDevices {
            rules.append(Map.returning.rule([.incoming(overlayDevices, prefix: true, negated: false)]))
        }
        return FirewallChain(
            name: "prerouting", kind: .filter, hook: .prerouting, priority: trackingPriority, rules: rules)
    }

    /// A second line behind the pod's rules: where somebody deletes them, what is claimed is dropped rather than sent out by
    /// another way, but for answers to what came in. (eBPF host routing does not ask netfilter; there the pod's second rule does
    /// this.) And what comes in is kept in mind.
    static func guardChain(overlayDevices: String?) -> FirewallChain {
        let pastTunnels = FirewallStatement.incoming(Ownership.linkPrefix, prefix: true, negated: true)
        let pastOverlay = overlayDevices.map { [FirewallStatement.incoming($0, prefix: true, negated: true)] } ?? []
        return FirewallChain(
            name: "guard", kind: .filter, hook: .forward, priority: guardPriority,
            rules: [
                Map.guarded.rule([pastTunnels]),
                FirewallRule(
                    [
                        .outgoing(Ownership.linkPrefix, prefix: true, negated: false), .ipv4Only,
                        .lookup([.sourceAddress], set: pods, negated: false),
                    ] + InboundFlows.keepTranslated),
                Map.arriving.rule([pastTunnels] + pastOverlay),
            ])
    }
}

import Model

/// What the firewall of a pod's own node does with the traffic that a policy claims.
enum PodGuard {
    /// Before connection tracking.
    static let trackingPriority: Int32 = -300
    static let guardPriority: Int32 = -150
    static let comment = "pods: claimed traffic past its tunnel"

    /// The pods of each policy table, and what is claimed of them.
    static func sets(_ tables: PolicyTables) -> [FirewallSet] {
        tables.tables.flatMap { table in
            [
                FirewallSet(
                    name: pods(table), key: .address, interval: false,
                    elements: table.podsV4.map { .init(first: $0.v4Value, last: $0.v4Value) }),
                table.destinations,
            ]
        }
    }

    /// What is claimed of the pods of a table.
    static func destinations(table: UInt32, _ ranges: [ClosedRange<UInt32>]) -> FirewallSet {
        FirewallSet(
            name: "dst_\(table)", key: .address, interval: true,
            elements: ranges.map { .init(first: $0.lowerBound, last: $0.upperBound) })
    }

    private static func pods(_ table: PolicyTables.Table) -> String { "pods_\(table.number)" }

    private static func claimed(_ table: PolicyTables.Table) -> [FirewallStatement] {
        [
            .incoming(Ownership.linkPrefix, prefix: true, negated: true), .ipv4Only,
            .lookup([.sourceAddress], set: pods(table), negated: false),
            .lookup([.destinationAddress], set: table.destinations.name, negated: false),
        ]
    }

    /// What a pod starts itself is not tracked: its replies come back past netfilter, or by another interface, and whoever drops
    /// what connection tracking calls invalid would drop them. Where they do pass here, by the overlay, they are not tracked
    /// either.
    static func trackingChain(_ tables: PolicyTables, overlayDevices: String?) -> FirewallChain {
        var rules = tables.tables.map { FirewallRule(claimed($0) + [InboundFlows.goToLeaving]) }
        if let overlayDevices {
            rules += tables.tables.map {
                FirewallRule(
                    [.incoming(overlayDevices, prefix: true, negated: false)] + arriving($0) + [
                        InboundFlows.isNotTranslated, .notrack,
                    ])
            }
        }
        return FirewallChain(
            name: "prerouting", kind: .filter, hook: .prerouting, priority: trackingPriority, rules: rules)
    }

    /// From what is claimed to the pods of a table.
    private static func arriving(_ table: PolicyTables.Table) -> [FirewallStatement] {
        [
            .ipv4Only, .lookup([.destinationAddress], set: pods(table), negated: false),
            .lookup([.sourceAddress], set: table.destinations.name, negated: false),
        ]
    }

    /// A second line behind the pod's rules: where somebody deletes them, what is claimed is dropped rather than sent out by
    /// another way, but for answers to what came in. (eBPF host routing does not ask netfilter; there the pod's second rule does
    /// this.) And what comes in is kept in mind.
    static func guardChain(_ tables: PolicyTables, overlayDevices: String?) -> FirewallChain {
        let pastOverlay = overlayDevices.map { [FirewallStatement.incoming($0, prefix: true, negated: true)] } ?? []
        return FirewallChain(
            name: "guard", kind: .filter, hook: .forward, priority: guardPriority,
            rules: tables.tables.map { table in
                FirewallRule(
                    claimed(table) + [
                        .outgoing(Ownership.linkPrefix, prefix: true, negated: true),
                        .marked(Ownership.inboundMark, negated: true), .counter, .drop,
                    ], comment: "\(comment), table \(table.number)")
            }
                + tables.tables.map { table in
                    FirewallRule(
                        [
                            .outgoing(Ownership.linkPrefix, prefix: true, negated: false), .ipv4Only,
                            .lookup([.sourceAddress], set: pods(table), negated: false),
                        ] + InboundFlows.keepTranslated)
                }
                + tables.tables.map { table in
                    FirewallRule(
                        [.incoming(Ownership.linkPrefix, prefix: true, negated: true)] + pastOverlay + arriving(table)
                            + [InboundFlows.goToArriving])
                })
    }
}

import Model

/// What of a plan changes with the gateways' health: the ways that are watched, and what is switched when one of them is lost.
public struct LivenessPlan: Equatable, Sendable {
    /// One gateway that is watched by echoes.
    public struct Session: Hashable, Sendable {
        public let end: GatewayEnd
        /// The same gateway by other names: of several Nodes with one overlay address.
        public let others: [GatewayEnd]
        /// The gateways whose state this session shows.
        public var ends: [GatewayEnd] { [end] + others }
        /// Names its tunnel in the mark of its echoes, 1 to 4095.
        public let number: UInt32
        /// Between two echoes, milliseconds.
        public let interval: Int
        public let multiplier: Int
        /// The gateway translates what it is sent: a second echo beside one in fifty shows that it does.
        public let isTranslated: Bool
        /// The interval is the gateway's wish: longer than the policies', milliseconds; nil: it has none.
        public let asked: Int?
        public init(
            end: GatewayEnd, others: [GatewayEnd] = [], number: UInt32, interval: Int, multiplier: Int,
            isTranslated: Bool, asked: Int? = nil
        ) {
            self.asked = asked
            self.end = end
            self.others = others
            self.number = number
            self.interval = interval
            self.multiplier = multiplier
            self.isTranslated = isTranslated
        }
    }

    /// One group of next hops, and what it may point to.
    public struct Slot: Equatable, Sendable {
        public struct Candidate: Equatable, Sendable {
            public let candidate: GatewayCandidate
            public let end: GatewayEnd
            /// What its next hop is numbered by.
            public let wayKey: String
            public let target: NextHop.Target
        }
        public let key: String
        public let place: String
        /// The policy's name.
        public let policy: String
        /// Number of the group.
        public let id: UInt32
        /// In order of preference.
        public let candidates: [Candidate]
        /// For when all candidates are down.
        public let blackhole: NextHop.Target
        public let takesBack: Bool
        /// Where the plan has it, for a slot of which nothing was decided before.
        public let planned: GatewayChoice
        /// Some pod here has it. Otherwise a pod is expected that will have it, and nobody is told of it.
        public internal(set) var isInUse = true

        /// What the group is set to for this choice.
        public func target(_ choice: GatewayChoice) -> NextHop.Target {
            choice.candidate.flatMap { wanted in candidates.first { $0.candidate == wanted }?.target } ?? blackhole
        }
    }

    /// In order.
    public var sessions: [Session] = []
    public var slots: [Slot] = []
    /// This node's own ways out, which need no echo: whether it serves them.
    public var own: [GatewayEnd: GatewayHealth.State] = [:]
    /// What this node has to reach as a gateway.
    public var targetChecks: [TargetCheck] = []
    /// Between two echoes of one sender, milliseconds, of each identity that this node serves as a gateway.
    public var servedIntervals: [Int] = []
    /// Whose targets these are, and others whose targets cannot be asked at the moment.
    public var checkedEgresses: Set<EgressSpecification> = []
    /// Nodes that Kubernetes has given up.
    public var doubtful: Set<String> = []
    /// Where echoes come from: an address of this node's pod network that no device of the node has.
    public var source: IPAddress?
    /// Where they go: this node's own overlay address.
    public var destination: IPAddress?
    /// Why no echo can be sent, for people; empty if it can. While it cannot, no gateway counts as down, because its
    /// state is not known.
    public var obstacle = ""
    public init() {}
}

/// Targets that this node as a gateway has to reach.
public struct TargetCheck: Equatable, Sendable {
    public let egress: EgressSpecification
    /// The address to connect from; nil: any.
    public let source: IPAddress?
    /// The device to connect by; empty: as the main table says.
    public let device: String
}

/// Echoes: how they get into their tunnel, past this node's own tables (design.md, "Liveness is a packet").
enum EchoRouting {
    /// UDP port of BFD echoes (RFC 5881, section 4).
    static let port = Ownership.echoPort

    /// - Parameter asked: the interval that a node wishes as a gateway, milliseconds.
    static func sessions(
        _ used: [AssignedPolicy], hops: NextHops, nodeName: String, asked: (String) -> Int?
    ) -> [LivenessPlan.Session] {
        // Of several policies none waits longer than it says, and the smallest interval serves all.
        // Nodes that claim one address have one way, and one session.
        var fastest: [UInt32: (interval: Int, detection: Int, least: Int, isTranslated: Bool, ends: Set<GatewayEnd>)] =
            [:]
        for policy in used {
            let detection = policy.interval * policy.multiplier
            for candidate in policy.candidates where candidate.node != nodeName {
                let end = GatewayEnd(candidate)
                guard let member = hops.member(end) else { continue }
                let known = fastest[member]
                fastest[member] = (
                    min(known?.interval ?? .max, policy.interval), min(known?.detection ?? .max, detection),
                    min(known?.least ?? .max, policy.multiplier),
                    candidate.egress.address != .untranslated, (known?.ends ?? []).union([end])
                )
            }
        }
        return fastest.sorted { $0.key < $1.key }.compactMap { member, wanted in
            let ends = wanted.ends.sorted()
            let number = member - Ownership.firstNextHop + 1
            guard number <= Ownership.mostEchoSessions else { return nil }
            let longer = ends.compactMap { asked($0.node) }.max().flatMap { $0 > wanted.interval ? $0 : nil }
            return LivenessPlan.Session(
                end: ends[0], others: Array(ends.dropFirst()), number: number, interval: longer ?? wanted.interval,
                multiplier: longer == nil ? wanted.detection / wanted.interval : wanted.least,
                isTranslated: wanted.isTranslated, asked: longer)
        }
    }

    /// Gateways that are not watched because the number of their next hop does not fit into a mark; empty: all are.
    static func unwatched(
        _ used: [AssignedPolicy], hops: NextHops, nodeName: String
    ) -> [String] {
        let most = Ownership.firstNextHop + Ownership.mostEchoSessions
        let ends = Set(used.flatMap(\.candidates).filter { $0.node != nodeName }.map { GatewayEnd($0) })
        return Set(ends.filter { (hops.member($0) ?? 0) >= most }.map(\.node)).sorted()
    }

    /// Where a node's echoes come from: the first address of its pod network, which no pod has; where that is the node's own
    /// end of its tunnels, as with flannel, the last one that a pod may have (the kernel drops its own addresses as sources).
    static func source(of node: Node?, besides end: IPAddress?) -> IPAddress? {
        guard let network = node?.podCIDRs.first(where: { $0.family == .v4 }) else { return nil }
        if network.address != end { return network.address }
        return network.prefixLength <= 30 ? IPAddress(v4: network.lastV4 - 1) : nil
    }

    /// Why no echo can be sent, or comes back; empty where all is well, or none is wanted.
    static func obstacle(_ plan: LivenessPlan, facts: LocalFacts, overlay: Configuration.Overlay) -> String {
        if plan.sessions.isEmpty { return "" }
        if plan.destination == nil { return "this node's \(overlay.tunnelEnd) is not known" }
        if overlay == .none && facts.hasStrictUplink { return PlanWarnings.strictUplink(facts, "echoes") }
        if plan.source == nil { return "this node has no IPv4 pod network in the inventory, which echoes come from" }
        if let priority = facts.localRulePriority, priority < Ownership.echoRulePriority {
            return
                "the rule of the local table has priority \(priority), and the rules for echoes must come before it: move it, as Cilium does: "
                + "ip rule add pref 100 lookup local && ip rule del pref \(priority) lookup local"
        }
        return ""
    }

    /// One rule and one table for each session.
    static func add(_ sessions: [LivenessPlan.Session], hops: NextHops, to host: inout HostState) {
        for session in sessions {
            guard let member = hops.member(session.end) else { continue }
            let table = Ownership.echoTable(session.number)
            host.add([
                Route(table: table, destination: .everythingV4, kind: .nextHop(member)),
                Route(
                    table: table, destination: .everythingV4, kind: .unreachable, metric: Ownership.backstopMetric),
            ])
            host.rules.append(
                Rule(
                    priority: Ownership.echoRulePriority,
                    mark: .init(value: Ownership.echoMark(session.number), mask: Ownership.echoMarkMask),
                    udpPort: port, action: .lookup(table)))
        }
    }
}

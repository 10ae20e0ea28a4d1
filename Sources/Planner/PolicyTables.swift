import Model

/// The routing tables of the pods here, one per distinct set of policies and what they say, and the rules that lead to them.
///
/// A table is never changed to mean something else for its pods: where a policy says something new, they get another table,
/// pod by pod, and the old one goes when nobody is left. (Only what keeps its normal path is changed in place.)
struct PolicyTables {
    struct Table {
        let number: UInt32
        let policies: [AssignedPolicy]
        let v4: [EgressPolicyRoutes.Entry]
        let v6: [EgressPolicyRoutes.Entry]
        /// The number of the group that the table is in.
        let group: UInt32
        /// IPv4 destinations that the table claims.
        let claimedV4: [ClosedRange<UInt32>]
        /// Prefixes that are claimed, with the place of the policy.
        let claims: [(prefix: IPNetwork, policy: Int)]
        fileprivate(set) var pods: [IPAddress] = []
        var podsV4: [IPAddress] { pods.filter { $0.family == .v4 } }
        /// Some pod here has an IPv6 address, and IPv6 destinations are claimed of it.
        var claimsV6: Bool {
            v6.contains { $0.verdict != .thrown } && pods.contains { $0.family == .v6 }
        }
    }
    /// Tables of which the same IPv4 destinations are claimed, for the firewall.
    struct Group {
        /// Follows from what the policies say, so that it stays when the cluster's own networks change.
        let number: UInt32
        let destinations: FirewallSet
        fileprivate(set) var podsV4: [IPAddress] = []
    }
    /// By number.
    let tables: [Table]
    /// By number.
    let groups: [Group]
    /// In the order of the attachments, the place of each one's table; nil: it has none.
    let places: [Int?]

    /// What a set of policies is numbered by.
    static func key(_ policies: [AssignedPolicy]) -> String { policies.map(\.content).joined(separator: "|") }

    /// - Parameter numbers: of tables, by key.
    init(
        attachments: [Attachment], assignment: PolicyAssignment, numbers: AssignedIDs.Numbers, kept: KeptNetworks,
        memory: inout PlannerMemory
    ) {
        var places: [String: Int] = [:]
        var placeOfEach: [Int?] = []
        placeOfEach.reserveCapacity(attachments.count)
        var found: [Table] = []
        // Changed in place: of most tables nothing has changed.
        var verdicts = memory.verdicts
        memory.verdicts = [:]
        places.reserveCapacity(verdicts.count + 1)
        found.reserveCapacity(verdicts.count + 1)
        for (index, attachment) in attachments.enumerated() {
            let key = assignment.tableKeys[index]
            guard !key.isEmpty, let number = numbers[key] else {
                placeOfEach.append(nil)
                continue
            }
            let place: Int
            if let known = places[key] {
                place = known
            } else {
                let policies = assignment.choices[index].policies
                let known = verdicts[key]
                let entry: PlannerMemory.Verdicts
                if let known, known.number == number, known.policies == policies,
                    known.keptGeneration == memory.keptGeneration
                {
                    entry = known
                } else {
                    let v4 = EgressPolicyRoutes.verdicts(policies: policies, kept: kept.v4, family: .v4)
                    let group = PolicyTables.group(policies)
                    entry = PlannerMemory.Verdicts(
                        number: number, policies: policies, keptGeneration: memory.keptGeneration, v4: v4,
                        v6: EgressPolicyRoutes.verdicts(policies: policies, kept: kept.v6, family: .v6),
                        group: group, claimedV4: memory.shared(EgressPolicyRoutes.claimedRanges(v4), group: group),
                        claims: v4.compactMap { entry in
                            if case .claimed(let index) = entry.verdict { (entry.prefix, index) } else { nil }
                        })
                    verdicts[key] = entry
                }
                place = found.count
                places[key] = place
                found.append(
                    Table(
                        number: number, policies: policies, v4: entry.v4, v6: entry.v6,
                        group: entry.group, claimedV4: entry.claimedV4, claims: entry.claims))
            }
            found[place].pods += attachment.addresses.map(\.address)
            placeOfEach.append(place)
        }
        if verdicts.count > places.count { verdicts = verdicts.filter { places[$0.key] != nil } }
        memory.verdicts = verdicts
        let order = found.indices.sorted { found[$0].number < found[$1].number }
        var newPlace = [Int](repeating: 0, count: found.count)
        for (new, old) in order.enumerated() { newPlace[old] = new }
        tables = order.map { place in
            var table = found[place]
            table.pods = Array(Set(table.pods)).sorted()
            return table
        }
        self.places = placeOfEach.map { $0.map { newPlace[$0] } }
        groups = PolicyTables.groups(tables, memory: &memory)
    }

    /// Should two lists of destinations come to the same number, the second one gets the next number that is free.
    private static func groups(_ tables: [Table], memory: inout PlannerMemory) -> [Group] {
        var ranges: [UInt32: [ClosedRange<UInt32>]] = [:]
        var pods: [UInt32: Set<IPAddress>] = [:]
        for table in tables {
            var number = table.group
            while let other = ranges[number], other != table.claimedV4 {
                number = (number + 1) & PolicyTables.groupNumbers
            }
            ranges[number] = table.claimedV4
            pods[number, default: []].formUnion(table.podsV4)
        }
        var kept: [UInt32: PlannerMemory.GroupDestinations] = [:]
        for (number, ranges) in ranges {
            if let known = memory.groups[number], known.ranges == ranges {
                kept[number] = known
            } else {
                kept[number] = .init(ranges: ranges, set: PodGuard.destinations(group: number, ranges))
            }
        }
        memory.groups = kept
        return kept.sorted { $0.key < $1.key }.map { number, entry in
            Group(number: number, destinations: entry.set, podsV4: (pods[number] ?? []).sorted())
        }
    }

    /// 31 bits: `FirewallSet.noChain` is not among them.
    private static let groupNumbers: UInt32 = 0x7FFF_FFFF

    /// A number for what the policies claim, whatever of it is kept: FNV-1a over its ranges.
    private static func group(_ policies: [AssignedPolicy]) -> UInt32 {
        var hash: UInt32 = 2_166_136_261
        let claimed = EgressPolicyRoutes.claimedRanges(
            EgressPolicyRoutes.verdicts(policies: policies, kept: [], family: .v4))
        for range in claimed {
            for bound in [range.lowerBound, range.upperBound] {
                for shift in stride(from: UInt32(0), to: 32, by: 8) {
                    hash = (hash ^ (bound >> shift & 0xFF)) &* 16_777_619
                }
            }
        }
        return hash & groupNumbers
    }

    /// What each table holds: a route by next hop where there is a gateway, an `unreachable` backstop under every claim, and
    /// `throw` for what is excluded or kept.
    func routes(_ hops: NextHops, memory: inout PlannerMemory) -> [HostState.RouteTable] {
        var kept: [UInt32: PlannerMemory.TableRoutes] = [:]
        kept.reserveCapacity(tables.count)
        let result = tables.map { table in
            let inputs = PlannerMemory.TableRoutes.Inputs(
                v4: table.v4, v6: table.claimsV6 ? table.v6 : [], hops: table.policies.map { hops.id(of: $0) })
            let known = memory.tableRoutes[table.number]
            let entry =
                known?.inputs == inputs
                ? known ?? .init(inputs: inputs, table: .init(number: table.number, routes: []))
                : .init(inputs: inputs, table: .init(number: table.number, routes: routes(of: table, inputs)))
            kept[table.number] = entry
            return entry.table
        }
        memory.tableRoutes = kept
        return result
    }

    private func routes(of table: Table, _ inputs: PlannerMemory.TableRoutes.Inputs) -> [Route] {
        var routes: [Route] = []
        for entry in inputs.v4 {
            switch entry.verdict {
            case .thrown: routes.append(Route(table: table.number, destination: entry.prefix, kind: .throwOn))
            case .claimed(let index):
                if let id = inputs.hops[index] {
                    routes.append(Route(table: table.number, destination: entry.prefix, kind: .nextHop(id)))
                }
                routes.append(
                    Route(
                        table: table.number, destination: entry.prefix, kind: .unreachable,
                        metric: Ownership.backstopMetric))
            }
        }
        // This release routes IPv4. What a policy claims of IPv6 is unreachable, rather than open.
        for entry in inputs.v6 {
            routes.append(
                Route(
                    table: table.number, destination: entry.prefix,
                    kind: entry.verdict == .thrown ? .throwOn : .unreachable,
                    metric: entry.verdict == .thrown ? Ownership.defaultMetricV6 : Ownership.backstopMetric))
        }
        return routes
    }

    /// Two rules for each address of a pod: if another program deletes the first, the second still holds. Before them
    /// is a rule for answers to connections from outside.
    var rules: [Rule] {
        (tables.isEmpty ? [] : [InboundFlows.rule])
            + tables.flatMap { table in
                table.pods.filter { $0.family == .v4 || table.claimsV6 }.flatMap { pod in
                    [Ownership.podRulePriority, Ownership.secondPodRulePriority].map {
                        Rule(priority: $0, source: IPNetwork(host: pod), table: table.number)
                    }
                }
            }
    }
}

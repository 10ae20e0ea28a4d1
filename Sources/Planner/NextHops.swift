import Model

/// The next-hop objects of this node: one for each way to a gateway that some pod here may use, and a group for each slot,
/// which has one of them at a time. A route names the group, so a slot's gateway may change without a route being touched.
///
/// A group, because the kernel turns no single next hop into a `blackhole` or a pair under one number, but replaces a group's
/// only member by any other.
struct NextHops: Sendable {
    let hops: [NextHop]
    let numbers: AssignedIDs.Numbers
    /// Of each slot that has a group.
    let slots: [String: LivenessPlan.Slot]
    /// By number.
    let inOrder: [LivenessPlan.Slot]
    /// By way: the number of the next hop.
    private let members: [GatewayEnd: UInt32]

    static let blackholeKey = "blackhole"
    static func wayKey(_ address: IPAddress, _ identity: EgressIdentity) -> String { "to/\(address)/\(identity.key)" }
    static func groupKey(_ slot: String, isPair: Bool) -> String { "\(isPair ? "pair" : "group")/\(slot)" }

    /// - Parameters:
    ///   - policies: those of the pods here, each slot once.
    ///   - uplink: the default route's device, where its reverse-path filter is strict; else nil. A reply that comes in for a
    ///     pod is checked for its reverse path with the pod's own rule, so the route of a pod whose gateway is this node must
    ///     name the uplink too.
    init(
        _ policies: [AssignedPolicy], activation: GatewayActivation, tunnels: TunnelLinks?, nodeName: String,
        overlay: (String) -> IPAddress?, uplink: String?, previous: AssignedIDs
    ) {
        struct Way {
            let key: String
            let target: NextHop.Target
            let end: GatewayEnd
        }
        var ways: [GatewayEnd: Way] = [:]
        var slots: [(policy: AssignedPolicy, candidates: [(GatewayCandidate, Way)], isPair: Bool)] = []
        for policy in policies {
            let candidates = policy.candidates.compactMap { candidate -> (GatewayCandidate, Way)? in
                let end = GatewayEnd(candidate)
                if let known = ways[end] { return (candidate, known) }
                guard let address = overlay(candidate.node),
                    let target = tunnels?.nextHop(gateway: address, identity: end.identity)
                else { return nil }
                let way = Way(key: NextHops.wayKey(address, end.identity), target: target, end: end)
                ways[end] = way
                return (candidate, way)
            }
            if candidates.isEmpty { continue }
            slots.append((policy, candidates, uplink != nil && candidates.contains { $0.0.node == nodeName }))
        }
        let uplinkKey = "uplink/\(uplink ?? "")"
        var keys: Set<String> = []
        keys.reserveCapacity(ways.count + slots.count + 2)
        for way in ways.values { keys.insert(way.key) }
        for slot in slots { keys.insert(NextHops.groupKey(slot.policy.slot, isPair: slot.isPair)) }
        if slots.contains(where: \.isPair) { keys.insert(uplinkKey) }
        if !slots.isEmpty { keys.insert(NextHops.blackholeKey) }
        let numbers = AssignedIDs.assign(
            keys, previous: previous.nextHops, first: Ownership.firstNextHop, retired: previous.retired.nextHops)
        var hops: [NextHop] = []
        var members: [GatewayEnd: UInt32] = [:]
        var placed: [String: LivenessPlan.Slot] = [:]
        placed.reserveCapacity(slots.count)
        hops.reserveCapacity(ways.count + slots.count + 2)
        var made: Set<UInt32> = []
        for (end, way) in ways {
            guard let id = numbers[way.key] else { continue }
            // Nodes that claim one address have one way, and one next hop.
            if made.insert(id).inserted { hops.append(NextHop(id: id, target: way.target)) }
            members[end] = id
        }
        if let id = numbers[NextHops.blackholeKey] { hops.append(NextHop(id: id, target: .blackhole)) }
        if let id = numbers[uplinkKey], let uplink {
            // If the tunnel vanishes, no host answers at this address, so nothing leaves by the uplink.
            hops.append(NextHop(id: id, target: .via(TunnelLinks.nobody, device: uplink)))
        }
        for (policy, candidates, isPair) in slots {
            guard let id = numbers[NextHops.groupKey(policy.slot, isPair: isPair)],
                let blackhole = numbers[NextHops.blackholeKey]
            else { continue }
            func target(_ member: UInt32, ofSelf: Bool) -> NextHop.Target {
                isPair ? .pair(used: member, named: ofSelf ? numbers[uplinkKey] : nil) : .group(member)
            }
            let slot = LivenessPlan.Slot(
                key: policy.slot, place: policy.place, policy: policy.name, id: id,
                candidates: candidates.compactMap { candidate, way in
                    members[way.end].map {
                        .init(
                            candidate: candidate, end: way.end, wayKey: way.key,
                            target: target($0, ofSelf: candidate.node == nodeName))
                    }
                }, blackhole: target(blackhole, ofSelf: false), takesBack: policy.takesBack,
                planned: activation.choice(of: policy) ?? .allDown)
            placed[policy.slot] = slot
            hops.append(NextHop(id: id, target: slot.target(slot.planned)))
        }
        self.numbers = numbers
        self.hops = hops.sorted { $0.id < $1.id }
        self.slots = placed
        inOrder = placed.values.sorted { $0.id < $1.id }
        self.members = members
    }

    /// What the routes of a policy name; nil where it has no gateway.
    func id(of policy: AssignedPolicy) -> UInt32? { slots[policy.slot]?.id }

    /// The next hop of one way.
    func member(_ end: GatewayEnd) -> UInt32? { members[end] }
}

extension Planner {
    /// The slot whose group a next hop's key (`AssignedIDs.nextHops`) stands for; nil: it stands for something else.
    public static func slot(ofGroup key: String) -> String? {
        for prefix in ["group/", "pair/"] where key.hasPrefix(prefix) {
            return String(key.dropFirst(prefix.utf8.count))
        }
        return nil
    }
}

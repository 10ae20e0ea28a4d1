import Model

/// The next-hop objects of this node: one per slot that some pod here has. A route names the object, so a slot's gateway may
/// change without a route being touched.
struct NextHops {
    let hops: [NextHop]
    let numbers: AssignedIDs.Numbers
    private let routed: [String: UInt32]

    /// - Parameters:
    ///   - policies: those of the pods here, each slot once.
    ///   - uplink: the default route's device, where its reverse-path filter is strict; else nil. A reply that comes in for a
    ///     pod is checked for its reverse path with the pod's own rule, so the route of a pod whose gateway is this node must
    ///     name the uplink too.
    init(
        _ policies: [AssignedPolicy], activation: GatewayActivation, tunnels: TunnelLinks?, nodeName: String,
        overlay: (String) -> IPAddress?, uplink: String?, previous: AssignedIDs
    ) {
        var targets: [(key: String, target: NextHop.Target, isPair: Bool)] = []
        for policy in policies {
            guard let gateway = activation.gateway(of: policy), let address = overlay(gateway),
                let target = tunnels?.nextHop(gateway: address, identity: EgressIdentity(policy.egress))
            else { continue }
            targets.append((policy.slot, target, gateway == nodeName && uplink != nil))
        }
        // The kernel turns no single next hop into a group under one number, so each kind has a key of its own.
        func pairKey(_ slot: String) -> String { slot + "#pair" }
        let uplinkKey = "uplink/\(uplink ?? "")"
        let keys = Set(targets.flatMap { $0.isPair ? [$0.key, pairKey($0.key), uplinkKey] : [$0.key] })
        numbers = AssignedIDs.assign(
            keys, previous: previous.nextHops, first: Ownership.firstNextHop, retired: previous.retired.nextHops)
        var hops: [NextHop] = []
        var routed: [String: UInt32] = [:]
        for (key, target, isPair) in targets {
            guard let id = numbers[key] else { continue }
            hops.append(NextHop(id: id, target: target))
            routed[key] = id
            if isPair, let pair = numbers[pairKey(key)], let named = numbers[uplinkKey] {
                hops.append(NextHop(id: pair, target: .pair(used: id, named: named)))
                routed[key] = pair
            }
        }
        if let id = numbers[uplinkKey], let uplink {
            // Should the tunnel vanish, this address answers nobody: nothing leaks by the uplink.
            hops.append(NextHop(id: id, target: .via(TunnelLinks.nobody, device: uplink)))
        }
        self.hops = hops.sorted { $0.id < $1.id }
        self.routed = routed
    }

    /// What the routes of a policy name; nil where it has no gateway.
    func id(of policy: AssignedPolicy) -> UInt32? { routed[policy.slot] }
}

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

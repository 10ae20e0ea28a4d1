import Model

/// What this node does as a gateway: with which address and by which interface each identity leaves.
struct GatewayEgress: Equatable {
    let identity: EgressIdentity
    /// nil: not translated.
    let address: IPAddress?
    /// Table to route by; the main one where nil.
    let viaInterface: LocalFacts.Interface?

    /// - Parameter destinations: of each policy whose packets leave so; none: whether there is a way is not asked.
    /// - Returns: the egress, or the reason why this node has none and drops the packets.
    static func resolve(
        _ egress: EgressSpecification, to destinations: [[IPNetwork]] = [], facts: LocalFacts, node: Node?
    ) -> Result {
        let result = address(egress, facts: facts, node: node)
        guard case .serves(let served) = result,
            let why = WayOut.problem(to: destinations, by: served.viaInterface, facts: facts)
        else { return result }
        return .refuses(why)
    }

    private static func address(_ egress: EgressSpecification, facts: LocalFacts, node: Node?) -> Result {
        let identity = EgressIdentity(egress)
        switch egress.address {
        case .untranslated: return serve(identity, address: nil, by: nil, facts: facts)
        case .defaultAddress:
            let address =
                facts.egressAddressV4 ?? (facts.isLive ? nil : node?.nodeV4)
            if let why = unusable(facts.interface(facts.underlayDevice)) { return .refuses(why) }
            guard let address else {
                return .refuses(
                    "\(facts.underlayDevice.isEmpty ? "no device" : facts.underlayDevice), the interface of the default route, has no IPv4 address"
                )
            }
            return serve(identity, address: address, by: nil, facts: facts)
        case .address(let address):
            guard let interface = facts.interface(with: address) else {
                if !facts.isLive {
                    return .serves(GatewayEgress(identity: identity, address: address, viaInterface: nil))
                }
                return .refuses("egressIP \(address) is on no interface of \(facts.nodeName)")
            }
            if let why = unusable(interface) { return .refuses(why) }
            let other = interface.name != facts.underlayDevice && interface.gateway != nil
            return serve(identity, address: address, by: other ? interface : nil, facts: facts)
        case .interface(let name):
            guard let interface = facts.interface(name),
                let address = interface.hostAddresses.first(where: { $0.family == .v4 })
            else {
                return .refuses("interface \(name) does not exist on \(facts.nodeName) or has no IPv4 address")
            }
            if let why = unusable(interface) { return .refuses(why) }
            return serve(
                identity, address: address, by: name == facts.underlayDevice ? nil : interface, facts: facts)
        }
    }

    /// An egress whose address is there, where answers to it are forwarded. Whether a packet is, the kernel asks the device that
    /// it comes in by: with our own tunnels forwarding and the uplink not, packets would leave and no answer would arrive.
    private static func serve(
        _ identity: EgressIdentity, address: IPAddress?, by interface: LocalFacts.Interface?, facts: LocalFacts
    ) -> Result {
        let uplink = interface ?? facts.interface(facts.underlayDevice)
        if let uplink, uplink.forwards == false {
            return .refuses("forwarding is off on \(uplink.name) (net.ipv4.conf.\(uplink.name).forwarding)")
        }
        if uplink?.forwards == nil, facts.forwarding == 0 {
            return .refuses("forwarding is off (net.ipv4.ip_forward)")
        }
        return .serves(GatewayEgress(identity: identity, address: address, viaInterface: interface))
    }

    private static func unusable(_ interface: LocalFacts.Interface?) -> String? {
        interface.flatMap { $0.hasCarrier ? nil : "\($0.name) has no carrier" }
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

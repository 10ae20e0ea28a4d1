import Model

/// What keeps its normal path whatever a policy claims: the cluster's own networks, worked out once for all policy tables.
struct KeptNetworks: Equatable, Sendable {
    /// Disjoint, in order, and as few as describe exactly these addresses: networks that lie side by side are one.
    let v4: [IPNetwork]
    let v6: [IPNetwork]

    /// Destinations that are never claimed, whatever the cluster looks like: link-local (with the clouds' metadata
    /// services), multicast, broadcast.
    static let always = [
        "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "fe80::/10", "ff00::/8", "::1/128",
    ].compactMap { IPNetwork($0) }

    /// - Parameters:
    ///   - local: this node's overlay address; nil: not known.
    ///   - others: what the mesh keeps.
    init(
        configuration: Configuration, inventory: Inventory, local: IPAddress?, index: NodeIndex, others: [IPNetwork]
    ) {
        var networks =
            KeptNetworks.always + configuration.serviceCIDRs + configuration.excludedCIDRs + others
            + KeptNetworks.services(of: inventory.cilium) + inventory.services.all
        if let local { networks.append(IPNetwork(host: local)) }
        let v4 = networks.filter { $0.family == .v4 }
        self.v4 = KeptNetworks.fewest(v4.map(NodeIndex.packed) + index.keptNetworks)
        v6 = EgressPolicyRoutes.outermost(networks.filter { $0.family == .v6 } + index.keptNetworksV6)
    }

    init(v4: [IPNetwork], v6: [IPNetwork] = []) {
        self.v4 = KeptNetworks.fewest(v4.map(NodeIndex.packed))
        self.v6 = EgressPolicyRoutes.outermost(v6)
    }

    /// Whether a whole IPv4 network of Services is known, by whatever source.
    static func knowsServices(_ configuration: Configuration, _ inventory: Inventory) -> Bool {
        (configuration.serviceCIDRs + inventory.services.networks + services(of: inventory.cilium)).contains {
            $0.family == .v4 && $0.prefixLength < 32
        }
    }

    /// Service networks and API servers, as far as `cilium-config` names them.
    fileprivate static func services(of cilium: CiliumSettings?) -> [IPNetwork] {
        var networks: [IPNetwork] = []
        for key in ["ipv4-service-range", "ipv6-service-range", "k8s-service-cidr"] {
            if let network = cilium?.data[key].flatMap({ IPNetwork($0) }) { networks.append(network) }
        }
        for server in (cilium?.data["k8s-api-server"] ?? "").split(whereSeparator: { " ,".contains($0) }) {
            var host = server
            if let slash = host.lastIndex(of: "/") { host = host[host.index(after: slash)...] }
            if let colon = host.lastIndex(of: ":") { host = host[..<colon] }
            if let address = IPAddress(String(host)) { networks.append(IPNetwork(host: address)) }
        }
        return networks
    }

    /// The fewest networks that hold exactly the addresses of these, in order.
    ///
    /// - Parameter packed: as `NodeIndex.packed`, in any order.
    static func fewest(_ packed: [UInt64]) -> [IPNetwork] {
        var sorted = packed
        sorted.sort()
        // First address and length of what is certain so far; a network comes right after one that contains it.
        var result: [(first: UInt32, length: UInt32)] = []
        for number in sorted {
            let entry = (first: UInt32(truncatingIfNeeded: number >> 8), length: UInt32(number & 0xFF))
            if let last = result.last, UInt64(entry.first) < UInt64(last.first) + (1 << UInt64(32 - last.length)) {
                continue
            }
            result.append(entry)
            // Two halves of one network, side by side, are that network.
            while result.count > 1 {
                let (a, b) = (result[result.count - 2], result[result.count - 1])
                guard a.length == b.length, a.length > 0 else { break }
                let size: UInt64 = 1 << UInt64(32 - a.length)
                guard UInt64(a.first) + size == UInt64(b.first), UInt64(a.first) % (2 * size) == 0 else { break }
                result.removeLast(2)
                result.append((a.first, a.length - 1))
            }
        }
        return result.map { IPNetwork(IPAddress(v4: $0.first), prefixLength: Int($0.length)) }
    }
}

extension Planner {
    /// What keeps its normal path because Services, or the API server, have their addresses there; for people.
    public static func keptServices(
        _ configuration: Configuration, _ inventory: Inventory, _ facts: LocalFacts
    ) -> [IPNetwork] {
        let own = [facts.apiServerAddress].compactMap { $0.map { IPNetwork(host: $0) } }
        return Set(
            configuration.serviceCIDRs + KeptNetworks.services(of: inventory.cilium) + inventory.services.all + own
        ).sorted()
    }
}

/// Networks in order, none of which contains another, as a set that can be asked.
struct DisjointNetworks {
    let networks: [IPNetwork]

    /// Whether one of them holds all of this one.
    func contain(_ network: IPNetwork) -> Bool {
        let position = firstIndex(notBefore: network.address)
        if position < networks.count, networks[position].contains(network) { return true }
        return position > 0 && networks[position - 1].contains(network)
    }

    /// Those that lie within this network.
    func within(_ network: IPNetwork) -> ArraySlice<IPNetwork> {
        let start = firstIndex(notBefore: network.address)
        var end = start
        while end < networks.count, network.contains(networks[end]) { end += 1 }
        return networks[start..<end]
    }

    private func firstIndex(notBefore address: IPAddress) -> Int {
        var (low, high) = (0, networks.count)
        while low < high {
            let middle = (low + high) / 2
            if networks[middle].address < address { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

import Model

/// Locations, their gateways and their WireGuard addresses: every node works them out for itself, from the same
/// objects and with the same result (Kilo's pkg/mesh, whose choices these are).
public struct MeshTopology: Sendable {
    /// Nodes that share one WireGuard address, which their gateway has.
    public struct Segment: Sendable {
        /// `location:NAME`, or `node:NAME` of a node that is on its own. Segments are in this order.
        public let key: String
        /// In order of name.
        public let nodes: [Node]
        public let gatewayIndex: Int
        public let wireGuardAddress: IPAddress
        /// Networks that its nodes can reach and that are no part of the cluster, less those that overlap with others.
        public internal(set) var allowedLocationIPs: [IPNetwork] = []

        public var gateway: Node { nodes[gatewayIndex] }

        /// What belongs to the segment and to nobody else: its WireGuard address, its nodes' pods and private addresses.
        var ownNetworks: [IPNetwork] {
            var networks = [IPNetwork(host: wireGuardAddress)]
            networks.reserveCapacity(1 + 2 * nodes.count)
            for node in nodes {
                networks += node.podCIDRs
                if let address = node.mesh.privateAddress?.address { networks.append(IPNetwork(host: address)) }
            }
            return networks
        }
    }

    public private(set) var segments: [Segment] = []
    /// In order of name; an address that two of them claim belongs to the first.
    public private(set) var peers: [MeshPeer] = []
    /// For people.
    public private(set) var problems: [String] = []
    private let configuration: MeshConfiguration

    public init(configuration: MeshConfiguration, nodes: [String: Node], peers: [MeshPeer]) {
        self.configuration = configuration
        var locations: [String: [Node]] = [:]
        var members: [(key: String, nodes: [Node])] = []
        for node in nodes.values {
            if isOnItsOwn(node) {
                members.append((segmentKey(node), [node]))
            } else {
                locations[location(of: node), default: []].append(node)
            }
        }
        for nodes in locations.values { members.append((segmentKey(nodes[0]), nodes)) }
        members.sort { $0.key < $1.key }
        var withoutKey: [String] = []
        var next = configuration.subnet.address
        for (key, nodes) in members {
            let nodes = nodes.sorted { $0.name < $1.name }
            withoutKey += nodes.filter { $0.mesh.key == nil }.map(\.name)
            guard let gateway = MeshTopology.gatewayIndex(nodes, configuration) else { continue }
            next = next.successor
            guard configuration.subnet.contains(IPNetwork(host: next)) else {
                problems.append(
                    "mesh.subnet \(configuration.subnet) has no address left for \(key): choose a larger one")
                continue
            }
            segments.append(Segment(key: key, nodes: nodes, gatewayIndex: gateway, wireGuardAddress: next))
        }
        if !withoutKey.isEmpty {
            problems.append(
                "no WireGuard key is known for \(MeshTopology.some(withoutKey.sorted())): they cannot be gateways")
        }
        self.peers = deduplicated(peers.sorted { $0.name < $1.name })
        filterAllowedLocationIPs()
    }

    /// The node's location: the annotation, or the topology label.
    public func location(of node: Node) -> String {
        node.mesh.location ?? node.labels[configuration.topologyLabel] ?? ""
    }

    private func isOnItsOwn(_ node: Node) -> Bool {
        // Kilo's nodes have one granularity, each of them the one that it was started with.
        let own = configuration.kiloInterop ? nil : node.mesh.granularity
        return node.mesh.privateAddress == nil || (own ?? configuration.granularity) == .full
    }

    /// A node without a private address is a location of its own, and so is one whose granularity is `full`.
    public func segmentKey(_ node: Node) -> String {
        isOnItsOwn(node) ? "node:\(node.name)" : "location:\(location(of: node))"
    }

    /// The nodes have a way to each other that is no business of the mesh.
    public func areNeighbours(_ a: Node, _ b: Node) -> Bool {
        a.mesh.privateAddress != nil && b.mesh.privateAddress != nil && location(of: a) == location(of: b)
    }

    /// Kilo takes a node for gone after this many seconds without a sign of life: twice its check-in period.
    public static let kiloSilence: Int64 = 60

    /// By how much the time may be later than the second newest sign of life, seconds: less than a check-in period, so that a
    /// node that checks in every 30 seconds is never taken for gone when no newer signs of life arrive.
    private static let mostKiloDelay: Int64 = 25

    /// Nodes that Kilo leaves out of its topology (`Ready` of its pkg/mesh): without key, endpoint or pod network, or not
    /// seen lately. Whoever shares a mesh with Kilo must leave out the same, or their WireGuard addresses differ.
    ///
    /// Kilo goes by its node's own clock. Here that clock counts within a limit: with a clock that is ahead, and with an
    /// inventory that is behind, all nodes would look gone. So the time is at most 25 seconds later than the second newest sign
    /// of life. (The newest one may come from a node whose clock is ahead.) A clock that is behind makes nobody look gone.
    ///
    /// - Parameters:
    ///   - clock: this node's, seconds since 1970.
    ///   - silent: of whom silence counts; nil: of everybody.
    public static func notReadyForKilo(
        _ nodes: [String: Node], clock: Int64, silenceCountsOf silent: Set<String>? = nil
    ) -> Set<String> {
        var newest: Int64?
        var next: Int64?
        for case let seen? in nodes.values.lazy.map(\.mesh.lastSeen.seconds) {
            if let before = newest {
                newest = max(seen, before)
                next = max(min(seen, before), next ?? .min)
            } else {
                newest = seen
            }
        }
        // One alone says nothing of others.
        let second = next ?? newest ?? 0
        let latest = second.addingReportingOverflow(mostKiloDelay)
        let now = min(clock, latest.overflow ? second : latest.partialValue)
        return Set(
            nodes.values.filter { node in
                node.mesh.key == nil || node.podCIDRs.isEmpty || node.mesh.endpoint == nil
                    || silent?.contains(node.name) ?? true && isSilent(since: node.mesh.lastSeen.seconds ?? 0, at: now)
            }.map(\.name))
    }

    /// Any number may be in an annotation: the difference of two may be more than 64 bits hold.
    private static func isSilent(since seen: Int64, at now: Int64) -> Bool {
        let (silence, isTooMuch) = now.subtractingReportingOverflow(seen)
        return seen < now && (isTooMuch || silence >= kiloSilence)
    }

    /// What Kilo takes for a public address: one that is in no network of RFC 1918.
    private static func isPublicToKilo(_ address: IPAddress) -> Bool {
        !privateToKilo.contains { $0.contains(address) }
    }
    private static let privateToKilo = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"].compactMap { IPNetwork($0) }

    /// Where other locations find the node: what it says, else its external, else its private address.
    public static func endpoint(of node: Node, port: UInt16) -> Endpoint? {
        if let endpoint = node.mesh.endpoint { return endpoint }
        let address = node.externalIPs.first ?? node.mesh.privateAddress?.address ?? node.internalIPs.first
        return address.map { Endpoint(host: .address($0), port: port) }
    }

    /// Who volunteered and has a public address; else who volunteered; else who has a public address; else the first.
    /// Only nodes with a key count. nil: there is none.
    static func gatewayIndex(_ nodes: [Node], _ configuration: MeshConfiguration) -> Int? {
        var best: Int?
        var bestRank = Int.max
        for index in nodes.indices {
            let node = nodes[index]
            if node.mesh.key == nil { continue }
            let address = endpoint(of: node, port: configuration.port)?.address
            let hasPublicEndpoint =
                address.map { configuration.kiloInterop ? isPublicToKilo($0) : $0.isPublic } ?? false
            let rank = (node.mesh.wantsToBeGateway ? 0 : 2) + (hasPublicEndpoint ? 0 : 1)
            if rank < bestRank {
                best = index
                bestRank = rank
            }
        }
        return best
    }

    /// At most five names, and how many more there are.
    public static func some(_ names: [String]) -> String {
        names.count <= 5
            ? names.joined(separator: ", ") : names.prefix(5).joined(separator: ", ") + " and \(names.count - 5) more"
    }

    // MARK: what overlaps

    private mutating func deduplicated(_ peers: [MeshPeer]) -> [MeshPeer] {
        if peers.isEmpty { return [] }
        var claimed: [IPNetwork: String] = [:]
        var keys: [WireGuardKey: String] = [:]
        for segment in segments {
            for node in segment.nodes { if let key = node.mesh.key { keys[key] = "node \(node.name)" } }
        }
        var result: [MeshPeer] = []
        for var peer in peers {
            if let owner = keys[peer.publicKey] {
                problems.append("peer \(peer.name) has the public key of \(owner), and is left out")
                continue
            }
            keys[peer.publicKey] = "peer \(peer.name)"
            peer.allowedIPs = peer.allowedIPs.filter { network in
                guard let owner = claimed[network] else {
                    claimed[network] = peer.name
                    return true
                }
                if owner != peer.name {
                    problems.append("peer \(peer.name): \(network) belongs to peer \(owner) already")
                }
                return false
            }
            result.append(peer)
        }
        return result
    }

    /// Not Kilo's: whoever may annotate one node could send any destination of every node there.
    private mutating func isAllowed(_ network: IPNetwork, of node: Node) -> Bool {
        let allowed = configuration.allowedLocationCIDRs
        if allowed.isEmpty || allowed.contains(where: { $0.contains(network) }) { return true }
        problems.append(
            "allowed-location-ips: \(network) of node \(node.name) is outside mesh.allowedLocationCIDRs (\(allowed.map(\.description).joined(separator: ", "))), and is left out"
        )
        return false
    }

    /// Kilo's rules, in its order: a network goes that overlaps with one of another segment that is still there, with
    /// what any segment owns, or with what a peer may have. Of two that overlap the later segment keeps its own.
    private mutating func filterAllowedLocationIPs() {
        for index in segments.indices {
            var networks: Set<IPNetwork> = []
            for node in segments[index].nodes {
                for network in node.mesh.allowedLocationIPs where isAllowed(network, of: node) {
                    networks.insert(network)
                }
            }
            segments[index].allowedLocationIPs = networks.sorted()
        }
        guard segments.contains(where: { !$0.allowedLocationIPs.isEmpty }) else { return }
        var owned: [(network: IPNetwork, owner: String)] = []
        for segment in segments {
            for node in segment.nodes {
                owned += node.podCIDRs.map { ($0, "the pods of \(node.name)") }
                if let address = node.mesh.privateAddress {
                    owned.append((IPNetwork(host: address.address), "the address of \(node.name)"))
                }
                if let address = MeshTopology.endpoint(of: node, port: configuration.port)?.address {
                    // Not Kilo's: the way to an endpoint must never lead through the tunnel to it.
                    owned.append((IPNetwork(host: address), "the endpoint of \(node.name)"))
                }
            }
        }
        for peer in peers { owned += peer.allowedIPs.map { ($0, "peer \(peer.name)") } }
        let rivals = laterRivals()
        var taken = NetworkTrie()
        for (place, entry) in owned.enumerated() { taken.insert(entry.network, place) }
        for index in segments.indices {
            let own = IPNetwork(host: segments[index].wireGuardAddress)
            taken.insert(own, owned.count)
            owned.append((own, "the WireGuard address of \(segments[index].key)"))
            segments[index].allowedLocationIPs = segments[index].allowedLocationIPs.filter { network in
                if let rival = rivals[index][network] {
                    problems.append(
                        "allowed-location-ips: \(network) of \(segments[index].key) overlaps with \(rival.network) of \(segments[rival.segment].key), which keeps it"
                    )
                    return false
                }
                if let place = taken.first(overlapping: network) {
                    problems.append(
                        "allowed-location-ips: \(network) of \(segments[index].key) overlaps with \(owned[place].network), \(owned[place].owner)"
                    )
                    return false
                }
                return true
            }
        }
    }

    /// Of each segment: its networks that overlap with one of a later segment, and with which. (An earlier segment has none
    /// left that overlaps with this one: this one is later than it.)
    private func laterRivals() -> [[IPNetwork: (network: IPNetwork, segment: Int)]] {
        var rivals = [[IPNetwork: (network: IPNetwork, segment: Int)]](repeating: [:], count: segments.count)
        var later = NetworkTrie()
        for index in segments.indices.reversed() {
            for network in segments[index].allowedLocationIPs {
                guard let number = later.first(overlapping: network) else { continue }
                let segment = number >> 32
                rivals[index][network] = (segments[segment].allowedLocationIPs[number & 0xFFFF_FFFF], segment)
            }
            for (place, network) in segments[index].allowedLocationIPs.enumerated() {
                later.insert(network, index << 32 | place)
            }
        }
        return rivals
    }
}

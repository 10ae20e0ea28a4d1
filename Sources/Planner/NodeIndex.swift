import Model

/// What a plan needs of all nodes together, kept from one plan to the next: lists in order, into which the few nodes that
/// have changed since are put. Only a memory: a plan is the same whatever index it is given.
public struct NodeIndex: Sendable {
    private var nodeName = ""
    private var overlay = Configuration.Overlay.cilium
    /// In the order of the dictionary, which keeps it while no node comes or goes. By holding them, the index makes sure
    /// that a node that is the same object is the same node.
    private var nodes: [Node] = []
    private var nodeCIDRs: [IPNetwork] = []
    private var policies: [EgressPolicy] = []
    /// Grows whenever something in it changes.
    private(set) var generation = 0

    /// What egress policies leave alone of every node, IPv4, as `packed`, in order: its pod CIDRs, and its addresses (where
    /// `cluster.nodeCIDRs` is set, those that lie inside).
    private(set) var keptNetworks: [UInt64] = []
    /// The same of IPv6, in no order.
    private(set) var keptNetworksV6: [IPNetwork] = []
    /// IPv4 addresses of every node that are kept, in order.
    private(set) var keptAddresses: [UInt32] = []
    /// First and last address of every node's IPv4 pod CIDRs, 32 bits each, in order.
    private(set) var podRanges: [UInt64] = []
    /// Ends of tunnels to the other nodes, in order.
    private(set) var outerAddresses: [UInt32] = []
    /// Tunnel end and what the node there may send, 32 bits each, in order; by prefix length, 0...32. Without the own node.
    private(set) var innerSources = [[UInt64]](repeating: [], count: 33)
    /// The nodes that match and where tunnels can end, in order.
    private var gateways: [LabelSelector: [GatewayRank]] = [:]
    private var topologyLabel = ""
    /// Nodes that Kubernetes has given up, among those that may be gateways.
    var doubtful: Set<String> { Set(gateways.values.joined().filter(\.isDoubtful).map(\.name)) }

    public init() {}

    /// An IPv4 network as a number that sorts like it.
    static func packed(_ network: IPNetwork) -> UInt64 {
        UInt64(network.address.v4Value) << 8 | UInt64(network.prefixLength)
    }
    static func network(_ packed: UInt64) -> IPNetwork {
        IPNetwork(IPAddress(v4: UInt32(packed >> 8)), prefixLength: Int(packed & 0xFF))
    }

    /// Brings it up to date.
    mutating func update(
        _ inventory: Inventory, nodeName: String, overlay: Configuration.Overlay, nodeCIDRs: [IPNetwork] = [],
        topologyLabel: String = MeshConfiguration().topologyLabel
    ) {
        if topologyLabel != self.topologyLabel {
            self.topologyLabel = topologyLabel
            gateways = [:]
            generation += 1
        }
        if policies != inventory.policies {
            policies = inventory.policies
            let selectors = Set(policies.flatMap { $0.gatewayEntries.map(\.selector) })
            if gateways.contains(where: { !selectors.contains($0.key) }) {
                gateways = gateways.filter { selectors.contains($0.key) }
                generation += 1
            }
        }
        if nodeName == self.nodeName, overlay == self.overlay, nodeCIDRs == self.nodeCIDRs, holds(inventory.nodes) {
            return
        }
        let new = Array(inventory.nodes.values)
        guard nodeName == self.nodeName, overlay == self.overlay, nodeCIDRs == self.nodeCIDRs,
            let (gone, come) = NodeIndex.difference(nodes, new)
        else { return rebuild(new, nodeName: nodeName, overlay: overlay, nodeCIDRs: nodeCIDRs) }
        if gone.isEmpty && come.isEmpty { return }
        // The own node is made anew with what it knows of itself, and is the same more often than not.
        if gone == come {
            nodes = new
            return
        }
        generation += 1
        for node in gone { change(node, adding: false) }
        for node in come { change(node, adding: true) }
        nodes = new
    }

    /// All nodes are the same objects, in the same order.
    private func holds(_ dictionary: [String: Node]) -> Bool {
        guard dictionary.count == nodes.count else { return false }
        var place = 0
        for node in dictionary.values {
            guard nodes[place].isIdentical(to: node) else { return false }
            place += 1
        }
        return true
    }

    /// The nodes that are in one list and not in the other, where they are few; nil: it is not worth while to look.
    private static func difference(_ old: [Node], _ new: [Node]) -> (gone: [Node], come: [Node])? {
        var (gone, come): ([Node], [Node]) = ([], [])
        var (i, j) = (0, 0)
        func isSame(_ i: Int, _ j: Int) -> Bool {
            i < old.count && j < new.count && old[i].isIdentical(to: new[j])
        }
        while i < old.count || j < new.count {
            if isSame(i, j) {
                i += 1
                j += 1
                continue
            }
            // Another dictionary altogether, or one that was laid out anew.
            if gone.count + come.count > 64 { return nil }
            let (isGone, hasCome) = (isSame(i + 1, j), isSame(i, j + 1))
            if i < old.count, isGone || !hasCome {
                gone.append(old[i])
                i += 1
            }
            if j < new.count, hasCome || !isGone {
                come.append(new[j])
                j += 1
            }
        }
        return (gone, come)
    }

    private mutating func rebuild(
        _ nodes: [Node], nodeName: String, overlay: Configuration.Overlay, nodeCIDRs: [IPNetwork]
    ) {
        let generation = generation + 1
        let topologyLabel = topologyLabel
        self = NodeIndex()
        self.topologyLabel = topologyLabel
        self.generation = generation
        self.nodeCIDRs = nodeCIDRs
        self.nodeName = nodeName
        self.overlay = overlay
        self.nodes = nodes
        keptNetworks.reserveCapacity(4 * nodes.count)
        innerSources[32].reserveCapacity(3 * nodes.count)
        for node in self.nodes {
            NodeIndex.parts(of: node, nodeName: nodeName, overlay: overlay, nodeCIDRs: nodeCIDRs) { part in
                switch part {
                case .kept(let number): keptNetworks.append(number)
                case .keptV6(let network): keptNetworksV6.append(network)
                case .keptAddress(let number): keptAddresses.append(number)
                case .podRange(let number): podRanges.append(number)
                case .outer(let number): outerAddresses.append(number)
                case .inner(let number, let length): innerSources[length].append(number)
                }
            }
        }
        keptNetworks.sort()
        keptAddresses.sort()
        podRanges.sort()
        outerAddresses.sort()
        for length in innerSources.indices { innerSources[length].sort() }
    }

    private enum Part {
        case kept(UInt64)
        case keptV6(IPNetwork)
        case keptAddress(UInt32)
        case podRange(UInt64)
        case outer(UInt32)
        case inner(UInt64, prefixLength: Int)
    }

    /// All that is listed of one node. Static: as a method it would share the lists while they grow, and copy them.
    private static func parts(
        of node: Node, nodeName: String, overlay: Configuration.Overlay, nodeCIDRs: [IPNetwork],
        _ body: (Part) -> Void
    ) {
        var outer: UInt32?
        if node.name != nodeName, let address = MeshPlan.outerAddress(node, overlay: overlay), address.family == .v4 {
            outer = address.v4Value
            body(.outer(address.v4Value))
        }
        node.forEachNetwork { network in
            guard network.family == .v4, let outer else { return }
            body(.inner(UInt64(outer) << 32 | UInt64(network.address.v4Value), prefixLength: network.prefixLength))
        }
        for network in node.podCIDRs {
            body(network.family == .v4 ? .kept(NodeIndex.packed(network)) : .keptV6(network))
        }
        node.forEachAddress { address in
            guard nodeCIDRs.isEmpty || nodeCIDRs.contains(where: { $0.contains(address) }) else { return }
            guard address.family == .v4 else { return body(.keptV6(IPNetwork(host: address))) }
            body(.kept(NodeIndex.packed(IPNetwork(host: address))))
            body(.keptAddress(address.v4Value))
        }
        for network in node.podCIDRs where network.family == .v4 {
            body(.podRange(UInt64(network.address.v4Value) << 32 | UInt64(network.lastV4)))
        }
    }

    private mutating func change(_ node: Node, adding: Bool) {
        var found: [Part] = []
        NodeIndex.parts(of: node, nodeName: nodeName, overlay: overlay, nodeCIDRs: nodeCIDRs) { found.append($0) }
        for part in found {
            switch part {
            case .kept(let number): keptNetworks.change(number, adding: adding)
            case .keptV6(let network):
                if adding {
                    keptNetworksV6.append(network)
                } else if let place = keptNetworksV6.firstIndex(of: network) {
                    keptNetworksV6.remove(at: place)
                }
            case .keptAddress(let number): keptAddresses.change(number, adding: adding)
            case .podRange(let number): podRanges.change(number, adding: adding)
            case .outer(let number): outerAddresses.change(number, adding: adding)
            case .inner(let number, let length): innerSources[length].change(number, adding: adding)
            }
        }
        for selector in gateways.keys where NodeIndex.isGateway(node, selector, overlay) {
            gateways[selector]?.change(GatewayRank(node, topologyLabel: topologyLabel), adding: adding)
        }
    }

    private static func isGateway(
        _ node: Node, _ selector: LabelSelector, _ overlay: Configuration.Overlay
    ) -> Bool {
        MeshPlan.outerAddress(node, overlay: overlay)?.family == .v4 && selector.matches(node.labels)
    }

    /// The lowest kept address of a node inside this IPv4 network.
    func firstKeptAddress(in network: IPNetwork) -> IPAddress? {
        var (low, high) = (0, keptAddresses.count)
        while low < high {
            let middle = (low + high) / 2
            if keptAddresses[middle] < network.address.v4Value { low = middle + 1 } else { high = middle }
        }
        guard low < keptAddresses.count, keptAddresses[low] <= network.lastV4 else { return nil }
        return IPAddress(v4: keptAddresses[low])
    }

    /// The nodes that a gateway selector matches and where tunnels can end, in order.
    mutating func gateways(_ selector: LabelSelector) -> [GatewayRank] {
        if let known = gateways[selector] { return known }
        let ranks = nodes.filter { NodeIndex.isGateway($0, selector, overlay) }
            .map { GatewayRank($0, topologyLabel: topologyLabel) }.sorted()
        gateways[selector] = ranks
        return ranks
    }
}

extension Array where Element: Comparable {
    /// Of an array in order, which may have an element several times: puts one more in, or takes one out.
    fileprivate mutating func change(_ element: Element, adding: Bool) {
        var (low, high) = (startIndex, endIndex)
        while low < high {
            let middle = (low + high) / 2
            if self[middle] < element { low = middle + 1 } else { high = middle }
        }
        if adding {
            insert(element, at: low)
        } else if low < endIndex, self[low] == element {
            remove(at: low)
        }
    }
}

import Firewall
import Model

/// What one pod's packets depend on in this node's kernel: its own rules and table, the mesh, and the next hops and devices that
/// these lead to. CHECK looks at nothing else, so that another pod's trouble is not taken for this one's.
struct PodDependencies {
    private let pods: Set<IPNetwork>
    /// The tables that the pod's rules lead to, and those for what comes out of its tunnels (where this node is its gateway).
    private let tables: Set<UInt32>
    private let nextHops: Set<UInt32>
    private let devices: Set<String>

    /// - Parameter pods: the addresses of one pod, as host networks.
    init(of pods: Set<IPNetwork>, in wanted: HostState) {
        self.pods = pods
        let tables = Set(wanted.rules.filter { $0.source.map(pods.contains) == true }.compactMap(\.table))
        let members = Dictionary(wanted.nextHops.map { ($0.id, $0.target) }, uniquingKeysWith: { first, _ in first })
        var nextHops: Set<UInt32> = []
        var devices: Set<String> = wanted.wireGuard.map { [$0.name] } ?? []
        func follow(_ id: UInt32) {
            guard nextHops.insert(id).inserted, let target = members[id] else { return }
            switch target {
            case .device(let name), .via(_, let name): devices.insert(name)
            case .blackhole, .group, .pair: target.members.forEach(follow)
            }
        }
        for table in wanted.routeTables where PodDependencies.isShared(table.number) || tables.contains(table.number) {
            for route in table.routes {
                switch route.kind {
                case .nextHop(let id): follow(id)
                case .device(let name), .via(_, let name): devices.insert(name)
                case .throwOn, .unreachable: break
                }
            }
        }
        self.tables = tables.union(
            wanted.rules.filter { $0.incoming.map(devices.contains) == true }.compactMap(\.table))
        self.nextHops = nextHops
        self.devices = devices
    }

    /// Neither of some pods only, nor of the echoes to one gateway.
    private static func isShared(_ table: UInt32) -> Bool {
        table < Ownership.firstTable
            && !(Ownership.echoTable(0)...Ownership.echoTable(Ownership.mostEchoSessions)).contains(table)
    }

    /// Whether the pod has less than it should until this step is done.
    func contain(_ step: Step) -> Bool {
        switch step.action {
        case .addRule(let rule), .deleteRule(let rule):
            if let source = rule.source { return pods.contains(source) }
            if let device = rule.incoming { return devices.contains(device) }
            return rule.table.map(PodDependencies.isShared) ?? true
        case .addRoute(let route), .replaceRoute(let route, _), .deleteRoute(let route):
            return PodDependencies.isShared(route.table) || tables.contains(route.table)
        case .setNextHop(let hop, _), .deleteNextHop(let hop): return nextHops.contains(hop.id)
        case .addLink(let link), .configureLink(let link): return devices.contains(link.name)
        case .deleteLink(let name), .idleDevice(let name): return devices.contains(name)
        case .addNeighbour(let neighbour): return devices.contains(neighbour.device)
        case .deleteNeighbour(_, let device): return devices.contains(device)
        case .addFOUPort, .deleteFOUPort, .setWireGuardPeers: return true
        case .changeFirewall(let change): return contain(change)
        }
    }

    /// Chains and whole sets are for all pods; of an element of a set it depends whose it is.
    private func contain(_ change: FirewallChange) -> Bool {
        guard case .edit(let edit) = change else { return change != .none }
        if !edit.chains.isEmpty || !edit.newSets.isEmpty || !edit.staleSets.isEmpty { return true }
        let own = pods.filter { $0.family == .v4 }.map(\.address.v4Value)
        return [edit.added, edit.removed].contains { sets in
            sets.values.joined().contains { element in own.contains { element.first <= $0 && $0 <= element.last } }
        }
    }
}

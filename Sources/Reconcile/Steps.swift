import Firewall
import Model
import Netlink

/// One change of the kernel, as a value: it is executed, printed by `diff`, and tested.
struct Step: Equatable {
    enum Action: Equatable {
        case addRule(Rule)
        case deleteRule(Rule)
        case addFOUPort(FOUPort)
        case deleteFOUPort(FOUPort)
        case addLink(Link)
        /// Up, MTU, settings, and exactly its own address.
        case configureLink(Link)
        case deleteLink(String)
        /// The device of a program in user space: it stays, without address and peers.
        case idleDevice(String)
        case addNeighbour(Neighbour)
        case deleteNeighbour(KernelNeighbour, device: String)
        /// `before`: what is there under this number.
        case setNextHop(NextHop, before: NextHop?)
        case deleteNextHop(NextHop)
        case addRoute(Route)
        case replaceRoute(Route, before: Route)
        case deleteRoute(Route)
        case changeFirewall(FirewallChange)
        /// Peers of the WireGuard device, one by one, where they differ.
        case setWireGuardPeers(String)
    }
    let action: Action
    /// Steps of one phase do not need each other.
    let phase: Steps.Phase
}

/// What one step makes true and another relies on. Where it is not true, the step that relies on it is left out.
enum Requirement: Hashable {
    /// What comes out of this tunnel goes nowhere unless our firewall has let it in.
    case guarded(String)
    /// No link of this name is there.
    case isFree(String)
    /// The link is there, up, and as it should be.
    case link(String)
    case nextHop(UInt32)
    /// The table has every `unreachable` and `throw` that it should have: a pod whose rule leads to it leaks nothing.
    case holds(table: UInt32)
    /// The rule of this priority for this pod leads to where it should.
    case podRule(IPNetwork, priority: UInt32)
    /// No rule leads to the table that should not.
    case isUnreferenced(table: UInt32)
    /// No route names the next hop that should not.
    case isReleased(nextHop: UInt32)
    /// Nothing uses the link that should not.
    case isIdle(link: String)
    case firewall
}

/// The way from what is there to what is wanted, as one ordered list. Make before break: whatever a packet may use next is
/// there before what it used last is taken away.
struct Steps {
    /// In this order.
    enum Phase: Int, Comparable {
        /// The rules that guard a tunnel are added before the tunnel: what comes out of it goes nowhere until Culvert's
        /// firewall accepts it.
        case fillGuardTable
        case guardTunnels
        case makeRoomForPorts
        case openPorts
        case makeRoomForLinks
        case addLinks
        case configureLinks
        /// No WireGuard peer is sent to through the device that sends to it, not even until other routes are in order.
        case freeEndpoints
        case addNeighbours
        case makeRoomForNextHops
        case setNextHops
        case setNextHopGroups
        /// Claims before exclusions: an address that is claimed before and after must not meet a new exclusion first.
        case addClaims
        case addBackstops
        case addThrows
        case changeFirewall
        case addRules
        case deleteRules
        /// Exclusions before claims, for the same reason.
        case deleteThrows
        case deleteBackstops
        case deleteClaims
        case deleteNextHopGroups
        case deleteNextHops
        case deleteNeighbours
        case deleteLinks
        case unguardTunnels
        case closePorts
        case setWireGuardPeers

        static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

        /// The first of the phases that are sent together: the kernel works through them in their order, and none of them needs
        /// another.
        var batch: Self {
            switch self {
            case .addBackstops, .addThrows: .addClaims
            case .deleteBackstops, .deleteClaims: .deleteThrows
            default: self
            }
        }
    }

    private(set) var list: [Step] = []

    /// Pure: the same two states give the same steps.
    init(from observed: Observed, to wanted: HostState, wireGuardDiffers: Bool = false) {
        let difference = Difference(observed: observed, wanted: wanted)
        var byPhase: [Phase: [Step]] = [:]
        func add(_ action: Step.Action, _ phase: Phase) {
            byPhase[phase, default: []].append(Step(action: action, phase: phase))
        }

        // A tunnel's guard first, and then what opens the tunnel.
        for rule in difference.newRules where rule.isGuard { add(.addRule(rule), .guardTunnels) }
        for rule in difference.newRules where rule.incoming != nil && !rule.isGuard {
            add(.addRule(rule), .guardTunnels)
        }
        for rule in difference.newRules where rule.incoming == nil { add(.addRule(rule), .addRules) }
        for rule in difference.staleRules {
            add(.deleteRule(rule), rule.incoming == nil ? .deleteRules : .unguardTunnels)
        }

        let newPorts = Set(difference.newFOUPorts.map(\.port))
        for port in difference.staleFOUPorts {
            add(.deleteFOUPort(port), newPorts.contains(port.port) ? .makeRoomForPorts : .closePorts)
        }
        for port in difference.newFOUPorts { add(.addFOUPort(port), .openPorts) }

        for name in difference.linksInTheWay { add(.deleteLink(name), .makeRoomForLinks) }
        for link in difference.newLinks { add(.addLink(link), .addLinks) }
        for link in difference.linksToConfigure { add(.configureLink(link), .configureLinks) }
        for name in difference.staleLinks { add(.deleteLink(name), .deleteLinks) }
        for name in difference.idleDevices { add(.idleDevice(name), .deleteLinks) }

        for neighbour in difference.newNeighbours { add(.addNeighbour(neighbour), .addNeighbours) }
        for neighbour in difference.staleNeighbours {
            guard let index = observed.indexes[neighbour.device] else { continue }
            for half in neighbour.halves(index: index)
            where !difference.neededHalves.contains(half) && !half.isMadeUp {
                add(.deleteNeighbour(half, device: neighbour.device), .deleteNeighbours)
            }
        }

        for hop in difference.nextHopsInTheWay { add(.deleteNextHop(hop), .makeRoomForNextHops) }
        for (hop, before) in difference.newNextHops {
            add(.setNextHop(hop, before: before), hop.isGroup ? .setNextHopGroups : .setNextHops)
        }
        for hop in difference.staleNextHops {
            add(.deleteNextHop(hop), hop.isGroup ? .deleteNextHopGroups : .deleteNextHops)
        }

        for route in difference.newRoutes { add(.addRoute(route), route.addingPhase) }
        for (route, before) in difference.changedRoutes {
            add(.replaceRoute(route, before: before), route.addingPhase)
        }
        let endpoints = Set(
            (wanted.wireGuard?.peers ?? []).compactMap { $0.endpoint.map { IPNetwork(host: $0.address) } })
        for route in difference.staleRoutes {
            let holdsEndpoint =
                route.table == Rule.mainTable && endpoints.contains { route.destination.contains($0) }
            add(.deleteRoute(route), holdsEndpoint ? .freeEndpoints : route.kind.deletingPhase)
        }

        let firewall = observed.firewallChange(to: wanted.firewall)
        if firewall != .none { add(.changeFirewall(firewall), .changeFirewall) }
        if wireGuardDiffers, let device = wanted.wireGuard?.name { add(.setWireGuardPeers(device), .setWireGuardPeers) }
        list = byPhase.sorted { $0.key < $1.key }.flatMap(\.value)
    }
}

extension Rule {
    /// For what comes out of a tunnel and was not let in.
    var isGuard: Bool { incoming != nil && table == Ownership.guardTable }
}

extension Route {
    fileprivate var addingPhase: Steps.Phase {
        if table == Ownership.guardTable { return .fillGuardTable }
        switch kind {
        case .nextHop, .device, .via: return .addClaims
        case .unreachable: return .addBackstops
        case .throwOn: return .addThrows
        }
    }
}

extension Route.Kind {
    fileprivate var deletingPhase: Steps.Phase {
        switch self {
        case .nextHop, .device, .via: .deleteClaims
        case .unreachable: .deleteBackstops
        case .throwOn: .deleteThrows
        }
    }
    /// The next hop or device that it uses.
    fileprivate var uses: [Requirement] {
        switch self {
        case .nextHop(let id): [.nextHop(id)]
        case .device(let name), .via(_, let name): [.link(name)]
        case .throwOn, .unreachable: []
        }
    }
    fileprivate var releases: [Requirement] {
        switch self {
        case .nextHop(let id): [.isReleased(nextHop: id)]
        case .device(let name), .via(_, let name): [.isIdle(link: name)]
        case .throwOn, .unreachable: []
        }
    }
}

extension NextHop {
    var isGroup: Bool { target.kind != .single }
    fileprivate var uses: [Requirement] {
        switch target {
        case .device(let name), .via(_, let name): [.link(name)]
        case .blackhole: []
        case .group, .pair: target.members.map { .nextHop($0) }
        }
    }
    /// What is free again when it is gone.
    fileprivate var releases: [Requirement] {
        switch target {
        case .device(let name), .via(_, let name): [.isIdle(link: name)]
        case .blackhole: []
        case .group, .pair: target.members.map { .isReleased(nextHop: $0) }
        }
    }
}

extension Step {
    /// What must be true before it is done.
    var needs: [Requirement] {
        switch action {
        case .addRule(let rule):
            return rule.incoming == nil || rule.isGuard ? rule.table.map { [.holds(table: $0)] } ?? [] : []
        case .deleteRule(let rule):
            if let device = rule.incoming { return [.isFree(device)] }
            return rule.source.map { [.podRule($0, priority: rule.priority)] } ?? []
        case .addLink(let link): return [.guarded(link.name), .isFree(link.name)]
        case .configureLink(let link): return [.link(link.name), .guarded(link.name)]
        case .deleteLink(let name): return phase == .deleteLinks ? [.isIdle(link: name)] : []
        case .addNeighbour(let neighbour): return [.link(neighbour.device)]
        case .setNextHop(let hop, _): return hop.uses
        case .deleteNextHop(let hop): return phase == .makeRoomForNextHops ? [] : [.isReleased(nextHop: hop.id)]
        case .addRoute(let route), .replaceRoute(let route, _): return route.kind.uses
        case .deleteRoute(let route):
            return phase == .freeEndpoints
                ? [] : [.holds(table: route.table), .isUnreferenced(table: route.table)]
        case .setWireGuardPeers(let device): return [.link(device)]
        case .addFOUPort, .deleteFOUPort, .idleDevice, .deleteNeighbour, .changeFirewall: return []
        }
    }

    /// What is true when it is done, and what is not true where it is not.
    var provides: [Requirement] {
        switch action {
        case .addRule(let rule):
            if let device = rule.incoming { return rule.isGuard ? [.guarded(device)] : [] }
            return rule.source.map { [.podRule($0, priority: rule.priority)] } ?? []
        case .deleteRule(let rule): return rule.table.map { [.isUnreferenced(table: $0)] } ?? []
        case .addLink(let link), .configureLink(let link): return [.link(link.name)]
        case .deleteLink(let name): return [.isFree(name)]
        case .setNextHop(let hop, let before): return [.nextHop(hop.id)] + (before?.releases ?? [])
        case .deleteNextHop(let hop):
            return (phase == .makeRoomForNextHops ? [.nextHop(hop.id)] : []) + hop.releases
        case .addRoute(let route): return route.holds
        case .replaceRoute(let route, let before): return route.holds + before.kind.releases
        case .deleteRoute(let route): return route.kind.releases
        case .changeFirewall: return [.firewall]
        case .addFOUPort, .deleteFOUPort, .idleDevice, .addNeighbour, .deleteNeighbour, .setWireGuardPeers: return []
        }
    }

    /// The object that it is about, for people and for counting.
    var part: KernelPart {
        switch action {
        case .addRule, .deleteRule: .rules
        case .addFOUPort, .deleteFOUPort, .addLink, .configureLink, .deleteLink, .idleDevice, .setWireGuardPeers: .links
        case .addNeighbour, .deleteNeighbour: .neighbours
        case .setNextHop, .deleteNextHop: .nextHops
        case .addRoute, .replaceRoute, .deleteRoute: .routes
        case .changeFirewall: .firewall
        }
    }

    /// The commands that it stands for.
    var operations: [String] {
        switch action {
        case .addRule(let rule): [rule.command("add")]
        case .deleteRule(let rule): [rule.command("del")]
        case .addFOUPort(let port): ["ip fou add port \(port.port)"]
        case .deleteFOUPort(let port): ["ip fou del port \(port.port)"]
        case .addLink(let link): ["ip link add \(link.name) type \(link.kind.name)"]
        case .configureLink(let link): ["ip link set dev \(link.name) up, mtu, address, rp_filter, forwarding"]
        case .deleteLink(let name): ["ip link del dev \(name)"]
        case .idleDevice(let name): ["ip addr flush dev \(name)"]
        case .addNeighbour(let neighbour): ["ip neigh replace \(neighbour.peer) dev \(neighbour.device)"]
        case .deleteNeighbour(let half, let device):
            switch half {
            case .address(_, let peer, _): ["ip neigh del \(peer) dev \(device)"]
            case .forwarding(_, let mac, _, _, _): ["bridge fdb del \(mac) dev \(device)"]
            }
        case .setNextHop(let hop, let before):
            ["ip nexthop \(before == nil ? "add" : "replace") id \(hop.id) \(hop.target.text)"]
        case .deleteNextHop(let hop): ["ip nexthop del id \(hop.id)"]
        case .addRoute(let route): [route.command("add")]
        case .replaceRoute(let route, _): [route.command("replace")]
        case .deleteRoute(let route): [route.command("del")]
        case .changeFirewall(let change): change.operations
        case .setWireGuardPeers(let device): ["wg set \(device) peers"]
        }
    }
}

extension Route {
    fileprivate var holds: [Requirement] {
        switch kind {
        case .throwOn, .unreachable: [.holds(table: table)]
        case .nextHop, .device, .via: []
        }
    }
}

extension KernelNeighbour {
    /// Half of an entry that only stands for the other half.
    var isMadeUp: Bool {
        switch self {
        case .address(_, let peer, _): peer.low == 0
        case .forwarding(_, _, let remote, _, _): remote.low == 0
        }
    }
}

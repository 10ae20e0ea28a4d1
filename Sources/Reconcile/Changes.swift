import Model
import Netlink

/// The difference between what is there and what is wanted.
struct Changes {
    var observed: Reconciler.Observed
    let wanted: HostState

    private(set) var staleLinks: [String] = []
    private(set) var idleDevices: [String] = []
    private(set) var newLinks: [Link] = []
    private(set) var linksToConfigure: [Link] = []
    private(set) var newNeighbours: [Neighbour] = []
    private(set) var staleNeighbours: [Neighbour] = []
    private(set) var neededHalves: Set<KernelNeighbour> = []
    private(set) var newFOUPorts: [FOUPort] = []
    private(set) var staleFOUPorts: [FOUPort] = []
    private(set) var newNextHops: [NextHop] = []
    private(set) var staleNextHops: [UInt32] = []
    private(set) var newRoutes: [Route] = []
    private(set) var changedRoutes: [Route] = []
    private(set) var staleRoutes: [Route] = []
    private(set) var newRules: [Rule] = []
    private(set) var staleRules: [Rule] = []

    init(observed: Reconciler.Observed, wanted: HostState) {
        self.observed = observed
        self.wanted = wanted
    }

    mutating func plan() {
        planLinks()
        planNeighbours()
        planNextHops()
        planRoutes()
        let (new, stale) = Changes.difference(observed.host.rules, wanted.rules)
        (newRules, staleRules) = (new, stale)
        let ports = Changes.difference(observed.host.fouPorts, wanted.fouPorts)
        (newFOUPorts, staleFOUPorts) = ports
    }

    /// Elements of `after` that are not in `before` and the other way round, each in its order. Of an element that is
    /// there twice one is stale.
    private static func difference<T: Hashable>(_ before: [T], _ after: [T]) -> (new: [T], stale: [T]) {
        if before == after { return ([], []) }
        let wanted = Set(after)
        var there: Set<T> = []
        var stale: [T] = []
        for element in before where !wanted.contains(element) || !there.insert(element).inserted {
            stale.append(element)
        }
        return (after.filter { !there.contains($0) }, stale)
    }

    private mutating func planLinks() {
        let there = Dictionary(observed.host.links.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        let names = Set(wanted.links.map(\.name))
        // The device of a program in user space is the program's: it stays, and is idle.
        staleLinks = there.keys.filter { !names.contains($0) && !observed.userspaceDevices.contains($0) }.sorted()
        idleDevices = observed.userspaceDevices.filter {
            !names.contains($0) && observed.addresses[$0]?.isEmpty == false
        }.sorted()
        for link in wanted.links {
            if let old = there[link.name] {
                if old.kind != link.kind {
                    staleLinks.append(link.name)
                    newLinks.append(link)
                    linksToConfigure.append(link)
                } else if old != link || observed.misconfigured.contains(link.name) {
                    linksToConfigure.append(link)
                }
            } else {
                newLinks.append(link)
                linksToConfigure.append(link)
            }
        }
    }

    /// Names of links that are made anew: what hung on them is gone with them.
    private var lostLinks: Set<String> { Set(newLinks.map(\.name)) }

    private mutating func planNeighbours() {
        let lost = lostLinks
        let before = observed.host.neighbours.filter { !lost.contains($0.device) && !staleLinks.contains($0.device) }
        (newNeighbours, staleNeighbours) = Changes.difference(before, wanted.neighbours)
        for neighbour in wanted.neighbours {
            if let index = observed.indexes[neighbour.device] { neededHalves.formUnion(neighbour.halves(index: index)) }
        }
    }

    private func device(of hop: NextHop) -> String? {
        switch hop.target {
        case .device(let name), .via(_, let name): name
        case .blackhole, .pair: nil
        }
    }

    /// Ids of next hops that vanish with their device before they are set again.
    private var lostNextHops: Set<UInt32> = []

    private mutating func planNextHops() {
        let lost = lostLinks.union(staleLinks)
        var there: [UInt32: NextHop] = [:]
        for hop in observed.host.nextHops {
            if let device = device(of: hop), lost.contains(device) {
                lostNextHops.insert(hop.id)
            } else {
                there[hop.id] = hop
            }
        }
        // A group loses a member that vanishes, and stays.
        func hasLostMember(_ hop: NextHop) -> Bool {
            if case .pair(let used, let named) = hop.target { return there[used] == nil || there[named] == nil }
            return false
        }
        func isGroup(_ hop: NextHop) -> Bool { if case .pair = hop.target { true } else { false } }
        let missing = wanted.nextHops.filter { there[$0.id] != $0 || hasLostMember($0) }
        newNextHops = missing.filter { !isGroup($0) } + missing.filter(isGroup)
        let ids = Set(wanted.nextHops.map(\.id))
        let stale = there.values.filter { !ids.contains($0.id) }.sorted { $0.id < $1.id }
        staleNextHops = (stale.filter(isGroup) + stale.filter { !isGroup($0) }).map(\.id)
    }

    /// Takes out the stale routes that `isWanted` holds for.
    mutating func takeStaleRoutes(_ isWanted: (Route) -> Bool) -> [Route] {
        let taken = staleRoutes.filter(isWanted)
        if !taken.isEmpty { staleRoutes.removeAll(where: isWanted) }
        return taken
    }

    func replacesNextHop(_ hop: NextHop) -> Bool {
        !lostNextHops.contains(hop.id) && observed.host.nextHops.contains { $0.id == hop.id }
    }

    private mutating func planRoutes() {
        let lost = lostLinks.union(staleLinks)
        func isLost(_ route: Route) -> Bool {
            switch route.kind {
            case .nextHop(let id): lostNextHops.contains(id)
            case .device(let name), .via(_, let name): lost.contains(name)
            case .throwOn, .unreachable: false
            }
        }
        let present =
            lostNextHops.isEmpty && lost.isEmpty ? observed.host.routes : observed.host.routes.filter { !isLost($0) }
        // What was applied last is in order, as what is wanted is; the kernel's dump nearly so. One pass over both: hashing
        // every route costs many times that.
        let before = Route.inOrder(present)
        let after = Route.inOrder(wanted.routes)
        if before == after { return }
        /// The routes from here on that the kernel takes for the same.
        func run(_ routes: [Route], _ start: Int) -> ArraySlice<Route> {
            var end = start
            while end < routes.count, !Route.isBefore(routes[start], routes[end]) { end += 1 }
            return routes[start..<end]
        }
        var (old, new) = (0, 0)
        while old < before.count || new < after.count {
            if new == after.count || (old < before.count && Route.isBefore(before[old], after[new])) {
                staleRoutes.append(before[old])
                old += 1
            } else if old == before.count || Route.isBefore(after[new], before[old]) {
                newRoutes.append(after[new])
                new += 1
            } else if before[old] == after[new], old + 1 == before.count || !isSame(before[old], before[old + 1]),
                new + 1 == after.count || !isSame(after[new], after[new + 1])
            {
                old += 1
                new += 1
            } else {
                let (there, wanted) = (run(before, old), run(after, new))
                let missing = wanted.filter { !there.contains($0) }
                changedRoutes += missing
                if missing.isEmpty { staleRoutes += there.filter { !wanted.contains($0) } }
                old = there.endIndex
                new = wanted.endIndex
            }
        }
        func isSame(_ a: Route, _ b: Route) -> Bool { !Route.isBefore(a, b) && !Route.isBefore(b, a) }
    }

    /// Everything but the firewall, as commands.
    var operations: [String] {
        let indexes = observed.indexes
        return staleLinks.map { "ip link del dev \($0)" } + idleDevices.map { "ip addr flush dev \($0)" }
            + newLinks.map { "ip link add \($0.name) type \($0.kind.name)" }
            + linksToConfigure.map { "ip link set dev \($0.name) up, mtu, address, rp_filter, forwarding" }
            + newNeighbours.map { "ip neigh replace \($0.peer) dev \($0.device)" }
            + staleNeighbours.map { "ip neigh del \($0.peer) dev \($0.device)" }
            + newFOUPorts.map { "ip fou add port \($0.port)" } + staleFOUPorts.map { "ip fou del port \($0.port)" }
            + newNextHops.map { NextHopRequest.set($0, indexes: indexes, replace: replacesNextHop($0)).operation }
            + newRoutes.map { RouteRequest.add($0, indexes: indexes).operation }
            + changedRoutes.map { RouteRequest.replace($0, indexes: indexes).operation }
            + newRules.map { RuleRequest.add($0).operation } + staleRules.map { RuleRequest.delete($0).operation }
            + staleRoutes.map { RouteRequest.delete($0, indexes: indexes).operation }
            + staleNextHops.map { NextHopRequest.delete($0).operation }
    }
}

import Model
import Netlink

/// The difference between what is there and what is wanted, kind by kind. `Steps` puts it into an order.
struct Difference {
    let observed: Observed
    let wanted: HostState

    /// Links that nobody wants any more.
    private(set) var staleLinks: [String] = []
    /// Links that must go before others can be made: of another kind under the same name, or with the same two ends.
    private(set) var linksInTheWay: [String] = []
    private(set) var idleDevices: [String] = []
    private(set) var newLinks: [Link] = []
    private(set) var linksToConfigure: [Link] = []
    private(set) var newNeighbours: [Neighbour] = []
    private(set) var staleNeighbours: [Neighbour] = []
    private(set) var neededHalves: Set<KernelNeighbour> = []
    private(set) var newFOUPorts: [FOUPort] = []
    private(set) var staleFOUPorts: [FOUPort] = []
    /// Single ones before groups, with what is there under the number.
    private(set) var newNextHops: [(hop: NextHop, before: NextHop?)] = []
    /// Next hops of another kind under a number that is wanted: the kernel turns no single one into a group.
    private(set) var nextHopsInTheWay: [NextHop] = []
    /// Groups before single ones.
    private(set) var staleNextHops: [NextHop] = []
    private(set) var newRoutes: [Route] = []
    private(set) var changedRoutes: [(route: Route, before: Route)] = []
    private(set) var staleRoutes: [Route] = []
    private(set) var newRules: [Rule] = []
    private(set) var staleRules: [Rule] = []

    init(observed: Observed, wanted: HostState) {
        self.observed = observed
        self.wanted = wanted
        planLinks()
        planNeighbours()
        planNextHops()
        planRoutes()
        (newRules, staleRules) = Difference.between(observed.host.rules, wanted.rules)
        (newFOUPorts, staleFOUPorts) = Difference.between(observed.host.fouPorts, wanted.fouPorts)
    }

    /// Elements of `after` that are not in `before` and the other way round, each in its order. Of an element that is
    /// there twice one is stale.
    private static func between<T: Hashable>(_ before: [T], _ after: [T]) -> (new: [T], stale: [T]) {
        if before == after { return ([], []) }
        // After a pod that comes or goes, all but one or two of some hundred are the same at the same place from one end.
        let same = zip(before, after).prefix { $0 == $1 }.count
        let sameEnd = zip(before.dropFirst(same).reversed(), after.dropFirst(same).reversed()).prefix { $0 == $1 }.count
        let (old, new) = (before[same..<(before.count - sameEnd)], after[same..<(after.count - sameEnd)])
        if old.count + new.count <= 8 {
            return (new.filter { !before.contains($0) }, old.filter { !new.contains($0) })
        }
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
                    linksInTheWay.append(link.name)
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
        let newKinds = Set(newLinks.map(\.kind))
        let clashing = staleLinks.filter { name in there[name].map { newKinds.contains($0.kind) } ?? false }
        linksInTheWay += clashing
        staleLinks.removeAll(where: clashing.contains)
    }

    /// What hangs on these is gone before anything else is made.
    private var lostLinks: Set<String> { Set(linksInTheWay).union(newLinks.map(\.name)) }

    private mutating func planNeighbours() {
        let lost = lostLinks
        let before = observed.host.neighbours.filter { !lost.contains($0.device) && !staleLinks.contains($0.device) }
        (newNeighbours, staleNeighbours) = Difference.between(before, wanted.neighbours)
        for neighbour in wanted.neighbours {
            if let index = observed.indexes[neighbour.device] { neededHalves.formUnion(neighbour.halves(index: index)) }
        }
    }

    private func device(of hop: NextHop) -> String? {
        switch hop.target {
        case .device(let name), .via(_, let name): name
        case .blackhole, .group, .pair: nil
        }
    }

    /// Ids of next hops that vanish with their device before they are set again.
    private var lostNextHops: Set<UInt32> = []
    /// Ids of groups that vanish with the last of their members, unless the fail-over gives them another one first.
    private var lostGroups: Set<UInt32> = []

    private mutating func planNextHops() {
        let lost = lostLinks
        if lost.isEmpty && observed.host.nextHops == wanted.nextHops { return }
        func isGroup(_ hop: NextHop) -> Bool { hop.isGroup }
        let wantedByID = Dictionary(wanted.nextHops.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
        var there: [UInt32: NextHop] = [:]
        for hop in observed.host.nextHops {
            if let device = device(of: hop), lost.contains(device) {
                lostNextHops.insert(hop.id)
            } else if let want = wantedByID[hop.id], want.target.kind != hop.target.kind {
                nextHopsInTheWay.append(hop)
                lostNextHops.insert(hop.id)
            } else {
                there[hop.id] = hop
            }
        }
        for hop in there.values where hop.isGroup && hop.target.members.allSatisfy(lostNextHops.contains) {
            lostGroups.insert(hop.id)
        }
        for id in lostGroups { there[id] = nil }
        // Another group loses a member that vanishes, and stays.
        func hasLostMember(_ hop: NextHop) -> Bool {
            hop.target.members.contains { there[$0] == nil }
        }
        let missing = wanted.nextHops.filter { there[$0.id] != $0 || hasLostMember($0) }
        newNextHops = (missing.filter { !isGroup($0) } + missing.filter(isGroup)).map { ($0, there[$0.id]) }
        let stale =
            (there.values.filter { wantedByID[$0.id] == nil }
            + observed.host.nextHops.filter { lostGroups.contains($0.id) && wantedByID[$0.id] == nil })
            .sorted { $0.id < $1.id }
        staleNextHops = stale.filter(isGroup) + stale.filter { !isGroup($0) }
    }

    private mutating func planRoutes() {
        let lost = lostLinks
        func isLost(_ route: Route) -> Bool {
            switch route.kind {
            case .nextHop(let id): lostNextHops.contains(id)
            case .device(let name), .via(_, let name): lost.contains(name)
            case .throwOn, .unreachable: false
            }
        }
        func hasLostGroup(_ route: Route) -> Bool {
            if case .nextHop(let id) = route.kind { lostGroups.contains(id) } else { false }
        }
        let losesSome = !lostNextHops.isEmpty || !lost.isEmpty
        let (before, after) = (observed.host.routeTables, wanted.routeTables)
        var (old, new) = (0, 0)
        while old < before.count || new < after.count {
            if new == after.count || (old < before.count && before[old].number < after[new].number) {
                staleRoutes += before[old].routes.filter { !isLost($0) }
                old += 1
            } else if old == before.count || after[new].number < before[old].number {
                newRoutes += after[new].routes
                new += 1
            } else {
                let there = before[old].routes
                if losesSome {
                    compare(there.filter { !isLost($0) }, after[new].routes)
                    // Whether they are there still or not.
                    let wanted = Set(after[new].routes.filter(hasLostGroup))
                    changedRoutes += there.filter(wanted.contains).map { ($0, $0) }
                } else if there != after[new].routes {
                    compare(there, after[new].routes)
                }
                old += 1
                new += 1
            }
        }
    }

    /// The routes of one table, before and after, in order. One pass over both: hashing every route costs many times that.
    private mutating func compare(_ before: [Route], _ after: [Route]) {
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
                for (place, route) in missing.enumerated() {
                    // The first is replaced; whatever else the kernel has under the same key is not wanted.
                    if place == 0, let first = there.first {
                        changedRoutes.append((route, first))
                    } else {
                        newRoutes.append(route)
                    }
                }
                if missing.isEmpty { staleRoutes += there.filter { !wanted.contains($0) } }
                old = there.endIndex
                new = wanted.endIndex
            }
        }
        func isSame(_ a: Route, _ b: Route) -> Bool { !Route.isBefore(a, b) && !Route.isBefore(b, a) }
    }
}

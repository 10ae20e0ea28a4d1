import Firewall
import Model
import TestSupport
import Testing

@testable import Agent
@testable import Reconcile

/// What is sent to the kernel, worked out in one pass over lists in order, against sets that do not know any order.
struct DifferenceTests {
    @Test(arguments: 0..<200 as Range<UInt64>) func elementsOfTwoSetsAreToldApart(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        func elements() -> [FirewallSet.Element] {
            (0..<Int.random(in: 0...30, using: &random)).map { _ in
                let first = UInt32.random(in: 0...5, using: &random)
                return .init(pair: UInt32.random(in: 0...3, using: &random), first: first, last: first + 1)
            }
        }
        let before = FirewallSet(name: "a", key: .addressPair, interval: true, elements: elements())
        let after = FirewallSet(name: "a", key: .addressPair, interval: true, elements: elements())
        #expect(Set(before.elements).count == before.elements.count && before.elements == before.elements.sorted())
        let (added, removed) = FirewallSet.difference(before.elements, after.elements)
        #expect(Set(added) == Set(after.elements).subtracting(before.elements) && Set(added).count == added.count)
        #expect(Set(removed) == Set(before.elements).subtracting(after.elements) && Set(removed).count == removed.count)
    }

    private struct Key: Hashable {
        let table: UInt32
        let destination: IPNetwork
        let metric: UInt32
        init(_ route: Route) { (table, destination, metric) = (route.table, route.destination, route.metric) }
    }

    @Test(arguments: 0..<200 as Range<UInt64>) func theKernelsRoutesBecomeThoseThatAreWanted(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        func routes() -> [Key: Route] {
            var result: [Key: Route] = [:]
            for _ in 0..<Int.random(in: 0...25, using: &random) {
                let route = Route(
                    table: UInt32.random(in: 1...2, using: &random),
                    destination: IPNetwork(
                        IPAddress(v4: UInt32.random(in: 0...3, using: &random) << 8),
                        prefixLength: Int.random(in: 24...25, using: &random)),
                    kind: [.throwOn, .unreachable, .nextHop(7)][Int.random(in: 0...2, using: &random)],
                    metric: UInt32.random(in: 0...1, using: &random))
                result[Key(route)] = route
            }
            return result
        }
        var kernel = routes()
        let wanted = routes()
        var observed = Observed()
        // As a dump comes, in no order.
        observed.host.routes = kernel.values.shuffled(using: &random)
        var host = HostState()
        host.routes = wanted.values.sorted(by: Route.isBefore)
        let changes = Difference(observed: observed, wanted: host)
        for route in changes.newRoutes {
            #expect(kernel[Key(route)] == nil)
            kernel[Key(route)] = route
        }
        for (route, before) in changes.changedRoutes {
            #expect(kernel[Key(route)] == before && before != route)
            kernel[Key(route)] = route
        }
        for route in changes.staleRoutes { #expect(kernel.removeValue(forKey: Key(route)) == route) }
        #expect(kernel == wanted)
    }

    @Test func ofARouteThatSomebodyHasDoubledOneIsStale() {
        let route = Route(table: 47000, destination: .everythingV4, kind: .throwOn)
        let other = Route(table: 47000, destination: .everythingV4, kind: .unreachable)
        var observed = Observed()
        observed.host.routes = [other, route]
        var host = HostState()
        host.routes = [route]
        let changes = Difference(observed: observed, wanted: host)
        #expect(changes.staleRoutes == [other] && changes.newRoutes.isEmpty && changes.changedRoutes.isEmpty)
    }
}

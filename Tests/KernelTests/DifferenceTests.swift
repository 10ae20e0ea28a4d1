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

    /// Two pods with a policy each, which have nothing in common but the mesh.
    @Test func aPodDependsOnItsOwnRulesAndTableAndOnTheMesh() throws {
        let end = IPAddress(v4: 0x0A00_000B)
        var host = HostState()
        for number: UInt32 in 0...2 {
            let name = Ownership.tunnelName(number)
            host.links.append(
                Link(name: name, kind: .ipip(local: end, remote: nil, fouPort: nil), mtu: 1400, address: end))
            host.rules.append(Rule(priority: Ownership.tunnelRulePriority, incoming: name, table: Ownership.guardTable))
            host.neighbours.append(
                Neighbour(device: name, peer: end, mac: MACAddress(7), remote: IPAddress(v4: 0x0A00_000C)))
        }
        for number: UInt32 in 1...2 {
            host.nextHops.append(
                NextHop(id: Ownership.firstNextHop + number, target: .device(Ownership.tunnelName(number))))
            let (table, group) = (Ownership.firstTable + number, Ownership.firstNextHop + 10 + number)
            host.nextHops.append(NextHop(id: group, target: .group(Ownership.firstNextHop + number)))
            host.rules.append(
                Rule(
                    priority: Ownership.podRulePriority, source: IPNetwork(host: IPAddress(v4: 0x0AF4_0100 + number)),
                    table: table))
            host.rules.append(
                Rule(
                    priority: Ownership.echoRulePriority, mark: .init(value: Ownership.echoMark(number), mask: .max),
                    udpPort: Ownership.echoPort, action: .lookup(Ownership.echoTable(number))))
            host.add([
                Route(table: table, destination: .everythingV4, kind: .nextHop(group)),
                Route(table: Ownership.echoTable(number), destination: .everythingV4, kind: .nextHop(group)),
            ])
        }
        // This node is the first one's gateway, by another interface.
        let outside = Ownership.firstTable + 9
        host.rules.append(
            Rule(priority: Ownership.tunnelRulePriority, incoming: Ownership.tunnelName(1), table: outside))
        host.add([Route(table: outside, destination: .everythingV4, kind: .device("eth1"))])
        let network = IPNetwork(IPAddress(v4: 0x0A02_0000), prefixLength: 16)
        host.add([
            Route(table: Rule.mainTable, destination: network, kind: .via(end, device: Ownership.tunnelName(0)))
        ])
        func table(_ elements: [UInt32], chains: [FirewallChain] = []) -> FirewallTable {
            FirewallTable(
                chains: chains,
                sets: [
                    FirewallSet(
                        name: "pods", key: .address, interval: false,
                        elements: elements.map { .init(first: $0, last: $0) })
                ])
        }
        host.firewall = table([0x0AF4_0101, 0x0AF4_0102])

        var observed = Observed()
        observed.host.firewall = table([0x0AF4_0102])
        let steps = Steps(from: observed, to: host).list
        func commands(_ pod: UInt32) -> Set<String> {
            let dependencies = PodDependencies(of: [IPNetwork(host: IPAddress(v4: pod))], in: host)
            return Set(steps.filter(dependencies.contain).flatMap(\.operations))
        }
        let (one, other, stranger) = (commands(0x0AF4_0101), commands(0x0AF4_0102), commands(0x0AF4_0103))
        // The mesh: link, its settings, its guard, its neighbour and its route.
        #expect(stranger.count == 5, "\(stranger)")
        // A pod's own: the same four of its tunnel, next hop and group, its rule, its route; and its element of the firewall's set,
        // and the way out of its tunnel.
        let element = "nft add 1 elements to pods"
        #expect(one.subtracting(stranger).count == 11 && one.contains(element), "\(one.subtracting(stranger))")
        #expect(other.subtracting(stranger).count == 8 && !other.contains(element), "\(other.subtracting(stranger))")
        #expect(one.intersection(other) == stranger)
        #expect(
            one.union(other).count == Set(steps.flatMap(\.operations)).count - 4, "all but two echo rules and routes")
        // A chain is for all pods.
        let chain = FirewallChain(name: "guard", rules: [])
        observed.host.firewall = table([0x0AF4_0101, 0x0AF4_0102], chains: [chain])
        let change = try #require(Steps(from: observed, to: host).list.first { $0.phase == .changeFirewall })
        #expect(PodDependencies(of: [], in: host).contain(change))
    }
}

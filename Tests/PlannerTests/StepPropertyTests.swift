import CLinux
import Foundation
import Model
import Netlink
import TestSupport
import Testing

@testable import Planner
@testable import Reconcile

/// The kernel as far as a pod's packet sees it: what each step does to it, and where a packet goes then. Written for these
/// tests from the kernel's own rules, and not from the reconciler.
struct KernelModel {
    var links: [String: Link] = [:]
    var nextHops: [UInt32: NextHop] = [:]
    var routes: [Route] = []
    /// In the order in which they were added.
    var rules: [Rule] = []
    var neighbours: [Neighbour] = []
    var fouPorts: [FOUPort] = []
    var firewall: FirewallTable?

    struct Refused: Error {}

    /// Does one step, as the kernel would.
    mutating func apply(_ action: Step.Action, wanted: HostState) throws {
        switch action {
        case .addRule(let rule): if !rules.contains(rule) { rules.append(rule) }
        case .deleteRule(let rule): rules.removeAll { $0 == rule }
        case .addLink(let link):
            guard links[link.name] == nil, !links.values.contains(where: { $0.kind == link.kind }) else { throw Refused() }
            links[link.name] = link
        case .configureLink(let link):
            guard links[link.name] != nil else { throw Refused() }
            links[link.name] = link
        case .deleteLink(let name):
            links[name] = nil
            removeNextHops { KernelModel.device($0) == name }
            routes.removeAll {
                switch $0.kind {
                case .device(let device), .via(_, let device): device == name
                default: false
                }
            }
            neighbours.removeAll { $0.device == name }
        case .setNextHop(let hop, let before):
            if before == nil && nextHops[hop.id] != nil { throw Refused() }
            if let there = nextHops[hop.id], there.isGroup != hop.isGroup { throw Refused() }
            switch hop.target {
            case .device(let name), .via(_, let name): if links[name] == nil && name != "eth0" { throw Refused() }
            case .pair(let used, let named): if nextHops[used] == nil || nextHops[named] == nil { throw Refused() }
            case .blackhole: break
            }
            nextHops[hop.id] = hop
        case .deleteNextHop(let hop): removeNextHops { $0.id == hop.id }
        case .addRoute(let route):
            if routes.contains(where: { KernelModel.isSame($0, route) }) { throw Refused() }
            if case .nextHop(let id) = route.kind, nextHops[id] == nil { throw Refused() }
            routes.append(route)
        case .replaceRoute(let route, _):
            if case .nextHop(let id) = route.kind, nextHops[id] == nil { throw Refused() }
            routes.removeAll { KernelModel.isSame($0, route) }
            routes.append(route)
        case .deleteRoute(let route): routes.removeAll { $0 == route }
        case .changeFirewall: firewall = wanted.firewall
        case .addNeighbour(let neighbour): neighbours.append(neighbour)
        case .deleteNeighbour(let half, let device):
            if case .address(_, let peer, _) = half { neighbours.removeAll { $0.device == device && $0.peer == peer } }
        case .addFOUPort(let port): fouPorts.append(port)
        case .deleteFOUPort(let port): fouPorts.removeAll { $0 == port }
        case .idleDevice, .setWireGuardPeers: break
        }
    }

    private static func isSame(_ a: Route, _ b: Route) -> Bool {
        a.table == b.table && a.destination == b.destination && a.metric == b.metric
    }
    private static func device(_ hop: NextHop) -> String? {
        switch hop.target {
        case .device(let name), .via(_, let name): name
        default: nil
        }
    }
    /// A next hop takes its routes along, and a group loses a member; a group without members is gone.
    private mutating func removeNextHops(where isGone: (NextHop) -> Bool) {
        var gone = Set(nextHops.values.filter(isGone).map(\.id))
        for hop in nextHops.values {
            if case .pair(let used, let named) = hop.target, gone.contains(used), gone.contains(named) { gone.insert(hop.id) }
        }
        for id in gone { nextHops[id] = nil }
        routes.removeAll { if case .nextHop(let id) = $0.kind { gone.contains(id) } else { false } }
    }

    enum Fate: Equatable {
        /// By this tunnel to this end.
        case tunnel(IPAddress)
        case nowhere
        /// By the main table.
        case normal
    }

    /// Where a pod's packet goes.
    func fate(from source: IPAddress, to destination: IPAddress) -> Fate {
        for rule in rules.enumerated().sorted(by: { ($0.element.priority, $0.offset) < ($1.element.priority, $1.offset) })
            .map(\.element)
        where rule.incoming == nil && rule.mark == nil && (rule.source?.contains(source) ?? true) {
            guard let table = rule.table else { return .nowhere }
            let best = routes.filter { $0.table == table && $0.destination.contains(destination) }.max {
                ($0.destination.prefixLength, $1.metric) < ($1.destination.prefixLength, $0.metric)
            }
            switch best?.kind {
            case nil, .throwOn?: continue
            case .unreachable?: return .nowhere
            case .nextHop(let id)?: return fate(of: id)
            case .device(let name)?: return fate(device: name, gateway: nil)
            case .via(let gateway, let name)?: return fate(device: name, gateway: gateway)
            }
        }
        return .normal
    }

    private func fate(of id: UInt32) -> Fate {
        switch nextHops[id]?.target {
        case .device(let name)?: return fate(device: name, gateway: nil)
        case .via(let gateway, let name)?: return fate(device: name, gateway: gateway)
        case .pair(let used, let named)?: return nextHops[used] == nil ? fate(of: named) : fate(of: used)
        case .blackhole?, nil: return .nowhere
        }
    }

    private func fate(device: String, gateway: IPAddress?) -> Fate {
        // An address that nobody has answers nobody.
        if gateway == TunnelLinks.nobody { return .nowhere }
        switch links[device]?.kind {
        case .ipip(_, let remote?, _)?, .gre(_, let remote?, _, _)?: return .tunnel(remote)
        case .vxlan(let local, _, _, _)?:
            guard let gateway, let entry = neighbours.first(where: { $0.device == device && $0.peer == gateway }) else {
                return .nowhere
            }
            return .tunnel(entry.remote == local ? local : entry.remote)
        case .ipip?, .gre?, .wireguard?: return .nowhere
        case nil: return device == "eth0" ? .normal : .nowhere
        }
    }

    /// As the reconciler would see it.
    var observed: Observed {
        var observed = Observed()
        observed.host.links = links.values.sorted { $0.name < $1.name }
        observed.host.nextHops = Array(nextHops.values)
        observed.host.routes = routes
        observed.host.rules = rules
        observed.host.neighbours = neighbours
        observed.host.fouPorts = fouPorts
        observed.host.firewall = firewall
        for (index, name) in links.keys.sorted().enumerated() { observed.indexes[name] = Int32(index + 100) }
        return observed
    }
}

/// A cluster in which everything changes: what a packet of a pod meets while it does.
struct StepPropertyTests {
    /// One state of the world, from which a plan is made.
    struct World {
        var configuration = Configuration()
        var inventory = Inventory()
        var facts = LocalFacts(nodeName: "n1")
        var attachments: [Model.Attachment] = []
    }

    static let gateways = ["203.0.113.10", "203.0.113.77", "198.51.100.5", "192.0.2.200", "8.8.8.8", "10.9.9.9"]
    static let probes = gateways.compactMap { IPAddress($0) }
    static let blocks = [
        "0.0.0.0/0", "203.0.113.0/24", "203.0.113.0/25", "203.0.113.64/26", "198.51.100.0/24", "192.0.2.0/24", "8.0.0.0/8",
        "10.9.0.0/16", "10.0.0.0/8",
    ]

    static func world(_ random: inout SeededGenerator) -> World {
        func chance(_ part: Int) -> Bool { Int.random(in: 0..<part, using: &random) == 0 }
        var world = World()
        world.inventory = Inventory()
        for number in 1...5 where number == 1 || !chance(5) {
            var node = TestCluster.node(number)
            node.labels["zone"] = "z\(Int.random(in: 2...5, using: &random))"
            if chance(8) { node.externalIPs = [IPAddress(v4: 0xCB00_710A + UInt32(number))] }
            if number > 1, chance(8) { node.overlayAddresses = [] }
            world.inventory.nodes[node.name] = node
        }
        for index in 0..<Int.random(in: 0...4, using: &random) {
            var policy = TestCluster.policy(
                "p\(index)", app: "a\(Int.random(in: 0...2, using: &random))",
                destinations: (0..<Int.random(in: 1...3, using: &random)).map { _ in blocks.randomElement(using: &random)! },
                exclusions: (0..<Int.random(in: 0...2, using: &random)).map { _ in blocks.randomElement(using: &random)! },
                gateway: "z\(Int.random(in: 2...6, using: &random))",
                egress: chance(3) ? .address(IPAddress(v4: 0xC000_0200 + UInt32(index))) : .defaultAddress)
            if chance(6) {
                policy.refusal = "spec.later is not supported"
                policy.hasUnknownSelectors = chance(3)
                policy.hasUnknownDestinations = chance(3)
            }
            world.inventory.policies.append(policy)
        }
        if chance(10) { world.facts.overlayAddress = IPAddress("10.244.1.7") }
        if chance(4) {
            world.facts.reversePathFilterAll = 1
            world.facts.underlayDevice = "eth0"
        } else {
            world.facts.underlayDevice = "eth0"
        }
        world.facts.interfaces = [
            .init(
                name: "eth0", addresses: [IPNetwork("10.0.0.11/32")!], hostAddresses: [IPAddress("10.0.0.11")!],
                gateway: IPAddress("10.0.0.1"))
        ]
        world.inventory.namespaces["default"] = [:]
        world.inventory.cilium = CiliumSettings(data: ["enable-endpoint-routes": "true"])
        return world
    }

    /// The world a while later: pods come, go and change their labels.
    static func pods(_ random: inout SeededGenerator, before: [Model.Attachment]) -> [Model.Attachment] {
        var pods: [Model.Attachment] = []
        for number in 0..<4 {
            if let known = before.first(where: { $0.containerID == "c\(number)" }), Int.random(in: 0...3, using: &random) > 0 {
                var pod = known
                if Int.random(in: 0...2, using: &random) == 0 {
                    pod.labels = ["app": "a\(Int.random(in: 0...3, using: &random))"]
                }
                pods.append(pod)
            } else if Bool.random(using: &random) {
                pods.append(
                    Model.Attachment(
                        containerID: "c\(number)", interfaceName: "eth0",
                        addresses: [IPNetwork("10.244.1.\(20 + number)/32")!, IPNetwork("fd00::\(number + 1)/128")!],
                        labels: ["app": "a\(Int.random(in: 0...3, using: &random))"]))
            }
        }
        return pods
    }

    /// What a plan promises one pod about one destination.
    struct Promise {
        let isClaimed: Bool
        /// Ends of tunnels to gateways that are assigned.
        let ends: Set<IPAddress>
    }

    static func promise(_ plan: Plan, _ world: World, _ pod: Model.Attachment, _ destination: IPAddress) -> Promise {
        let assigned = plan.attachments.first { $0.attachment.id == pod.id }?.assigned ?? []
        // What keeps its normal path is claimed by nobody.
        for node in world.inventory.nodes.values
        where node.addresses.contains(destination) || node.podCIDRs.contains(where: { $0.contains(destination) }) {
            return Promise(isClaimed: false, ends: [])
        }
        var ends: Set<IPAddress> = []
        var isClaimed = false
        for policy in assigned {
            guard policy.destinations.contains(where: { $0.contains(destination) }),
                !policy.exclusions.contains(where: { $0.contains(destination) })
            else { continue }
            isClaimed = true
            for gateway in policy.gateways {
                if let end = gateway == "n1"
                    ? world.facts.overlayAddress ?? world.inventory.nodes["n1"]?.overlayV4
                    : world.inventory.nodes[gateway]?.overlayV4
                {
                    ends.insert(end)
                }
            }
        }
        return Promise(isClaimed: isClaimed, ends: ends)
    }

    /// 16 parts side by side; together at least 100,000 prefixes, counted.
    static let prefixes = Counter()
    final class Counter: @unchecked Sendable {
        private let lock = NSLock()
        private var number = 0
        func add(_ more: Int) { lock.withLock { number += more } }
        var total: Int { lock.withLock { number } }
    }

    @Test func nothingLeaksAfterAnyPrefixOfTheStepsAndAnySingleFailure() async throws {
        let count = await withTaskGroup(of: Int.self) { group in
            for seed in 0..<16 as Range<UInt64> { group.addTask { Self.run(seed) } }
            return await group.reduce(0, +)
        }
        #expect(count >= 100_000, "\(count) prefixes")
        print("StepPropertyTests: \(count) prefixes walked")
    }

    static func run(_ seed: UInt64) -> Int {
        var random = SeededGenerator(seed: seed &* 7919 + 11)
        var prefixes = 0
        for _ in 0..<(ProcessInfo.processInfo.environment["CULVERT_WHOLE"] == "1" ? 40 : 5) {
            var kernel = KernelModel()
            var ids = AssignedIDs()
            var memory = PlannerMemory()
            var before: (world: World, plan: Plan)?
            let tunnelProtocol = Configuration.TunnelProtocol.allCases.randomElement(using: &random)!
            for _ in 0..<8 {
                var world = before.map { last in Bool.random(using: &random) ? last.world : Self.world(&random) } ?? Self.world(&random)
                world.configuration.tunnelProtocol = tunnelProtocol
                world.attachments = pods(&random, before: before?.world.attachments ?? [])
                world.facts.lastOverlayAddress = before?.world.facts.overlayAddress ?? before?.world.facts.lastOverlayAddress
                let plan = Planner.plan(
                    configuration: world.configuration, localFacts: world.facts, inventory: world.inventory,
                    attachments: world.attachments, previousIDs: ids, memory: &memory)
                let steps = Steps(from: kernel.observed, to: plan.host).list
                let live = world.attachments.filter { pod in before?.world.attachments.contains { $0.id == pod.id } ?? false }
                func check(_ kernel: KernelModel, _ what: @autoclosure () -> String) {
                    guard let last = before else { return }
                    for pod in live {
                        for probe in probes {
                            let (old, new) = (
                                promise(last.plan, last.world, pod, probe), promise(plan, world, pod, probe)
                            )
                            guard old.isClaimed && new.isClaimed else { continue }
                            switch kernel.fate(from: pod.addresses[0].address, to: probe) {
                            case .nowhere: break
                            case .tunnel(let end):
                                #expect(
                                    old.ends.union(new.ends).contains(end),
                                    "seed \(seed): \(pod.id) to \(probe) by \(end), \(what())")
                            case .normal:
                                Issue.record(
                                    "seed \(seed): \(pod.id) to \(probe) leaves by its normal path, \(what())")
                            }
                        }
                    }
                    // Whatever comes out of a tunnel and was not let in goes nowhere.
                    for name in kernel.links.keys {
                        #expect(
                            kernel.rules.contains { $0.incoming == name && $0.isGuard }
                                && kernel.routes.contains {
                                    $0.table == Ownership.guardTable && $0.kind == .unreachable
                                }, "seed \(seed): \(name) is not guarded, \(what())")
                    }
                }
                // Every prefix.
                var walked = kernel
                for (place, step) in steps.enumerated() {
                    do { try walked.apply(step.action, wanted: plan.host) } catch {
                        Issue.record("seed \(seed): the kernel would refuse \(step.operations)")
                    }
                    check(walked, "after step \(place): \(step.operations)")
                    prefixes += 1
                }
                // Every single failure, where there are not too many to try all: every state on the way.
                let failing = steps.count <= 40 ? Array(steps.indices) : (0..<12).map { _ in Int.random(in: steps.indices, using: &random) }
                for bad in failing {
                    var state = kernel
                    let outcome = StepRunner.run(steps) { batch in
                        var failures: [Int: any Error] = [:]
                        for (place, step) in batch.enumerated() {
                            if step == steps[bad] {
                                failures[place] = KernelModel.Refused()
                                continue
                            }
                            do { try state.apply(step.action, wanted: plan.host) } catch { failures[place] = error }
                            check(state, "\(step.operations) after the failure of \(steps[bad].operations)")
                            prefixes += 1
                        }
                        return failures
                    }
                    #expect(!outcome.isComplete)
                    // The next convergence reaches the plan.
                    let rest = Steps(from: state.observed, to: plan.host).list
                    for step in rest { try? state.apply(step.action, wanted: plan.host) }
                    let left = Steps(from: state.observed, to: plan.host).list
                    #expect(left.isEmpty, "seed \(seed): \(left.flatMap(\.operations)) left after the failure of \(steps[bad].operations)")
                }
                kernel = walked
                let left = Steps(from: kernel.observed, to: plan.host).list
                #expect(left.isEmpty, "seed \(seed): \(left.flatMap(\.operations)) left")
                ids = plan.ids
                // Now and then a number is free again: the kernel was as planned.
                ids.retired = .init()
                for entry in plan.attachments {
                    if let place = world.attachments.firstIndex(where: { $0.id == entry.attachment.id }) {
                        world.attachments[place].assignment = entry.assigned
                    }
                }
                before = (world, plan)
            }
        }
        return prefixes
    }
}

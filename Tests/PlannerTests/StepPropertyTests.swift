import CLinux
import Foundation
import Model
import Netlink
import TestSupport
import Testing

@testable import Liveness
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
            guard links[link.name] == nil, !links.values.contains(where: { $0.kind == link.kind }) else {
                throw Refused()
            }
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
            if let there = nextHops[hop.id], there.target.kind != hop.target.kind { throw Refused() }
            switch hop.target {
            case .device(let name), .via(_, let name): if links[name] == nil && name != "eth0" { throw Refused() }
            case .group, .pair: if hop.target.members.contains(where: { nextHops[$0] == nil }) { throw Refused() }
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
            let members = hop.target.members
            if !members.isEmpty, members.allSatisfy(gone.contains) { gone.insert(hop.id) }
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
        for rule in rules.enumerated().sorted(by: {
            ($0.element.priority, $0.offset) < ($1.element.priority, $1.offset)
        })
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
        case .group(let member)?: return fate(of: member)
        case .pair(let used, let named)?:
            return nextHops[used] == nil ? named.map { fate(of: $0) } ?? .nowhere : fate(of: used)
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

    /// What the fail-over thread does: it sets groups that are there, and makes none.
    mutating func move(_ hop: NextHop) {
        guard nextHops[hop.id]?.target.kind == hop.target.kind,
            hop.target.members.allSatisfy({ nextHops[$0] != nil })
        else { return }
        nextHops[hop.id] = hop
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
            var before: (world: ChangingCluster.World, plan: Plan)?
            var board = FailOverBoard()
            /// Gateways come up and go down at any time, and the fail-over thread acts on it.
            func changeHealth(_ kernel: inout KernelModel, _ board: inout FailOverBoard) {
                guard Int.random(in: 0...2, using: &random) == 0 else { return }
                let ends = Set(board.slots.values.flatMap { $0.candidates.map(\.end) }).sorted()
                guard let end = ends.randomElement(using: &random) else { return }
                let states: [GatewayHealth.State] = [.up, .down, .down, .unknown]
                board.echoes.states[end] = states.randomElement(using: &random)!
                if Bool.random(using: &random) { board.echoes.steady.formSymmetricDifference([end]) }
                for move in board.decide() { kernel.move(move.hop) }
            }
            /// The plan as it is after what was decided since.
            func current(_ host: HostState, _ board: FailOverBoard) -> HostState {
                var host = host
                host.nextHops = host.nextHops.map { board.current($0) }
                return host
            }
            func current(_ step: Step, _ board: FailOverBoard) -> Step {
                guard case .setNextHop(let hop, let before) = step.action else { return step }
                return Step(action: .setNextHop(board.current(hop), before: before), phase: step.phase)
            }
            let tunnelProtocol = Configuration.TunnelProtocol.allCases.randomElement(using: &random)!
            for _ in 0..<8 {
                var world =
                    before.map { last in Bool.random(using: &random) ? last.world : ChangingCluster.world(&random) }
                    ?? ChangingCluster.world(&random)
                world.configuration.tunnelProtocol = tunnelProtocol
                world.attachments = ChangingCluster.pods(&random, before: before?.world.attachments ?? [])
                world.expected = ChangingCluster.expected(&random, besides: world.attachments)
                world.facts.lastOverlayAddress =
                    before?.world.facts.overlayAddress ?? before?.world.facts.lastOverlayAddress
                let plan = Planner.plan(
                    configuration: world.configuration, localFacts: world.facts, inventory: world.inventory,
                    attachments: world.attachments, expected: world.expected, gatewayHealth: board.health,
                    previous: board.previous,
                    previousIDs: ids, memory: &memory)
                #expect(
                    plan
                        == Planner.plan(
                            configuration: world.configuration, localFacts: world.facts, inventory: world.inventory,
                            attachments: world.attachments, expected: world.expected, gatewayHealth: board.health,
                            previous: board.previous,
                            previousIDs: ids),
                    "seed \(seed): the plan depends on what is kept from the one before")
                board.prepare(plan.liveness)
                let steps = Steps(from: kernel.observed, to: plan.host).list
                let live = world.attachments.filter { pod in
                    before?.world.attachments.contains { $0.id == pod.id } ?? false
                }
                func check(_ kernel: KernelModel, _ what: @autoclosure () -> String) {
                    guard let last = before else { return }
                    for pod in live {
                        for probe in ChangingCluster.probes {
                            let (old, new) = (
                                ChangingCluster.promise(last.plan, last.world, pod, probe),
                                ChangingCluster.promise(plan, world, pod, probe)
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
                let unmoved = board
                for (place, step) in steps.enumerated() {
                    do { try walked.apply(current(step, board).action, wanted: plan.host) } catch {
                        Issue.record("seed \(seed): the kernel would refuse \(step.operations)")
                    }
                    check(walked, "after step \(place): \(step.operations)")
                    prefixes += 1
                    changeHealth(&walked, &board)
                    check(walked, "after step \(place), \(step.operations), and a fail-over")
                }
                // Every single failure, where there are not too many to try all: every state on the way.
                let failing =
                    steps.count <= 40
                    ? Array(steps.indices) : (0..<12).map { _ in Int.random(in: steps.indices, using: &random) }
                for bad in failing {
                    var state = kernel
                    var board = unmoved
                    let outcome = StepRunner.run(steps) { batch in
                        var failures: [Int: any Error] = [:]
                        for (place, step) in batch.enumerated() {
                            if step == steps[bad] {
                                failures[place] = KernelModel.Refused()
                                continue
                            }
                            do { try state.apply(current(step, board).action, wanted: plan.host) } catch {
                                failures[place] = error
                            }
                            changeHealth(&state, &board)
                            check(state, "\(step.operations) after the failure of \(steps[bad].operations)")
                            prefixes += 1
                        }
                        return failures
                    }
                    #expect(!outcome.isComplete)
                    // The next convergence reaches the plan.
                    let host = current(plan.host, board)
                    let rest = Steps(from: state.observed, to: host).list
                    for step in rest { try? state.apply(step.action, wanted: host) }
                    let left = Steps(from: state.observed, to: host).list
                    #expect(
                        left.isEmpty,
                        "seed \(seed): \(left.flatMap(\.operations)) left after the failure of \(steps[bad].operations)"
                    )
                }
                kernel = walked
                board.settle(plan.liveness)
                let left = Steps(from: kernel.observed, to: current(plan.host, board)).list
                #expect(left.isEmpty, "seed \(seed): \(left.flatMap(\.operations)) left")
                ids = plan.ids
                // Now and then a number is free again: the kernel was as planned.
                ids.retired = .init()
                world.remember(plan)
                before = (world, plan)
            }
        }
        return prefixes
    }
}

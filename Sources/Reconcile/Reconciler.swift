import CLinux
import Firewall
import Model
import Netlink
import Planner
import WireGuard

/// Makes the kernel equal to a `HostState`: dumps, compares, and sends only what differs.
public final class Reconciler {
    private let route: NetlinkSocket
    private let firewall: FirewallSocket
    private var fou: FOUSocket?
    private var kernelWireGuard: KernelWireGuard?
    private let userspaceWireGuard: UserspaceWireGuard
    /// Why the mesh's device is not as planned; empty when it is. Nothing else depends on it.
    public private(set) var wireGuardProblem = ""
    /// The node's private WireGuard key; nil: there is no mesh.
    private let privateKey: [UInt8]?
    /// What was wanted of WireGuard last: an endpoint that is news is set, one that is not may have moved.
    private var lastPeers: [WireGuardPeer]?
    /// What the last run left, where all of it was done; nil: the kernel has to be looked at.
    private var applied: Observed?
    /// For tests: called after every single step, which are then sent one by one.
    var afterEachStep: ((Step) -> Void)?
    /// Whoever decides at which gateway a group points, if it is not the plan alone: gets the groups as planned, sets them as
    /// they are to be at this moment by calling `send` with them, and returns those.
    public var groups: (([NextHop], _ send: ([NextHop]) -> Void) -> [NextHop])?
    /// False where the kernel has refused a link's IPv6 settings (`ipv6.disable=1`).
    private var hasIPv6 = true

    /// - Parameters:
    ///   - privateKey: the node's WireGuard key, 32 bytes; nil: there is no mesh.
    ///   - publicKey: the public key that belongs to a private one; nil where that is none.
    /// - Throws: where the kernel gives no netlink socket.
    public init(
        privateKey: [UInt8]? = nil, publicKey: @escaping @Sendable ([UInt8]) -> WireGuardKey? = { _ in nil }
    ) throws {
        self.privateKey = privateKey
        userspaceWireGuard = UserspaceWireGuard(publicKey: publicKey)
        route = try NetlinkSocket(bus: NETLINK_ROUTE)
        firewall = try FirewallSocket()
    }

    /// Ports whose notifications are our own changes.
    public var routePort: UInt32 { route.port }
    public var firewallPort: UInt32 { firewall.port }
    /// For reading facts over the same socket.
    public var socket: NetlinkSocket { route }

    /// Fail-over has set these groups to other members than the plan.
    public func groupsMoved(_ hops: [NextHop]) {
        guard applied != nil else { return }
        let moved = Dictionary(hops.map { ($0.id, $0) }, uniquingKeysWith: { _, last in last })
        for place in applied?.host.nextHops.indices ?? 0..<0 {
            if let hop = moved[applied?.host.nextHops[place].id ?? 0] { applied?.host.nextHops[place] = hop }
        }
    }

    /// The groups of next hops that are there, each with the number of the member that it points to.
    public func groupMembers() throws -> [UInt32: UInt32] {
        let names = Dictionary(try route.links().map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
        return try route.nextHops(names: names).ours.compactMapValues { $0.target.members.first }
    }

    /// Forgets what was applied: the next `apply` looks at the kernel first.
    public func invalidate() { applied = nil }

    /// Makes the kernel equal to `wanted`, as far as it lets us: what it refuses holds only what depends on it.
    ///
    /// - Parameter looking: parts of the kernel to look at first, rather than trust what was applied last. All are looked at
    ///   where the last run did not do all that it should.
    /// - Throws: where the kernel cannot be looked at, and nothing is known.
    @discardableResult
    public func apply(_ wanted: HostState, looking: Set<KernelPart> = []) throws -> ApplyOutcome {
        if let applied {
            let parts = looking.withDependents
            let outcome = makeEqual(parts.isEmpty ? applied : try look(at: parts, since: applied, wanted), wanted)
            if outcome.isComplete || parts == .all { return outcome }
            // Another program may have changed something at the same time: read everything and try once more.
        }
        return makeEqual(try look(at: .all, since: Observed(), wanted), wanted)
    }

    /// What would have to be changed, in the order in which it would be done, as commands. Changes nothing.
    ///
    /// - Parameter pods: addresses of one pod, as host networks: only what this pod depends on counts; nil: everything.
    public func differences(_ wanted: HostState, of pods: Set<IPNetwork>? = nil) throws -> [String] {
        var steps = Steps(from: try look(at: .all, since: Observed(), wanted), to: wanted).list
        if let pods {
            let dependencies = PodDependencies(of: pods, in: wanted)
            steps = steps.filter(dependencies.contain)
        }
        return steps.flatMap(\.operations) + (try wireGuardChanges(wanted).operations)
    }

    /// Numbers that the kernel has something of ours under, whatever it stands for.
    public func numbersInUse() throws -> AssignedIDs.Retired {
        var used = AssignedIDs.Retired()
        let links = try route.links()
        used.tunnels = Set(links.compactMap { Ownership.tunnelNumber($0.name) })
        let names = Dictionary(links.map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
        let hops = try route.nextHops(names: names)
        used.nextHops = Set(hops.ours.keys).union(hops.foreign)
        used.tables = Set(try route.ownRoutes(names: names).map(\.table).filter { $0 >= Ownership.firstTable })
        used.tables.formUnion(try route.ownRules().compactMap(\.table).filter { $0 >= Ownership.firstTable })
        return used
    }

    /// Whether an earlier run has left routes of a mesh.
    public func hasMeshRoutes() throws -> Bool {
        let names = Dictionary(try route.links().map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
        return try route.ownRoutes(names: names).contains { $0.table == Rule.mainTable }
    }

    /// Where the tunnels that are there end on this node: the overlay address that they were made with.
    public func tunnelAddress() throws -> IPAddress? {
        try route.link(named: Ownership.mainTunnel)?.tunnel?.localAddress
    }

    /// Removes the rules of these addresses and nothing else: for pods that are gone while the plan is not known.
    public func deletePodRules(of addresses: Set<IPAddress>) throws {
        let rules = try route.ownRules().filter { rule in
            rule.source.map { $0.isHost && addresses.contains($0.address) } ?? false
        }
        applied = nil
        for (_, error) in try route.execute(rules.map { RuleRequest.delete($0) }) where error.code != ENOENT {
            throw error
        }
    }

    public func firewallCounters() throws -> [KernelFirewall.CountedRule] { try firewall.read()?.counters ?? [] }

    // MARK: looking

    /// - Parameter since: what is known of the other parts.
    private func look(at parts: Set<KernelPart>, since: Observed, _ wanted: HostState) throws -> Observed {
        var observed = since
        if parts.contains(.links) { try lookAtLinks(&observed, wanted) }
        if parts.contains(.nextHops) {
            let hops = try route.nextHops(names: observed.names)
            observed.host.nextHops = Array(hops.ours.values)
            observed.foreignNextHops = hops.foreign
        }
        if parts.contains(.routes) { observed.host.routes = try route.ownRoutes(names: observed.names) }
        if parts.contains(.rules) { observed.host.rules = try route.ownRules() }
        if parts.contains(.neighbours) {
            observed.host.neighbours = []
            if !wanted.neighbours.isEmpty || observed.host.links.contains(where: { $0.kind.macAddress != nil }) {
                observed.host.neighbours = try observedNeighbours(wanted, observed)
            }
        }
        if parts.contains(.links) {
            if !wanted.fouPorts.isEmpty || fou != nil || observed.host.links.contains(where: { $0.kind.fouPort != nil })
            {
                if fou == nil { fou = try FOUSocket() }
                observed.host.fouPorts = try fou.map { Array(try $0.ports()) } ?? []
            }
        }
        if parts.contains(.firewall) { observed.kernelFirewall = .some(try firewall.read()) }
        return observed
    }

    private func lookAtLinks(_ observed: inout Observed, _ wanted: HostState) throws {
        observed.host.links = []
        // Its peers are another program's to change as well: it is asked.
        observed.host.wireGuard = nil
        (observed.misconfigured, observed.userspaceDevices) = ([], [])
        (observed.indexes, observed.names, observed.addresses) = ([:], [:], [:])
        let links = try route.links()
        for link in links {
            observed.indexes[link.name] = link.index
            observed.names[link.index] = link.name
        }
        let addresses = try route.addressesV4()
        let wantedLinks = Dictionary(wanted.links.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        for link in links
        where link.name.hasPrefix(Ownership.linkPrefix)
            && KernelLink.possibleKinds.contains(link.kind)
        {
            let own = addresses.filter { $0.index == link.index }
            observed.addresses[link.name] = own
            if link.kind == "tun" { observed.userspaceDevices.insert(link.name) }
            let want = wantedLinks[link.name]
            // The MAC is not told by the tunnel's own attributes; it follows from the local address.
            let same = want.map { $0.kind.equalsIgnoringMACAddress(link.tunnel) } ?? false
            let kind = same ? want?.kind : link.tunnel
            guard let kind else {
                // Ours by name, but of no kind that we make: replaced if wanted, else removed.
                observed.host.links.append(
                    Link(
                        name: link.name, kind: .ipip(local: IPAddress(v4: 0), remote: nil, fouPort: nil), mtu: 0,
                        address: IPAddress(v4: 0)))
                continue
            }
            observed.host.links.append(
                Link(name: link.name, kind: kind, mtu: link.mtu, address: want?.address ?? IPAddress(v4: 0)))
            if let want {
                let fine =
                    link.isUp && link.mtu == want.mtu && link.alias == Ownership.linkAlias
                    && link.reversePathFilter == want.reversePathFilter && link.forwarding == 1
                    && own.count == 1 && own[0].address == want.address && own[0].prefixLength == 32
                if !fine { observed.misconfigured.insert(link.name) }
            }
        }
    }

    /// The wanted neighbours whose two halves are both there, and one made-up entry per half that is not wanted.
    private func observedNeighbours(_ wanted: HostState, _ observed: Observed) throws -> [Neighbour] {
        let devices = Set(observed.host.links.map(\.name))
        let indexes = Set(devices.compactMap { observed.indexes[$0] })
        let there = try route.neighbours(indexes: indexes)
        var found: [Neighbour] = []
        var used: Set<KernelNeighbour> = []
        for neighbour in wanted.neighbours {
            guard let index = observed.indexes[neighbour.device] else { continue }
            let halves = neighbour.halves(index: index)
            if halves.allSatisfy(there.contains) { found.append(neighbour) }
            used.formUnion(halves)
        }
        for stray in there.subtracting(used) {
            switch stray {
            case .address(let index, let peer, let mac):
                found.append(
                    Neighbour(device: observed.names[index] ?? "", peer: peer, mac: mac, remote: IPAddress(v4: 0)))
            case .forwarding(let index, let mac, let remote, let vni, let port):
                found.append(
                    Neighbour(
                        device: observed.names[index] ?? "", peer: IPAddress(v4: 0), mac: mac, remote: remote, vni: vni,
                        port: port))
            }
        }
        return found
    }

    // MARK: WireGuard

    /// The device as it is; nil where there is none.
    public func wireGuardDevice(_ name: String) throws -> WireGuardStatus? { try wireGuard(name).device(name) }

    private func wireGuard(_ name: String) throws -> any WireGuardControl {
        if try route.link(named: name)?.kind == "tun" { return userspaceWireGuard }
        if let kernelWireGuard { return kernelWireGuard }
        let control = try KernelWireGuard()
        kernelWireGuard = control
        return control
    }

    private func wireGuardChanges(
        _ wanted: HostState
    ) throws -> (configure: Bool, changes: [WireGuardChange], operations: [String]) {
        guard let device = wanted.wireGuard else { return (false, [], []) }
        let there = try wireGuardDevice(device.name) ?? WireGuardStatus()
        let configure = there.publicKey != device.publicKey || there.listenPort != device.listenPort
        let changes = WireGuardChanges.between(
            there.peers, device.peers, previous: lastPeers, now: Int64(time(nil)),
            isRouted: wanted.isRoutedByWireGuard)
        let operations =
            (configure ? ["wg set \(device.name) private-key (hidden) listen-port \(device.listenPort)"] : [])
            + changes.map { change in
                switch change {
                case .remove(let key): "wg set \(device.name) peer \(key) remove"
                case .set(let peer, _, _): "wg set \(device.name) peer \(peer.publicKey)"
                }
            }
        return (configure, changes, operations)
    }

    /// Peer by peer, and only where it differs.
    private func applyWireGuard(_ wanted: HostState) throws {
        guard let device = wanted.wireGuard, let privateKey else { return }
        let (configure, changes, _) = try wireGuardChanges(wanted)
        let control = try wireGuard(device.name)
        if configure { try control.configure(device.name, privateKey: privateKey, listenPort: device.listenPort) }
        // One peer that is refused keeps no other from being set.
        var refused: (any Error)?
        for change in changes {
            do { try control.apply(change, device: device.name) } catch { refused = refused ?? error }
        }
        if let refused { throw refused }
        lastPeers = device.peers
    }

    // MARK: changing

    private func makeEqual(_ observed: Observed, _ wanted: HostState) -> ApplyOutcome {
        if wanted.wireGuard == nil { wireGuardProblem = "" }
        let wireGuardDiffers = wireGuardDiffers(observed, wanted)
        let steps = Steps(from: observed, to: wanted, wireGuardDiffers: wireGuardDiffers)
        var context = Context(observed: observed, wanted: wanted)
        let outcome = StepRunner.run(steps.list) { batch in
            guard let afterEachStep else { return execute(batch, &context) }
            var failures: [Int: any Error] = [:]
            for (place, step) in batch.enumerated() {
                if let error = execute([step], &context)[0] { failures[place] = error }
                afterEachStep(step)
            }
            return failures
        }
        applied = outcome.isComplete && wireGuardProblem.isEmpty ? context.result() : nil
        return ApplyOutcome(outcome, problem: wireGuardProblem)
    }

    /// Whether the WireGuard device or a peer is not as it should be. The device is only asked where somebody may have changed
    /// it, or where something else is wanted.
    private func wireGuardDiffers(_ observed: Observed, _ wanted: HostState) -> Bool {
        guard let device = wanted.wireGuard, privateKey != nil else { return false }
        if applied != nil, wireGuardProblem.isEmpty, device == observed.host.wireGuard { return false }
        do {
            let (configure, changes, _) = try wireGuardChanges(wanted)
            if configure || !changes.isEmpty { return true }
            lastPeers = device.peers
            wireGuardProblem = ""
            return false
        } catch { return true }
    }

    /// What the steps of one run share.
    private struct Context {
        let observed: Observed
        let wanted: HostState
        var indexes: [String: Int32]
        /// Groups that were set to something else than planned.
        var moved: [UInt32: NextHop] = [:]

        init(observed: Observed, wanted: HostState) {
            self.observed = observed
            self.wanted = wanted
            indexes = observed.indexes
        }

        /// What is there when every step was done.
        func result() -> Observed {
            var result = Observed()
            result.host = wanted
            if !moved.isEmpty {
                result.host.nextHops = wanted.nextHops.map { moved[$0.id] ?? $0 }
            }
            result.indexes = indexes
            // What a look at the kernel has told of them: their program may outlive our need of them.
            result.userspaceDevices = observed.userspaceDevices
            for link in wanted.links where result.userspaceDevices.contains(link.name) {
                result.addresses[link.name] = [
                    KernelAddress(index: indexes[link.name] ?? 0, address: link.address, prefixLength: 32)
                ]
            }
            result.names = Dictionary(indexes.map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
            return result
        }
    }

    /// Carries out steps that need nothing of each other, in their order.
    ///
    /// - Returns: which failed, by place.
    private func execute(_ steps: [Step], _ context: inout Context) -> [Int: any Error] {
        let planned = steps.compactMap { step in
            if case .setNextHop(let hop, _) = step.action, hop.isGroup { hop } else { nil }
        }
        guard let groups, planned.count == steps.count, !steps.isEmpty else { return carryOut(steps, &context) }
        var failures: [Int: any Error] = [:]
        let hops = groups(planned) { hops in
            let current = zip(steps, hops).map { step, hop in
                guard case .setNextHop(_, let before) = step.action else { return step }
                return Step(action: .setNextHop(hop, before: before), phase: step.phase)
            }
            failures = carryOut(current, &context)
        }
        for (hop, wanted) in zip(hops, planned) where hop != wanted { context.moved[hop.id] = hop }
        return failures
    }

    private func carryOut(_ steps: [Step], _ context: inout Context) -> [Int: any Error] {
        var failures: [Int: any Error] = [:]
        /// Messages of one step each, sent together.
        var messages: [NetlinkMessage] = []
        var owners: [Int] = []
        var ignored: Set<Int32> = []
        func send(_ place: Int, _ message: NetlinkMessage, ignoring: Set<Int32> = []) {
            messages.append(message)
            owners.append(place)
            ignored.formUnion(ignoring)
        }
        func one(_ place: Int, _ body: () throws -> Void) {
            do { try body() } catch { failures[place] = error }
        }
        for (place, step) in steps.enumerated() {
            switch step.action {
            case .addRule(let rule): send(place, RuleRequest.add(rule), ignoring: [EEXIST])
            case .deleteRule(let rule): send(place, RuleRequest.delete(rule), ignoring: [ENOENT])
            case .addRoute(let route): send(place, RouteRequest.add(route, indexes: context.indexes))
            case .replaceRoute(let route, _): send(place, RouteRequest.replace(route, indexes: context.indexes))
            case .deleteRoute(let route):
                send(place, RouteRequest.delete(route, indexes: context.indexes), ignoring: [ESRCH, ENODEV])
            case .setNextHop(let hop, let before):
                if context.observed.foreignNextHops.contains(hop.id) {
                    failures[place] = NetlinkError(
                        operation: "ip nexthop add id \(hop.id)", code: EEXIST,
                        kernelMessage:
                            "another program uses this id; remove that next hop, or stop the program that creates it")
                    continue
                }
                send(place, NextHopRequest.set(hop, indexes: context.indexes, replace: before != nil))
            case .deleteNextHop(let hop): send(place, NextHopRequest.delete(hop.id), ignoring: [ENOENT])
            case .addNeighbour(let neighbour):
                if let index = context.indexes[neighbour.device] {
                    for half in neighbour.halves(index: index) { send(place, NeighbourRequest.add(half)) }
                }
            case .deleteNeighbour(let half, _): send(place, NeighbourRequest.delete(half), ignoring: [ENOENT])
            case .addFOUPort(let port):
                one(place) {
                    if fou == nil { fou = try FOUSocket() }
                    try fou?.add(port)
                }
            case .deleteFOUPort(let port): one(place) { try fou?.delete(port) }
            case .addLink(let link): one(place) { try add(link, &context) }
            case .configureLink(let link): one(place) { try configure(link, context) }
            case .deleteLink(let name):
                guard let index = context.indexes[name] else { continue }
                one(place) {
                    do { try route.execute(LinkRequest.delete(index: index, name: name)) } catch let error
                        as NetlinkError
                        where error.code == ENODEV
                    {}
                    context.indexes[name] = nil
                }
            case .idleDevice(let name): one(place) { try idle(name, context) }
            case .changeFirewall(let change): one(place) { try apply(change, context) }
            case .setWireGuardPeers:
                // Without consequences: a program that does not answer must not keep pods from their gateways.
                do {
                    try applyWireGuard(context.wanted)
                    wireGuardProblem = ""
                } catch { wireGuardProblem = "\(error)" }
            }
        }
        do {
            for (index, error) in try route.execute(messages) where !ignored.contains(error.code) {
                var error = error
                if error.code == EEXIST, case .addRoute(let taken) = steps[owners[index]].action {
                    error = error.with(
                        remedy:
                            "another program has a route to this destination (ip route show \(taken.destination) table \(taken.table)): remove it, or stop the program that creates it"
                    )
                }
                failures[owners[index]] = error
            }
        } catch {
            // The socket failed, so it is not known which steps were done.
            for owner in owners { failures[owner] = error }
        }
        return failures
    }

    private func add(_ link: Link, _ context: inout Context) throws {
        do { try route.execute(LinkRequest.add(link)) } catch let error as NetlinkError where error.code == EOPNOTSUPP {
            let modules = EncapsulationRegistry.kernelModules.joined(separator: " ")
            throw error.with(
                remedy: "this kernel lacks the tunnel module, and it cannot be loaded (modprobe \(modules))")
        }
        guard let made = try route.link(named: link.name) else {
            throw NetlinkError(operation: "ip link show dev \(link.name)", code: ENODEV)
        }
        context.indexes[link.name] = made.index
    }

    private func configure(_ link: Link, _ context: Context) throws {
        guard let index = context.indexes[link.name] else {
            throw NetlinkError(operation: "ip link set dev \(link.name) up", code: ENODEV)
        }
        var messages: [NetlinkMessage] = []
        // The address first: a device that is up without one loses packets to reverse-path filtering.
        for stray in context.observed.addresses[link.name] ?? []
        where stray.address != link.address || stray.prefixLength != 32 {
            messages.append(AddressRequest.delete(stray.address, prefixLength: stray.prefixLength, index: index))
        }
        messages.append(AddressRequest.add(link.address, index: index))
        for (_, error) in try route.execute(messages) where error.code != EADDRNOTAVAIL { throw error }
        do {
            try route.execute(LinkRequest.configure(link, index: index, hasIPv6: hasIPv6))
        } catch let error as NetlinkError where error.code == EAFNOSUPPORT && hasIPv6 {
            try route.execute(LinkRequest.configure(link, index: index, hasIPv6: false))
            hasIPv6 = false
        }
    }

    /// Without an address and routes it carries nothing, whatever its program still has.
    private func idle(_ name: String, _ context: Context) throws {
        do { try userspaceWireGuard.removeAllPeers(name) } catch { wireGuardProblem = "\(error)" }
        guard let index = context.indexes[name] else { return }
        let messages = (context.observed.addresses[name] ?? []).map {
            AddressRequest.delete($0.address, prefixLength: $0.prefixLength, index: index)
        }
        for (_, error) in try route.execute(messages) where error.code != EADDRNOTAVAIL { throw error }
    }

    private func apply(_ change: FirewallChange, _ context: Context) throws {
        var counters: KernelFirewall?
        if case .some(let kernel) = context.observed.kernelFirewall { counters = kernel }
        let flows = FlowsWithoutZone.flows(kernel: counters, wanted: context.wanted.firewall)
        do {
            try firewall.apply(
                change, wanted: context.wanted.firewall, counters: counters, flowsWithoutZone: flows)
        } catch {
            // Somebody may have put something into our table that keeps a part of it from being changed.
            guard case .edit = change else { throw error }
            try firewall.apply(
                .replace, wanted: context.wanted.firewall, counters: counters, flowsWithoutZone: flows)
        }
    }
}

/// What came of making the kernel equal to a plan.
public struct ApplyOutcome: Sendable {
    /// Objects that the kernel refused, each with what it said.
    public struct Failure: Sendable, Equatable {
        public let operation: String
        public let message: String
        public init(operation: String, message: String) {
            self.operation = operation
            self.message = message
        }
    }
    public let failures: [Failure]
    /// Steps that were left out because of them.
    public let left: Int
    /// Changes that were made, by the kind of object.
    public let changes: [KernelPart: Int]
    /// Why the mesh's own device could not be had; empty where it could.
    public let meshDeviceProblem: String
    private let missing: Set<Requirement>
    public var count: Int { changes.values.reduce(0, +) }
    public var isComplete: Bool { failures.isEmpty && left == 0 }

    init(_ outcome: StepOutcome, problem: String) {
        failures = outcome.failures.map {
            Failure(operation: $0.step.operations.first ?? "", message: "\($0.error)")
        }
        left = outcome.left.count
        changes = outcome.changes
        missing = outcome.missing
        meshDeviceProblem =
            outcome.failures.first { failure in
                switch failure.step.action {
                case .addLink(let link), .configureLink(let link): link.kind == .wireguard
                default: false
                }
            }.map { "\($0.error)" } ?? ""
    }

    /// What of a pod's routing is not in place, as `ip` would call it; nil where all of it is.
    ///
    /// - Parameters:
    ///   - addresses: of the pod.
    ///   - table: of the pod; nil: it has none.
    ///   - state: what all was to be.
    public func problem(of addresses: [IPAddress], table: UInt32?, in state: HostState) -> String? {
        if missing.isEmpty { return nil }
        var needed: Set<Requirement> = [.firewall]
        for address in addresses {
            for priority in [Ownership.podRulePriority, Ownership.secondPodRulePriority] {
                needed.insert(.podRule(IPNetwork(host: address), priority: priority))
            }
        }
        if let table {
            needed.insert(.holds(table: table))
            let ids = Set(
                state.routes(table: table).compactMap { route -> UInt32? in
                    if case .nextHop(let id) = route.kind { id } else { nil }
                })
            for hop in state.nextHops where ids.contains(hop.id) {
                needed.insert(.nextHop(hop.id))
                needed.formUnion(hop.target.members.map { .nextHop($0) })
            }
        }
        guard !needed.isDisjoint(with: missing) else { return nil }
        return failures.prefix(3).map(\.message).joined(separator: "; ")
    }
}

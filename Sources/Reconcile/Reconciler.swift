import CLinux
import Firewall
import Model
import Netlink
import WireGuard

/// The mesh's own device cannot be had: everything else can be, without it.
public struct MeshDeviceFailure: Error, CustomStringConvertible {
    public let description: String

    static func naming<T>(_ link: Link, _ body: () throws -> T) throws -> T {
        do { return try body() } catch {
            if link.kind == .wireguard { throw MeshDeviceFailure(description: "\(error)") }
            throw error
        }
    }
}

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
    /// What the last successful run left, or nil when it is not known.
    private var applied: Observed?

    /// What is there, in the terms of what is wanted.
    struct Observed {
        var host = HostState()
        /// Links that are there, but down or with other settings.
        var misconfigured: Set<String> = []
        var indexes: [String: Int32] = [:]
        var names: [Int32: String] = [:]
        /// Addresses on our links.
        var addresses: [String: [KernelAddress]] = [:]
        /// WireGuard devices that a program in user space has made.
        var userspaceDevices: Set<String> = []
        var foreignNextHops: Set<UInt32> = []
        var firewall: KernelFirewall?
        /// The kernel was looked at; otherwise `host` is what was applied last.
        var isDumped = false
    }

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

    /// Forgets what was applied: the next `apply` looks at the kernel first.
    public func invalidate() { applied = nil }

    /// Makes the kernel equal to `wanted`.
    ///
    /// - Parameter full: look at the kernel first, rather than trust what was applied last.
    /// - Returns: how many changes were made.
    @discardableResult
    public func apply(_ wanted: HostState, full: Bool = false) throws -> Int {
        if !full, let applied {
            do { return try makeEqual(applied, wanted) } catch {
                // Somebody changed something under us: look at the kernel and try once more.
                self.applied = nil
            }
        }
        return try makeEqual(try observe(wanted), wanted)
    }

    /// What would have to be changed, as the commands that it stands for. Changes nothing.
    public func differences(_ wanted: HostState) throws -> [String] {
        var changes = Changes(observed: try observe(wanted), wanted: wanted)
        changes.plan()
        var operations = changes.operations
        switch FirewallSocket.change(from: changes.observed.firewall, to: wanted.firewall) {
        case .none: break
        case .delete: operations.append("nft delete table inet culvert")
        case .replace: operations.append("nft replace table inet culvert")
        case .elements(let added, let removed):
            for (set, elements) in added { operations.append("nft add \(elements.count) elements to \(set)") }
            for (set, elements) in removed { operations.append("nft delete \(elements.count) elements of \(set)") }
        }
        operations += try wireGuardChanges(wanted).operations
        return operations
    }

    public func firewallCounters() throws -> [KernelFirewall.CountedRule] { try firewall.read()?.counters ?? [] }

    // MARK: looking

    func observe(_ wanted: HostState) throws -> Observed {
        var observed = Observed()
        let links = try route.links()
        for link in links {
            observed.indexes[link.name] = link.index
            observed.names[link.index] = link.name
        }
        let addresses = try route.addressesV4()
        let wantedLinks = Dictionary(wanted.links.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        for link in links
        where link.name.hasPrefix(Ownership.linkPrefix)
            && ["ipip", "gre", "vxlan", "wireguard", "tun"].contains(link.kind)
        {
            let own = addresses.filter { $0.index == link.index }
            observed.addresses[link.name] = own
            if link.kind == "tun" { observed.userspaceDevices.insert(link.name) }
            let want = wantedLinks[link.name]
            // The MAC is not told by the tunnel's own attributes; it follows from the local address.
            let same = want.map { Reconciler.same($0.kind, link.tunnel) } ?? false
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
        let hops = try route.nextHops(names: observed.names)
        observed.host.nextHops = Array(hops.ours.values)
        observed.foreignNextHops = hops.foreign
        observed.host.routes = try route.ownRoutes(names: observed.names)
        observed.host.rules = try route.ownRules()
        if !wanted.neighbours.isEmpty || observed.host.links.contains(where: { $0.kind.name == "vxlan" }) {
            observed.host.neighbours = try observedNeighbours(wanted, observed)
        }
        if !wanted.fouPorts.isEmpty || fou != nil || observed.host.links.contains(where: { $0.kind.usesFOU }) {
            if fou == nil { fou = try FOUSocket() }
            observed.host.fouPorts = try fou.map { Array(try $0.ports()) } ?? []
        }
        observed.firewall = try firewall.read()
        observed.isDumped = true
        return observed
    }

    private static func same(_ wanted: Link.Kind, _ there: Link.Kind?) -> Bool {
        if case .vxlan(let a, let b, let c, _) = wanted, case .vxlan(let x, let y, let z, _)? = there {
            return (a, b, c) == (x, y, z)
        }
        return wanted == there
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
    private func applyWireGuard(_ wanted: HostState) throws -> Int {
        guard let device = wanted.wireGuard, let privateKey else { return 0 }
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
        return changes.count + (configure ? 1 : 0)
    }

    // MARK: changing

    private func makeEqual(_ observed: Observed, _ wanted: HostState) throws -> Int {
        var changes = Changes(observed: observed, wanted: wanted)
        changes.plan()
        var count = 0

        // Links that go or change make room first: two tunnels cannot have the same two ends.
        count += try run(changes.staleRules.map { RuleRequest.delete($0) }, ignoring: [ENOENT])
        count += try run(
            changes.staleLinks.compactMap { name in
                observed.indexes[name].map { LinkRequest.delete(index: $0, name: name) }
            }, ignoring: [ENODEV])
        for name in changes.staleLinks { changes.observed.indexes[name] = nil }
        for name in changes.idleDevices {
            // Without an address and routes it carries nothing, whatever its program still has.
            do { try userspaceWireGuard.removeAllPeers(name) } catch { wireGuardProblem = "\(error)" }
            guard let index = observed.indexes[name] else { continue }
            count += try run(
                (observed.addresses[name] ?? []).map {
                    AddressRequest.delete($0.address, prefixLength: $0.prefixLength, index: index)
                }, ignoring: [EADDRNOTAVAIL])
        }

        for port in changes.staleFOUPorts {
            try fou?.delete(port)
            count += 1
        }
        for port in changes.newFOUPorts {
            if fou == nil { fou = try FOUSocket() }
            try fou?.add(port)
            count += 1
        }

        // New links, then their settings by index.
        for link in changes.newLinks {
            let made = try MeshDeviceFailure.naming(link) {
                try route.execute(LinkRequest.add(link))
                guard let made = try route.link(named: link.name) else {
                    throw NetlinkError(operation: "ip link show dev \(link.name)", code: ENODEV)
                }
                return made
            }
            changes.observed.indexes[link.name] = made.index
            changes.observed.names[made.index] = link.name
            count += 1
        }
        var indexes = changes.observed.indexes
        for link in changes.linksToConfigure {
            guard let index = indexes[link.name] else { continue }
            var messages = [LinkRequest.configure(link, index: index)]
            for stray in observed.addresses[link.name] ?? []
            where stray.address != link.address || stray.prefixLength != 32 {
                messages.append(AddressRequest.delete(stray.address, prefixLength: stray.prefixLength, index: index))
            }
            messages.append(AddressRequest.add(link.address, index: index))
            count += try MeshDeviceFailure.naming(link) { try run(messages, ignoring: []) }
        }
        // No peer is sent to through the device that sends to it, not even until the routes below are in order.
        let endpoints = Set(
            (wanted.wireGuard?.peers ?? []).compactMap { $0.endpoint.map { IPNetwork(host: $0.address) } })
        count += try run(
            changes.takeStaleRoutes { route in
                route.table == Rule.mainTable && endpoints.contains { route.destination.contains($0) }
            }
            .map { RouteRequest.delete($0, indexes: indexes) }, ignoring: [ESRCH, ENODEV])
        count += try run(
            changes.newNeighbours.flatMap { neighbour in
                indexes[neighbour.device].map { index in
                    neighbour.halves(index: index).map { NeighbourRequest.add($0) }
                } ?? []
            }, ignoring: [])
        count += try run(
            changes.staleNeighbours.flatMap { neighbour in
                indexes[neighbour.device].map { index in
                    neighbour.halves(index: index).filter { !changes.neededHalves.contains($0) && !$0.isMadeUp }
                        .map { NeighbourRequest.delete($0) }
                } ?? []
            }, ignoring: [ENOENT])

        for hop in changes.newNextHops where observed.foreignNextHops.contains(hop.id) {
            throw NetlinkError(
                operation: "ip nexthop add id \(hop.id)", code: EEXIST,
                kernelMessage: "this id belongs to somebody else; remove that next hop, or stop what makes it")
        }
        count += try run(
            changes.newNextHops.map { NextHopRequest.set($0, indexes: indexes, replace: changes.replacesNextHop($0)) },
            ignoring: [])
        count += try run(changes.newRoutes.map { RouteRequest.add($0, indexes: indexes) }, ignoring: [])
        count += try run(changes.changedRoutes.map { RouteRequest.replace($0, indexes: indexes) }, ignoring: [])

        let firewallChange =
            observed.isDumped
            ? FirewallSocket.change(from: observed.firewall, to: wanted.firewall)
            : FirewallSocket.change(from: observed.host.firewall, to: wanted.firewall)
        if firewallChange != .none {
            let before =
                firewallChange == .replace && !observed.isDumped ? try firewall.read() : observed.firewall
            try firewall.apply(firewallChange, wanted: wanted.firewall, counters: before)
            count += 1
        }
        count += try run(changes.newRules.map { RuleRequest.add($0) }, ignoring: [EEXIST])

        // What nothing points at any more.
        count += try run(
            changes.staleRoutes.map { RouteRequest.delete($0, indexes: indexes) }, ignoring: [ESRCH, ENODEV])
        count += try run(changes.staleNextHops.map { NextHopRequest.delete($0) }, ignoring: [ENOENT])

        if wanted.wireGuard != observed.host.wireGuard || observed.isDumped {
            // Last, and without consequences: a program that does not answer must not keep pods from their gateways.
            do {
                count += try applyWireGuard(wanted)
                wireGuardProblem = ""
            } catch { wireGuardProblem = "\(error)" }
        }

        indexes = indexes.filter { entry in
            wanted.links.contains { $0.name == entry.key } || observed.indexes[entry.key] != nil
        }
        var result = Observed()
        result.host = wanted
        // What a look at the kernel has told of them: their program may outlive our need of them.
        result.userspaceDevices = observed.userspaceDevices
        for link in wanted.links where result.userspaceDevices.contains(link.name) {
            result.addresses[link.name] = [
                KernelAddress(index: indexes[link.name] ?? 0, address: link.address, prefixLength: 32)
            ]
        }
        result.indexes = indexes
        result.names = Dictionary(indexes.map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
        applied = result
        return count
    }

    private func run(_ messages: [NetlinkMessage], ignoring: Set<Int32>) throws -> Int {
        guard !messages.isEmpty else { return 0 }
        for (_, error) in try route.execute(messages) where !ignoring.contains(error.code) { throw error }
        return messages.count
    }
}

extension Link.Kind {
    var usesFOU: Bool {
        switch self {
        case .ipip(_, _, let port), .gre(_, _, _, let port): port != nil
        case .vxlan, .wireguard: false
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

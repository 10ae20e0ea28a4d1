import CLinux
import FoundationEssentials
import Glibc
import Model
import Netlink
import WireGuard

/// Reads this node's own facts from its kernel.
public struct LocalFactsReader {
    private let socket: NetlinkSocket
    public init(socket: NetlinkSocket) { self.socket = socket }

    /// - Parameters:
    ///   - node: this node in the inventory, whose address tells the underlay device where the default route does not.
    ///   - wireGuardDevice: name of the WireGuard device; nil: there is no mesh.
    ///   - before: what spoke WireGuard when it was last asked; stays where the kernel cannot be asked.
    public func read(
        nodeName: String, node: Node?, wireGuardDevice: String? = nil,
        before: LocalFacts.WireGuardSupport = .kernel
    ) throws -> LocalFacts {
        let links = try socket.links()
        let addresses = try socket.addressesV4()
        let routes = try socket.uplinkRoutesV4()
        let defaults = routes.filter { $0.destination.prefixLength == 0 }
        var interfaces: [LocalFacts.Interface] = []
        for link in links where !link.name.hasPrefix(Ownership.linkPrefix) && !link.name.hasPrefix("cilium_") {
            let own = addresses.filter { $0.index == link.index }
            guard !own.isEmpty, link.name != "lo" else { continue }
            var interface = LocalFacts.Interface(
                name: link.name, addresses: own.map { IPNetwork($0.address, prefixLength: $0.prefixLength) },
                hostAddresses: own.map(\.address), gateway: defaults.first { $0.index == link.index }?.gateway,
                reversePathFilter: Int(link.reversePathFilter ?? 0))
            interface.forwards = link.forwarding.map { $0 != 0 }
            interface.hasCarrier = link.hasCarrier
            interface.hasDefaultRoute = link.isPointToPoint || defaults.contains { $0.index == link.index }
            interfaces.append(interface)
        }
        let mainDefault = defaults.filter { $0.table == Rule.mainTable }.min { $0.metric < $1.metric }
        // In the node's own order, private ones first.
        let nodeAddresses = node?.internalIPs ?? []
        let holder = (nodeAddresses.filter { !$0.isPublic } + nodeAddresses).lazy.compactMap { wanted in
            addresses.first { $0.address == wanted }
        }.first
        // The overlay's packets leave by the device that has the node address.
        let underlay = links.first { $0.index == holder?.index } ?? links.first { $0.index == mainDefault?.index }
        let egress = links.first { $0.index == mainDefault?.index } ?? underlay
        let overlay = links.first { $0.name == "cilium_host" }.flatMap { host in
            addresses.first { $0.index == host.index }?.address
        }
        var facts = LocalFacts(
            nodeName: nodeName, overlayAddress: overlay, underlayMTU: underlay?.mtu ?? 1500,
            underlayDevice: egress?.name ?? "", interfaces: interfaces,
            reversePathFilterAll: LocalFactsReader.setting("net/ipv4/conf/all/rp_filter"), isLive: true)
        facts.apiServerAddress = LocalFactsReader.apiServerAddress(ProcessInfo.processInfo.environment)
        facts.ways = LocalFactsReader.ways(routes, links: links, interfaces: interfaces)
        facts.localRulePriority = try socket.localRulePriority()
        facts.forwarding = LocalFactsReader.setting("net/ipv4/ip_forward")
        facts.privateAddress = holder.flatMap {
            $0.address.isPublic ? nil : InterfaceAddress($0.address, prefixLength: $0.prefixLength)
        }
        if let wireGuardDevice {
            if links.contains(where: { $0.name == wireGuardDevice && $0.kind == "tun" }) {
                facts.wireGuard = .userspace
            } else if links.contains(where: { $0.name == wireGuardDevice && $0.kind == "wireguard" }) {
                facts.wireGuard = .kernel
            } else {
                do { facts.wireGuard = try KernelWireGuard().isAvailable() ? .kernel : .none } catch {
                    facts.wireGuard = before
                }
            }
        }
        return facts
    }

    /// From the environment that the kubelet gives to containers.
    static func apiServerAddress(_ environment: [String: String]) -> IPAddress? {
        environment["KUBERNETES_SERVICE_HOST"].flatMap { IPAddress($0) }
    }

    /// Routes of the main table that are looked at, at the most: a router with more has a routing daemon that looks after them.
    private static let mostWays = 1024

    private static func ways(
        _ routes: [KernelRoute], links: [KernelLink], interfaces: [LocalFacts.Interface]
    ) -> Set<LocalFacts.Way>? {
        let byIndex = Dictionary(links.map { ($0.index, $0) }, uniquingKeysWith: { first, _ in first })
        let addressed = Set(interfaces.map(\.name))
        var ways: Set<LocalFacts.Way> = []
        for route in routes where route.table == Rule.mainTable {
            // Of several next hops no single device is told.
            let link = byIndex[route.index]
            let name = link?.name ?? ""
            if name == "lo" || name.hasPrefix(Ownership.linkPrefix) || name.hasPrefix("cilium_") { continue }
            let isForwarded =
                route.gateway != nil || route.isMultipath || route.nextHopID != 0 || link?.isPointToPoint == true
                || route.destination.prefixLength == 0
            // The host's end of a pod has no address.
            guard isForwarded || addressed.contains(name) else { continue }
            ways.insert(LocalFacts.Way(route.destination, isForwarded: isForwarded))
            if ways.count > mostWays { return nil }
        }
        return ways
    }

    /// When this node was started, seconds since 1970, by what its clock says now.
    public static var bootTime: Int64 {
        var (now, running) = (timespec(), timespec())
        clock_gettime(CLOCK_REALTIME, &now)
        clock_gettime(CLOCK_BOOTTIME, &running)
        return Int64(now.tv_sec) - Int64(running.tv_sec)
    }

    /// A number below /proc/sys, of this process's own network namespace.
    static func setting(_ name: String) -> Int? {
        guard let text = try? String(contentsOfFile: "/proc/sys/\(name)", encoding: .utf8) else { return nil }
        return Int(text.trimmed)
    }
}

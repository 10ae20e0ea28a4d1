import Firewall
import Model
import Netlink

/// What this node's kernel has of Culvert's objects, in the same terms as the plan.
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
    /// Next-hop ids of our range that are somebody else's.
    var foreignNextHops: Set<UInt32> = []
    /// The firewall as it was read from the kernel; nil: `host.firewall` is what was applied last.
    var kernelFirewall: KernelFirewall??

    /// What has to be done to the firewall.
    func firewallChange(to wanted: FirewallTable?) -> FirewallChange {
        if case .some(let kernel) = kernelFirewall { return FirewallChange.between(kernel, wanted) }
        return FirewallChange.between(host.firewall, wanted)
    }
}

/// What of the kernel can be looked at by itself.
public enum KernelPart: String, CaseIterable, Sendable {
    /// With everything that vanishes with a link: next hops, routes, neighbours.
    case links
    case nextHops
    case routes
    case rules
    case neighbours
    case firewall
}

extension Set<KernelPart> {
    public static var all: Set<KernelPart> { Set(KernelPart.allCases) }

    /// These, and what changes along with them unsaid.
    var withDependents: Set<KernelPart> {
        var parts = self
        if contains(.links) { parts.formUnion([.nextHops, .routes, .neighbours]) }
        if contains(.nextHops) { parts.insert(.routes) }
        return parts
    }
}

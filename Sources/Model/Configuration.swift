/// What the planner needs of the helper's configuration.
public struct Configuration: Equatable, Sendable {
    /// Kinds of encapsulation by name; the planner's `EncapsulationRegistry` has what each does.
    public enum TunnelProtocol: String, Sendable, CaseIterable { case ipip, fou, vxlan }

    /// What carries packets between pods of different nodes here: tunnels run inside it.
    public enum Overlay: String, Sendable, CaseIterable {
        case cilium, flannel, none

        /// What of a node must be known so that tunnels can end there, for people.
        public var tunnelEnd: String {
            switch self {
            case .cilium: "overlay address (cilium_host)"
            case .flannel: "IPv4 pod network, whose first address is flannel's"
            case .none: "IPv4 address"
            }
        }
    }

    public var tunnelProtocol = TunnelProtocol.ipip
    public var overlay = Overlay.cilium
    public var mesh = MeshConfiguration()
    public var honorCiliumPolicies = true
    /// Policy of adopted pods that no policy selects; nil: what the plugin's configuration says, as of the last ADD.
    public var defaultPolicy: String?
    /// Namespaces whose pods may choose `none` by annotation.
    public var allowNone = NamespaceList()
    public var serviceCIDRs: [IPNetwork] = []
    public var excludedCIDRs: [IPNetwork] = []
    /// Where the addresses of nodes lie. An address of a node outside of these is not kept on its normal path. Empty: every
    /// address of every node is kept.
    public var nodeCIDRs: [IPNetwork] = []
    public init() {}
}

/// The numbers given so far to tunnels, tables and next hops, by what they stand for. A new policy never renumbers
/// a live one; a number is given again only when what it stood for is gone from the kernel.
public struct AssignedIDs: Equatable, Sendable {
    /// `n` of `cni-culvert-<n>`, from 1.
    public var tunnels: [String: UInt32] = [:]
    public var tables: [String: UInt32] = [:]
    public var nextHops: [String: UInt32] = [:]
    /// Numbers that stand for nothing any more and may still be in the kernel: given to nothing until they are seen to be
    /// gone. Not kept on disk; a helper that starts looks at the kernel.
    public var retired = Retired()
    public init() {}

    /// A number by what it stands for.
    public typealias Numbers = [String: UInt32]

    public struct Retired: Equatable, Sendable {
        public var tunnels: Set<UInt32> = []
        public var tables: Set<UInt32> = []
        public var nextHops: Set<UInt32> = []
        public init() {}

        /// Keeps those that others have as well.
        public mutating func formIntersection(_ others: Retired) {
            tunnels.formIntersection(others.tunnels)
            tables.formIntersection(others.tables)
            nextHops.formIntersection(others.nextHops)
        }
    }

    /// Keeps the old numbers of `keys` and gives the lowest free ones from `first` to the new. A number that `previous` has
    /// for something else is not free: what it stood for is still in the kernel.
    public static func assign(
        _ keys: Set<String>, previous: Numbers, first: UInt32, retired: Set<UInt32> = []
    ) -> Numbers {
        var numbers: Numbers = [:]
        numbers.reserveCapacity(keys.count)
        var new: [String] = []
        for key in keys {
            if let number = previous[key], number >= first { numbers[key] = number } else { new.append(key) }
        }
        if new.isEmpty { return numbers }
        let used = Set(previous.values).union(retired)
        var next = first
        for key in new.sorted() {
            while used.contains(next) { next += 1 }
            numbers[key] = next
            next += 1
        }
        return numbers
    }

    /// These numbers, given after `previous`; what of `previous` they lack is retired.
    public func retiring(_ previous: AssignedIDs) -> AssignedIDs {
        var result = self
        result.retired = previous.retired
        result.retired.tunnels.formUnion(Set(previous.tunnels.values).subtracting(tunnels.values))
        result.retired.tables.formUnion(Set(previous.tables.values).subtracting(tables.values))
        result.retired.nextHops.formUnion(Set(previous.nextHops.values).subtracting(nextHops.values))
        return result
    }
}

/// What the planner needs of the helper's configuration.
public struct Configuration: Equatable, Sendable {
    public enum TunnelProtocol: String, Sendable, CaseIterable { case ipip, fou, vxlan }

    /// What carries packets between pods of different nodes here: tunnels run inside it.
    public enum Overlay: String, Sendable, CaseIterable { case cilium, flannel, none }

    public var tunnelProtocol = TunnelProtocol.ipip
    public var overlay = Overlay.cilium
    public var mesh = MeshConfiguration()
    public var honorCiliumPolicies = true
    public var serviceCIDRs: [IPNetwork] = []
    public var excludedCIDRs: [IPNetwork] = []
    /// Where the addresses of nodes lie. An address of a node outside of these is not kept on its normal path. Empty: every
    /// address of every node is kept.
    public var nodeCIDRs: [IPNetwork] = []
    public init() {}
}

/// The numbers given so far to tunnels, tables and next hops, by what they stand for. A new policy never renumbers
/// a live one; a number is given again only when what it stood for is gone.
public struct AssignedIDs: Equatable, Sendable {
    /// `n` of `cni-culvert-<n>`, 1...999.
    public var tunnels: [String: UInt32] = [:]
    public var tables: [String: UInt32] = [:]
    public var nextHops: [String: UInt32] = [:]
    public init() {}

    /// A number by what it stands for.
    public typealias Numbers = [String: UInt32]

    /// Keeps the old numbers of `keys`, gives the lowest free ones from `first` to the new, forgets the rest.
    public static func assign(_ keys: Set<String>, previous: Numbers, first: UInt32) -> Numbers {
        var numbers: Numbers = [:]
        var used: Set<UInt32> = []
        for key in keys {
            if let number = previous[key], number >= first {
                numbers[key] = number
                used.insert(number)
            }
        }
        var next = first
        for key in keys.subtracting(numbers.keys).sorted() {
            while used.contains(next) { next += 1 }
            numbers[key] = next
            used.insert(next)
        }
        return numbers
    }
}

/// Gateways known to be down, by node name. (Probing them is the work of a later release.)
public struct GatewayHealth: Equatable, Sendable {
    public var down: Set<String> = []
    public init() {}
}

/// One way out that a pod may use: a node, and the address with which packets leave it there.
public struct GatewayCandidate: Hashable, Sendable {
    /// Name of the node.
    public let node: String
    public let egress: EgressSpecification
    public init(node: String, egress: EgressSpecification = EgressSpecification()) {
        self.node = node
        self.egress = egress
    }
}

/// What a gateway has to do for a policy's packets. Each has an identity of its own in the tunnels.
public struct EgressSpecification: Hashable, Sendable {
    public var address: EgressPolicy.Egress
    /// What the gateway must be able to reach from that address to count as one, in the policy's order.
    public var targets: [HealthTarget]
    public init(_ address: EgressPolicy.Egress = .defaultAddress, targets: [HealthTarget] = []) {
        self.address = address
        self.targets = targets
    }

    /// What it is known by on disk and in numbers: never changed, because live tunnels and tables are numbered by it.
    public var text: String {
        let text =
            switch address {
            case .defaultAddress: "default"
            case .address(let address): "address \(address)"
            case .interface(let name): "interface \(name)"
            case .untranslated: "untranslated"
            }
        return targets.isEmpty ? text : text + " targets " + targets.map(\.description).joined(separator: ",")
    }
}

/// An address and a TCP port that a gateway connects to, to see that its way out works.
public struct HealthTarget: Hashable, Sendable, CustomStringConvertible {
    public let address: IPAddress
    /// 1 to 65535.
    public let port: UInt16
    public init(address: IPAddress, port: UInt16) {
        self.address = address
        self.port = port
    }

    /// - Parameter text: `192.0.2.1:443`, IPv4.
    public init?(_ text: String) {
        guard let colon = text.lastIndex(of: ":"), let address = IPAddress(String(text[..<colon])),
            address.family == .v4, let port = UInt16(text[text.index(after: colon)...]), port > 0
        else { return nil }
        self.init(address: address, port: port)
    }
    public var description: String { "\(address):\(port)" }
}

/// How a policy's gateways are watched: `spec.healthChecks`.
public struct HealthChecks: Hashable, Sendable {
    /// Between two echoes, milliseconds: 20 to 10,000.
    public var interval = 100
    /// Without an answer for this many intervals a gateway is down: 2 to 50.
    public var multiplier = 3
    public var targets: [HealthTarget] = []
    public init() {}

    public static let intervals = 20...10_000
    public static let multipliers = 2...50
    /// Targets of one policy at the most.
    public static let mostTargets = 8
}

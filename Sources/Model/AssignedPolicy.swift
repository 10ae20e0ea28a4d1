/// A policy as one pod has it: what the policy claims, and which gateways it may use.
///
/// Kept on disk with the attachment, so that a live pod has it still when the policy is refused or cannot be read later.
public struct AssignedPolicy: Equatable, Sendable {
    public enum Standing: Equatable, Sendable {
        case inForce
        /// The policy is refused now, for this reason; the pod goes on with what the policy said before.
        case kept(String)
        /// The policy is refused, for this reason, and the pod never had it: what it claims is unreachable.
        case held(String)
    }
    public var source: EgressPolicy.Source { shared.content.source }
    public var name: String { shared.content.name }
    public var destinations: [IPNetwork] { shared.content.destinations }
    /// Taken away from this policy's own destinations only.
    public var exclusions: [IPNetwork] { shared.content.exclusions }
    /// Who may be its gateway, in the pod's order of preference.
    public var candidates: [GatewayCandidate] { shared.content.candidates }
    /// Which choice of candidates this is, where pods of one policy have different ones (`mode: spread`): the first two. Empty:
    /// all pods have the same.
    public var spread: String { shared.content.spread }
    /// A preferred candidate that is up again takes back what it had.
    public var takesBack: Bool { shared.content.takesBack }
    /// Between two echoes, milliseconds, and how many may be missing. Within the bounds of `HealthChecks`, whatever a file says.
    public var interval: Int { shared.content.interval }
    public var multiplier: Int { shared.content.multiplier }
    public var standing: Standing { shared.content.standing }
    /// The key of the policy's next hop: the policy's slot and the gateways that it may use. The active gateway may
    /// change under one number. Another set of gateways gets another number, so that no pod meets a gateway of another
    /// pod while pods and policies change at the same time.
    public var slot: String { shared.content.slot }
    /// The slot whatever the gateways are: an active gateway is sticky in one place.
    public var place: String { shared.content.place }
    /// Source and name.
    public var title: String { shared.content.title }
    /// What a table is numbered by: the slot, and all that it claims.
    public var content: String { shared.content.content }

    private struct Content: Equatable, Sendable {
        let source: EgressPolicy.Source
        let name: String
        let destinations: [IPNetwork]
        let exclusions: [IPNetwork]
        let candidates: [GatewayCandidate]
        let spread: String
        let takesBack: Bool
        let interval: Int
        let multiplier: Int
        let standing: Standing
        let slot: String
        let place: String
        let title: String
        let content: String
    }
    /// All of it, in one place that copies share: a plan has each policy many times.
    private final class Shared: Sendable {
        let content: Content
        init(_ content: Content) { self.content = content }
    }
    private let shared: Shared

    /// Equal for copies of one value, for as long as one of them is there.
    public var identity: ObjectIdentifier { ObjectIdentifier(shared) }

    public static func == (a: Self, b: Self) -> Bool { a.shared === b.shared || a.shared.content == b.shared.content }

    public init(
        source: EgressPolicy.Source, name: String, destinations: [IPNetwork], exclusions: [IPNetwork] = [],
        candidates: [GatewayCandidate] = [], spread: String = "", takesBack: Bool = false,
        interval: Int = HealthChecks().interval, multiplier: Int = HealthChecks().multiplier,
        standing: Standing = .inForce
    ) {
        var hash = Hash()
        // In an order of their own: which is preferred may change under one number.
        for candidate in candidates.map({ ($0.node, $0.egress.text) }).sorted(by: <) {
            hash.add(candidate.0)
            hash.add(candidate.1)
        }
        let title = "\(source.rawValue)/\(name)"
        let place = "\(title)#\(spread.isEmpty ? "0" : spread)"
        let slot = "\(place)@\(hash.text)"
        for network in destinations { hash.add(network) }
        hash.add("except")
        for network in exclusions { hash.add(network) }
        if case .held = standing { hash.add("held") }
        shared = Shared(
            Content(
                source: source, name: name, destinations: destinations, exclusions: exclusions, candidates: candidates,
                spread: spread, takesBack: takesBack, interval: interval.clamped(to: HealthChecks.intervals),
                multiplier: multiplier.clamped(to: HealthChecks.multipliers), standing: standing, slot: slot,
                place: place, title: title,
                content: "\(place)@\(hash.text)"))
    }

    /// FNV-1a, 64 bits (draft-eastlake-fnv, section 2): tells two contents of one policy apart.
    private struct Hash {
        private var value: UInt64 = 0xCBF2_9CE4_8422_2325
        private mutating func add(byte: UInt8) { value = (value ^ UInt64(byte)) &* 0x100_0000_01B3 }
        mutating func add(_ text: String) {
            for byte in text.utf8 { add(byte: byte) }
            add(byte: 0)
        }
        mutating func add(_ network: IPNetwork) {
            for byte in network.address.bytes { add(byte: byte) }
            add(byte: UInt8(network.prefixLength))
        }
        var text: String { String(value, radix: 16) }
    }

    /// The same content with another standing.
    public func with(_ standing: Standing) -> AssignedPolicy {
        AssignedPolicy(
            source: source, name: name, destinations: destinations, exclusions: exclusions, candidates: candidates,
            spread: spread, takesBack: takesBack, interval: interval, multiplier: multiplier, standing: standing)
    }

    /// The same policy for a pod with this choice of candidates.
    public func with(candidates: [GatewayCandidate], spread: String) -> AssignedPolicy {
        AssignedPolicy(
            source: source, name: name, destinations: destinations, exclusions: exclusions, candidates: candidates,
            spread: spread, takesBack: takesBack, interval: interval, multiplier: multiplier, standing: standing)
    }

    /// Names of the nodes that may be its gateway, each once, in order of preference.
    public var gateways: [String] {
        var seen: Set<String> = []
        return candidates.map(\.node).filter { seen.insert($0).inserted }
    }

    public var isHeld: Bool { if case .held = standing { true } else { false } }
    /// Why it is not simply in force; empty when it is.
    public var reason: String {
        switch standing {
        case .inForce: ""
        case .kept(let reason), .held(let reason): reason
        }
    }
    public func isOf(_ policy: EgressPolicy) -> Bool { source == policy.source && name == policy.name }
}

extension Int {
    fileprivate func clamped(to range: ClosedRange<Int>) -> Int {
        Swift.min(Swift.max(self, range.lowerBound), range.upperBound)
    }
}

import Model
import Planner

/// Which gateway each slot points to, and who decides it: this board alone, for as long as the slot exists. A value, without
/// clock and kernel; `FailOver` holds it under a lock.
public struct FailOverBoard: Sendable {
    /// One change of a slot.
    public struct Move: Equatable, Sendable {
        public let slot: LivenessPlan.Slot
        public let from: GatewayChoice
        public let to: GatewayChoice
        /// The next hop as it is to be now.
        public var hop: NextHop { NextHop(id: slot.id, target: slot.target(to)) }
    }

    /// By key.
    public private(set) var slots: [String: LivenessPlan.Slot] = [:]
    public private(set) var choices: [String: GatewayChoice] = [:]
    private var places: [String: GatewayCandidate] = [:]
    private var keyByID: [UInt32: String] = [:]
    /// Of the gateways that echoes go to.
    public var echoes = GatewayHealth()
    private var own: [GatewayEnd: GatewayHealth.State] = [:]
    /// Since when this node serves its own ways out, nanoseconds, and those that it has served for long enough to take back what
    /// they had: there is no echo to tell.
    private var ownSince: [GatewayEnd: Int64] = [:]
    private var ownSteady: Set<GatewayEnd> = []
    private var doubtful: Set<String> = []
    /// Slots of the plan that was prepared last, all of which are known since, and of the one that was settled last, which
    /// are all there are; nil: neither is so any more.
    private var prepared: [LivenessPlan.Slot]?
    private var settled: [LivenessPlan.Slot]?

    public init() {}

    /// All that is known.
    public var health: GatewayHealth {
        var health = echoes
        health.doubtful = doubtful
        for (end, state) in own { health.states[end] = state }
        health.steady.formUnion(ownSteady)
        return health
    }

    /// When time alone changes something, nanoseconds of the same clock as `now` elsewhere; nil: it does not.
    public var nextChange: Int64? {
        ownSince.filter { !ownSteady.contains($0.key) }.values.min().map { $0 + EchoSession.steadyAfter }
    }

    /// For the next plan.
    public var previous: GatewayActivation.Previous {
        var previous = GatewayActivation.Previous()
        previous.decided = choices
        previous.places = places
        return previous
    }

    /// Before a plan is carried out: what it has new is decided as it says, unless that is down by now; what was decided stays.
    ///
    /// - Parameter now: nanoseconds of one clock.
    /// - Returns: whether something new is elsewhere than the plan has it.
    @discardableResult
    public mutating func prepare(_ plan: LivenessPlan, now: Int64 = 0) -> Bool {
        var isAhead = false
        own = plan.own
        let up = own.filter { $0.value == .up }
        ownSince = up.mapValues { _ in now }.merging(ownSince.filter { up[$0.key] != nil }) { _, before in before }
        ownSteady.formIntersection(up.keys)
        doubtful = plan.doubtful
        if plan.slots == prepared { return false }
        settled = nil
        prepared = plan.slots
        let health = health
        for slot in plan.slots {
            slots[slot.key] = slot
            keyByID[slot.id] = slot.key
            let isKnown =
                switch choices[slot.key] {
                case .gateway(let candidate)?: slot.candidates.contains { $0.candidate == candidate }
                case .allDown?: true
                case nil: false
                }
            if isKnown { continue }
            let candidates = slot.candidates.map(\.candidate)
            let choice =
                candidates.isEmpty
                ? slot.planned
                : GatewayActivation.choose(
                    candidates, takesBack: slot.takesBack, health: health, previous: slot.planned.candidate)
            isAhead = isAhead || choice != slot.planned
            set(slot, choice)
        }
        return isAhead
    }

    /// After a plan was carried out: what it does not have is over.
    ///
    /// - Parameter inKernel: numbers of next hops that are still there: pods may use them, so they are switched still.
    public mutating func settle(_ plan: LivenessPlan, inKernel: Set<UInt32> = []) {
        if plan.slots == settled { return }
        if plan.slots != prepared { prepared = nil }
        let keys = Set(plan.slots.map(\.key))
        for (key, slot) in slots where !keys.contains(key) && !inKernel.contains(slot.id) {
            slots[key] = nil
            choices[key] = nil
            keyByID[slot.id] = nil
        }
        let kept = Set(plan.slots.map(\.place)).union(slots.values.map(\.place))
        places = places.filter { kept.contains($0.key) }
        if inKernel.isEmpty { settled = plan.slots }
    }

    /// A next hop as it should be at this moment, whatever an older plan contains.
    public func current(_ hop: NextHop) -> NextHop {
        guard let key = keyByID[hop.id], let slot = slots[key], let choice = choices[key] else { return hop }
        return NextHop(id: hop.id, target: slot.target(choice))
    }

    /// What has to change for the health that is known now.
    ///
    /// - Parameter now: nanoseconds of the clock of `prepare`.
    public mutating func decide(now: Int64 = 0) -> [Move] {
        for (end, since) in ownSince where now - since >= EchoSession.steadyAfter { ownSteady.insert(end) }
        let health = health
        var moves: [Move] = []
        for slot in slots.values.sorted(by: { $0.id < $1.id }) {
            guard let before = choices[slot.key], !slot.candidates.isEmpty else { continue }
            let after = GatewayActivation.choose(
                slot.candidates.map(\.candidate), takesBack: slot.takesBack, health: health,
                previous: before.candidate)
            if after == before { continue }
            set(slot, after)
            moves.append(Move(slot: slot, from: before, to: after))
        }
        return moves
    }

    private mutating func set(_ slot: LivenessPlan.Slot, _ choice: GatewayChoice) {
        choices[slot.key] = choice
        if let candidate = choice.candidate { places[slot.place] = candidate }
    }
}

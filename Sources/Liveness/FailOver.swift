import CLinux
import Model
import Netlink
import Planner
import Synchronization

/// Switches slots to other gateways, off the helper's main path: a thread and a netlink socket of its own, one message for each
/// next hop. Nobody else decides where a slot points, so no older plan can overwrite it.
public final class FailOver: Sendable {
    /// Something that has happened.
    public struct Report: Sendable {
        public let move: FailOverBoard.Move
        /// Whose echoes were silent for how long, nanoseconds; nil: nothing was silent (a gateway took back, or one came up).
        public let silence: Int64?
        /// From the decision to the kernel's answer, nanoseconds.
        public let switching: Int64
        /// What the kernel refused; empty: nothing.
        public let refusal: String
    }

    private struct State: ~Copyable {
        var board = FailOverBoard()
        /// Moves that the kernel has refused: sent again when the next plan was carried out.
        var refused: Set<String> = []
        /// Since when each slot is where it is, nanoseconds of CLOCK_MONOTONIC.
        var since: [String: Int64] = [:]
        /// What was prepared last.
        var plan = LivenessPlan()
        var lastHeard: [GatewayEnd: Int64] = [:]
        let socket: NetlinkSocket
        init(socket: consuming sending NetlinkSocket) { self.socket = socket }
    }
    private let state: Mutex<State>
    private let wakeup: Int32
    /// Whose notifications are our own changes.
    public let port: UInt32
    public let reports: AsyncStream<[Report]>
    private let report: AsyncStream<[Report]>.Continuation
    /// Signals that a gateway has come up or gone down, whether a slot was switched or not. One reader.
    public let news: AsyncStream<Void>
    private let newsSignal: AsyncStream<Void>.Continuation

    /// - Throws: where the kernel gives no socket.
    public init() throws {
        let socket = try NetlinkSocket(bus: NETLINK_ROUTE)
        port = socket.port
        state = Mutex(State(socket: socket))
        wakeup = culvert_wakeup_make()
        guard wakeup >= 0 else { throw NetlinkError(operation: "eventfd", code: -wakeup) }
        (reports, report) = AsyncStream.makeStream(of: [Report].self)
        (news, newsSignal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    deinit { close(wakeup) }

    /// Begins to switch.
    ///
    /// - Throws: where the system gives no thread.
    public func start() throws {
        try BlockingThread.start("fail-over") { [self] in
            while true {
                // Time alone makes a way out of this node's own steady.
                let until = state.withLock { $0.board.nextChange }
                _ = culvert_wakeup_wait(wakeup, until ?? .max)
                switchOver()
            }
        }
    }

    /// Takes new results of the echoes.
    ///
    /// - Parameter lastHeard: when each gateway was last heard from, in nanoseconds of CLOCK_MONOTONIC.
    public func healthChanged(_ health: GatewayHealth, lastHeard: [GatewayEnd: Int64]) {
        let isNews = state.withLock {
            let isNews = $0.board.echoes.states != health.states
            $0.board.echoes = health
            $0.lastHeard = lastHeard
            return isNews
        }
        culvert_wakeup_signal(wakeup)
        if isNews { newsSignal.yield() }
    }

    public var previous: GatewayActivation.Previous { state.withLock { $0.board.previous } }
    public var health: GatewayHealth { state.withLock { $0.board.health } }
    /// Since when each slot is where it is, seconds ago, by key.
    public var ages: [String: Double] {
        let now = culvert_monotonic_nanoseconds()
        return state.withLock { $0.since.mapValues { Double(now - $0) / 1e9 } }
    }

    /// Before a plan is carried out. What this node serves itself and what Kubernetes thinks of others counts from now on,
    /// whatever becomes of the rest of the plan.
    ///
    /// - Returns: whether something that is new in the plan is elsewhere than the plan has it, because the echoes know better.
    @discardableResult
    public func prepare(_ plan: LivenessPlan) -> Bool {
        let now = culvert_monotonic_nanoseconds()
        let (isAhead, isNews) = state.withLock { state in
            for slot in plan.slots where state.since[slot.key] == nil { state.since[slot.key] = now }
            defer { state.plan = plan }
            return (state.board.prepare(plan, now: now), state.plan != plan)
        }
        if isNews || isAhead { culvert_wakeup_signal(wakeup) }
        return isAhead
    }

    /// After a plan was carried out, or as much of it as the kernel let us: what the kernel has refused may be accepted now.
    public func retry() { if state.withLock({ !$0.refused.isEmpty }) { culvert_wakeup_signal(wakeup) } }

    /// Forgets what a plan does not have.
    ///
    /// - Parameter inKernel: numbers of next hops that are still there, because not all of the plan could be carried out.
    public func settle(_ plan: LivenessPlan, inKernel: Set<UInt32> = []) {
        state.withLock {
            $0.board.settle(plan, inKernel: inKernel)
            let slots = $0.board.slots
            $0.since = $0.since.filter { slots[$0.key] != nil }
            $0.refused = $0.refused.filter { slots[$0] != nil }
        }
    }

    /// Sets groups as they are to be at this moment. No slot is switched meanwhile.
    ///
    /// - Returns: them as they were set.
    public func set(_ hops: [NextHop], _ send: ([NextHop]) -> Void) -> [NextHop] {
        state.withLock { state in
            let current = hops.map { state.board.current($0) }
            send(current)
            return current
        }
    }

    private func switchOver() {
        let begin = culvert_monotonic_nanoseconds()
        let reports = state.withLock { state -> [Report] in
            let moves = state.board.decide(now: begin)
            var hops = moves.map(\.hop)
            for key in state.refused {
                if let slot = state.board.slots[key], !moves.contains(where: { $0.slot.key == key }) {
                    hops.append(state.board.current(NextHop(id: slot.id, target: slot.blackhole)))
                }
            }
            if hops.isEmpty { return [] }
            var refusals: [UInt32: String] = [:]
            do {
                for (place, error) in try state.socket.execute(hops.map { NextHopRequest.move($0) }) {
                    refusals[hops[place].id] = "\(error)"
                }
            } catch { for hop in hops { refusals[hop.id] = "\(error)" } }
            state.refused = Set(state.board.slots.values.filter { refusals[$0.id] != nil }.map(\.key))
            let end = culvert_monotonic_nanoseconds()
            return moves.map { move in
                state.since[move.slot.key] = end
                let silent = move.from.candidate.map { GatewayEnd($0) }
                let isDown = silent.map { state.board.health.state($0) == .down } ?? false
                return Report(
                    move: move, silence: isDown ? silent.flatMap { state.lastHeard[$0] }.map { begin - $0 } : nil,
                    switching: end - begin, refusal: refusals[move.slot.id] ?? "")
            }
        }
        if !reports.isEmpty { report.yield(reports) }
    }
}

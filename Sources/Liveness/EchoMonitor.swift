import CLinux
import Model
import Netlink
import Planner
import Synchronization

/// Sends echoes to this node's gateways and judges the gateways by them, on a dedicated thread. So the other work of
/// this helper, and the state of other helpers, do not affect the result.
public final class EchoMonitor: Sendable {
    /// One session, for people.
    public struct Status: Sendable {
        public let session: LivenessPlan.Session
        public let state: GatewayHealth.State
        /// Nanoseconds.
        public let roundTrip: Int64
        public let sent: UInt64
        public let answered: UInt64
        public let proofs: Int
        public let failedProofs: Int
        /// Nanoseconds; nil: never.
        public let sinceLastHeard: Int64?
    }
    public struct Snapshot: Sendable {
        public var sessions: [Status] = []
        /// Why no echo can be sent; empty where it can.
        public var obstacle = ""
        /// How much later than planned the thread woke up, nanoseconds: the worst of the last minute, and of all time.
        public var worstLateness: Int64 = 0
        public var worstLatenessEver: Int64 = 0
        /// Datagrams at the port of echoes that were none of ours.
        public var strangers: UInt64 = 0
        public init() {}
    }

    private struct Shared {
        var plan: LivenessPlan?
        var snapshot = Snapshot()
    }
    private let shared = Mutex(Shared())
    private let failOver: FailOver
    private let wakeup: Int32

    /// - Throws: where the system gives no descriptor.
    public init(failOver: FailOver) throws {
        self.failOver = failOver
        wakeup = culvert_wakeup_make()
        guard wakeup >= 0 else { throw NetlinkError(operation: "eventfd", code: -wakeup) }
    }

    deinit { close(wakeup) }

    /// Begins to send.
    ///
    /// - Throws: where the system gives no thread.
    public func start() throws {
        try BlockingThread.start("echoes") { [self] in
            var loop = Loop(monitor: self)
            while true { loop.turn() }
        }
    }

    /// Watches these gateways from now on. To be called when the kernel has what their echoes are routed by.
    public func follow(_ plan: LivenessPlan) {
        let isNews = shared.withLock { shared in
            if shared.plan == plan { return false }
            shared.plan = plan
            return true
        }
        if isNews { culvert_wakeup_signal(wakeup) }
    }

    public var snapshot: Snapshot { shared.withLock { $0.snapshot } }

    /// What the thread has of its own.
    private struct Loop {
        let monitor: EchoMonitor
        var plan = LivenessPlan()
        var sessions: [GatewayEnd: EchoSession] = [:]
        var sockets = EchoSockets()
        /// An echo of any session has ever come back. Until then nothing is down: perhaps something between the nodes drops
        /// echoes and nothing else.
        var hasProven = false
        var wake: Int64 = 0
        var strangers: UInt64 = 0
        var lateness: (minute: Int64, worst: Int64, last: Int64, ever: Int64) = (0, 0, 0, 0)
        var published = GatewayHealth()
        var nextSnapshot: Int64 = 0

        init(monitor: EchoMonitor) { self.monitor = monitor }

        /// One wake-up: first what has come in, then the judgement, then what is to be sent.
        mutating func turn() {
            let isSignalled = culvert_wakeup_wait(monitor.wakeup, wake) == 1
            let now = culvert_monotonic_nanoseconds()
            if isSignalled { take(now) } else { noteLateness(now) }
            if sessions.isEmpty {
                wake = now + 60_000_000_000
                sockets.close()
                publish(now)
                return
            }
            receive(now)
            judge(now)
            send(now)
            publish(now)
            // While there is an obstacle, nothing is sent and no gateway is judged. The next plan shows when the
            // obstacle is gone.
            let nextSend = plan.obstacle.isEmpty ? sessions.values.map(\.nextSend).min() ?? .max : .max
            let deadline = sessions.values.compactMap(\.deadline).filter { $0 > now }.min() ?? .max
            wake = max(now + 1_000_000, min(nextSend, deadline, now + 1_000_000_000))
        }

        private mutating func take(_ now: Int64) {
            guard let new = monitor.shared.withLock({ $0.plan }), new != plan else { return }
            if new.destination != plan.destination || new.source != plan.source { sockets.close() }
            plan = new
            sockets.follow(plan.sessions)
            var kept: [GatewayEnd: EchoSession] = [:]
            for wanted in plan.sessions {
                if var session = sessions[wanted.end], session.plan.number == wanted.number {
                    session.follow(wanted, now: now)
                    kept[wanted.end] = session
                } else {
                    kept[wanted.end] = EchoSession(wanted, secret: .random(word: sockets.word), now: now)
                }
            }
            sessions = kept
        }

        private mutating func noteLateness(_ now: Int64) {
            guard wake > 0, !sessions.isEmpty else { return }
            let late = max(0, now - wake)
            if now - lateness.minute > 60_000_000_000 { lateness = (now, 0, lateness.worst, lateness.ever) }
            lateness.worst = max(lateness.worst, late)
            lateness.ever = max(lateness.ever, late)
            guard late > 25_000_000 else { return }
            for end in sessions.keys { sessions[end]?.wasLate(now: now) }
        }

        private mutating func receive(_ now: Int64) {
            // Receive times are of another clock, which may be set: an answer came before now, and not before the last turn
            // began to wait.
            let offset = culvert_realtime_nanoseconds() - now
            let byNumber = Dictionary(
                sessions.map { ($0.value.plan.number, $0.key) }, uniquingKeysWith: { first, _ in first })
            sockets.receive { packet, source, ttl, received in
                guard let packet, let end = byNumber[packet.session] else {
                    strangers += 1
                    return
                }
                let time = received == 0 ? now : min(now, max(now - 1_000_000_000, received - offset))
                if ttl == 255 {
                    sessions[end]?.looped(packet, now: now)
                } else {
                    let isTranslated = source != plan.source?.v4Value
                    if sessions[end]?.heard(packet, at: time, isTranslated: isTranslated) == true { hasProven = true }
                }
            }
        }

        private mutating func judge(_ now: Int64) {
            if !obstacle.isEmpty {
                for end in sessions.keys { sessions[end]?.forget(now: now) }
                return
            }
            for end in sessions.keys where hasProven { _ = sessions[end]?.judge(now: now) }
        }

        private var obstacle: String { plan.obstacle.isEmpty ? sockets.problem : plan.obstacle }

        private mutating func send(_ now: Int64) {
            guard plan.obstacle.isEmpty, let source = plan.source, let destination = plan.destination else { return }
            sockets.open(source: source, destination: destination, now: now)
            var due: [EchoPacket] = []
            for end in sessions.keys where (sessions[end]?.nextSend ?? .max) <= now + 2_000_000 {
                if let packet = sessions[end]?.echo(now: now) { due.append(packet) }
                if let proof = sessions[end]?.proof { due.append(proof) }
            }
            sockets.send(due, to: destination)
        }

        private mutating func publish(_ now: Int64) {
            var health = GatewayHealth()
            var lastHeard: [GatewayEnd: Int64] = [:]
            for session in sessions.values {
                let isSteady = session.isSteady(now: now)
                for end in session.plan.ends {
                    health.states[end] = session.state
                    if isSteady { health.steady.insert(end) }
                    if session.lastHeard > 0 { lastHeard[end] = session.lastHeard }
                }
            }
            let isNews = health != published
            if isNews {
                published = health
                monitor.failOver.healthChanged(health, lastHeard: lastHeard)
            }
            guard isNews || now >= nextSnapshot else { return }
            nextSnapshot = now + 500_000_000
            var snapshot = Snapshot()
            snapshot.obstacle = sessions.isEmpty ? "" : obstacle
            snapshot.worstLateness = max(lateness.worst, lateness.last)
            snapshot.worstLatenessEver = lateness.ever
            snapshot.strangers = strangers + sockets.dropped
            snapshot.sessions = sessions.values.map { session in
                Status(
                    session: session.plan, state: session.state, roundTrip: session.roundTrip, sent: session.sequence,
                    answered: session.answered, proofs: session.proofs, failedProofs: session.failedProofs,
                    sinceLastHeard: session.lastHeard > 0 ? now - session.lastHeard : nil)
            }.sorted { $0.session.number < $1.session.number }
            monitor.shared.withLock { $0.snapshot = snapshot }
        }
    }
}

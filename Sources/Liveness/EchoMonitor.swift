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

    /// What the thread has of its own. With 50 gateways it handles a thousand packets a second, so what is done for each of
    /// them, and at each wake-up, allocates nothing and hashes no text.
    private struct Loop {
        /// What the fail-over knows of one session.
        struct Told: Equatable {
            let state: GatewayHealth.State
            let isSteady: Bool
        }

        let monitor: EchoMonitor
        var plan = LivenessPlan()
        /// In the order of the plan.
        var sessions: [EchoSession] = []
        /// A session's number to its place in `sessions`.
        var places: [UInt32: Int] = [:]
        var sockets = EchoSockets()
        /// What is sent at this wake-up; kept from one to the next, so that no memory is asked for.
        var due: [EchoPacket] = []
        /// An echo of any session has ever come back. Until then nothing is down: perhaps something between the nodes drops
        /// echoes and nothing else.
        var hasProven = false
        var wake: Int64 = 0
        var strangers: UInt64 = 0
        var lateness: (minute: Int64, worst: Int64, last: Int64, ever: Int64) = (0, 0, 0, 0)
        var published = GatewayHealth()
        /// What `published` says, in the order of `sessions`; nil: the plan has changed since then.
        var told: [Told]?
        var nextSnapshot: Int64 = 0

        init(monitor: EchoMonitor) { self.monitor = monitor }

        /// One wake-up: first what has come in, then the judgement, then what is to be sent.
        mutating func turn() {
            let isSignalled = culvert_wakeup_wait(monitor.wakeup, wake) == 1
            let now = culvert_monotonic_nanoseconds()
            noteLateness(now)
            if isSignalled { take(now) }
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
            wake = max(now + 1_000_000, min(nextWork(now), now + 1_000_000_000))
        }

        /// When something is to be sent or judged next.
        private func nextWork(_ now: Int64) -> Int64 {
            // While there is an obstacle, nothing is sent and no gateway is judged. The next plan shows when the
            // obstacle is gone.
            let sends = plan.obstacle.isEmpty
            var next = Int64.max
            for session in sessions {
                if sends { next = min(next, session.nextSend) }
                if let deadline = session.deadline, deadline > now { next = min(next, deadline) }
            }
            return next
        }

        private mutating func take(_ now: Int64) {
            guard let new = monitor.shared.withLock({ $0.plan }), new != plan else { return }
            if new.destination != plan.destination || new.source != plan.source { sockets.close() }
            plan = new
            sockets.follow(plan.sessions)
            sessions = plan.sessions.map { wanted in
                if let place = places[wanted.number], sessions[place].plan.end == wanted.end {
                    var session = sessions[place]
                    session.follow(wanted, now: now)
                    return session
                }
                return EchoSession(wanted, secret: .random(word: sockets.word), now: now)
            }
            places = Dictionary(
                zip(sessions.map(\.plan.number), sessions.indices), uniquingKeysWith: { first, _ in first })
            told = nil
        }

        private mutating func noteLateness(_ now: Int64) {
            guard wake > 0, !sessions.isEmpty else { return }
            let late = max(0, now - wake)
            if now - lateness.minute > 60_000_000_000 { lateness = (now, 0, lateness.worst, lateness.ever) }
            lateness.worst = max(lateness.worst, late)
            lateness.ever = max(lateness.ever, late)
            guard late > 25_000_000 else { return }
            for place in sessions.indices { sessions[place].wasLate(now: now) }
        }

        private mutating func receive(_ now: Int64) {
            // Receive times are of another clock, which may be set: an answer came before now, and not before the last turn
            // began to wait.
            let offset = culvert_realtime_nanoseconds() - now
            sockets.receive { packet, source, ttl, received in
                guard let packet, let place = places[packet.session] else {
                    strangers += 1
                    return
                }
                let time = received == 0 ? now : min(now, max(now - 1_000_000_000, received - offset))
                if ttl == 255 {
                    sessions[place].looped(packet, now: now)
                } else {
                    let isTranslated = source != plan.source?.v4Value
                    if sessions[place].heard(packet, at: time, isTranslated: isTranslated) { hasProven = true }
                }
            }
        }

        private mutating func judge(_ now: Int64) {
            if !obstacle.isEmpty {
                for place in sessions.indices { sessions[place].forget(now: now) }
                return
            }
            for place in sessions.indices where hasProven { _ = sessions[place].judge(now: now) }
        }

        private var obstacle: String { plan.obstacle.isEmpty ? sockets.problem : plan.obstacle }

        private mutating func send(_ now: Int64) {
            guard plan.obstacle.isEmpty, let source = plan.source, let destination = plan.destination else { return }
            sockets.open(source: source, destination: destination, now: now)
            due.removeAll(keepingCapacity: true)
            for place in sessions.indices where sessions[place].nextSend <= now + 2_000_000 {
                due.append(sessions[place].echo(now: now))
                if let proof = sessions[place].proof { due.append(proof) }
            }
            sockets.send(due, to: destination)
        }

        private mutating func publish(_ now: Int64) {
            let isNews = isNews(now) && tell(now)
            guard isNews || now >= nextSnapshot else { return }
            nextSnapshot = now + 500_000_000
            var snapshot = Snapshot()
            snapshot.obstacle = sessions.isEmpty ? "" : obstacle
            snapshot.worstLateness = max(lateness.worst, lateness.last)
            snapshot.worstLatenessEver = lateness.ever
            snapshot.strangers = strangers + sockets.dropped
            snapshot.sessions = sessions.map { session in
                Status(
                    session: session.plan, state: session.state, roundTrip: session.roundTrip, sent: session.sequence,
                    answered: session.answered, proofs: session.proofs, failedProofs: session.failedProofs,
                    sinceLastHeard: session.lastHeard > 0 ? now - session.lastHeard : nil)
            }
            monitor.shared.withLock { $0.snapshot = snapshot }
        }

        /// Whether anything differs from what the fail-over was told. Nearly always nothing does.
        private func isNews(_ now: Int64) -> Bool {
            guard let told, told.count == sessions.count else { return true }
            for (session, told) in zip(sessions, told)
            where session.state != told.state || session.isSteady(now: now) != told.isSteady { return true }
            return false
        }

        /// - Returns: whether it was news for the fail-over.
        private mutating func tell(_ now: Int64) -> Bool {
            var health = GatewayHealth()
            var lastHeard: [GatewayEnd: Int64] = [:]
            told = sessions.map { Told(state: $0.state, isSteady: $0.isSteady(now: now)) }
            for session in sessions {
                let isSteady = session.isSteady(now: now)
                for end in session.plan.ends {
                    health.states[end] = session.state
                    if isSteady { health.steady.insert(end) }
                    if session.lastHeard > 0 { lastHeard[end] = session.lastHeard }
                }
            }
            guard health != published else { return false }
            published = health
            monitor.failOver.healthChanged(health, lastHeard: lastHeard)
            return true
        }
    }
}

import Planner

/// The state of one gateway as its echoes show it. A value without a clock: times are passed in, as nanoseconds of one
/// clock.
public struct EchoSession: Sendable {
    public private(set) var plan: LivenessPlan.Session
    public let secret: EchoPacket.Secret
    public private(set) var state = GatewayHealth.State.unknown
    /// Of the last echo that was sent; 0: none was.
    public private(set) var sequence: UInt64 = 0
    /// Of the last echo that came back; 0: none did.
    public private(set) var answered: UInt64 = 0
    /// When it did.
    public private(set) var lastHeard: Int64 = 0
    public private(set) var upSince: Int64 = 0
    public private(set) var nextSend: Int64
    /// From an echo to its answer, the last one; 0: none came back.
    public private(set) var roundTrip: Int64 = 0
    /// How many echoes came back that the gateway had translated, and how many that it should have.
    public private(set) var proofs = 0
    public private(set) var failedProofs = 0

    private let started: Int64
    private var sentAt = [Int64](repeating: 0, count: EchoSession.remembered)
    private var grace: Int64 = 0

    /// No answer is given more time than this, nanoseconds: a round trip that is longer was measured by a thread that was late.
    private static let longestRoundTrip: Int64 = 1_000_000_000
    /// Echoes whose time of sending is kept.
    static let remembered = 64
    /// How long a gateway that was never heard from is not counted as down.
    public static let firstSilence: Int64 = 3_000_000_000
    /// For so long a gateway must be up before it takes back what it had.
    public static let steadyAfter: Int64 = 10_000_000_000
    /// Beside one echo in so many a second one is sent, which the gateway translates.
    static let proving: UInt64 = 50
    /// The last proof that came back, by its sequence number; 0: none did.
    private var lastProof: UInt64 = 0

    private var interval: Int64 { Int64(plan.interval) * 1_000_000 }
    private var detection: Int64 { interval * Int64(plan.multiplier) }

    public init(_ plan: LivenessPlan.Session, secret: EchoPacket.Secret, now: Int64) {
        self.plan = plan
        self.secret = secret
        started = now
        nextSend = now
    }

    /// The same session with another interval.
    public mutating func follow(_ plan: LivenessPlan.Session, now: Int64) {
        guard plan != self.plan else { return }
        self.plan = plan
        nextSend = min(nextSend, now + interval)
        grace = max(grace, now + detection + roundTrip)
    }

    /// The next echo, to be sent now.
    public mutating func echo(now: Int64) -> EchoPacket {
        sequence += 1
        sentAt[Int(sequence % UInt64(EchoSession.remembered))] = now
        // All sessions of one interval send at once, which costs one wake-up.
        nextSend = (now / interval + 1) * interval
        return EchoPacket(session: plan.number, sequence: sequence, secret: secret)
    }

    /// To be sent beside the last echo, for the gateway to translate; nil: nothing is. Its flow is an old one, which may live
    /// where new ones vanish (squat/kilo#489): it shows that the gateway translates, and never that the gateway lives.
    public var proof: EchoPacket? {
        guard plan.isTranslated, sequence > 0, sequence % EchoSession.proving == 0 else { return nil }
        return EchoPacket(session: plan.number, sequence: sequence, secret: secret, isProof: true)
    }

    /// An echo has come back. One that is too old, repeated or never sent changes nothing.
    ///
    /// - Parameter isTranslated: it came with another source than it was sent with.
    /// - Returns: whether the gateway was not up before.
    public mutating func heard(_ packet: EchoPacket, at time: Int64, isTranslated: Bool) -> Bool {
        guard isOurs(packet) else { return false }
        if packet.isProof {
            lastProof = packet.sequence
            if isTranslated { proofs += 1 } else { failedProofs += 1 }
            return false
        }
        answered = packet.sequence
        lastHeard = max(lastHeard, time)
        roundTrip = min(
            max(0, time - sentAt[Int(packet.sequence % UInt64(EchoSession.remembered))]), EchoSession.longestRoundTrip)
        guard state != .up else { return false }
        state = .up
        upSince = time
        return true
    }

    /// An echo has come back that never left this node, because its rule or its route is missing. That shows nothing
    /// about the gateway.
    public mutating func looped(_ packet: EchoPacket, now: Int64) {
        guard isOurs(packet), !packet.isProof else { return }
        answered = packet.sequence
        grace = max(grace, now + detection)
    }

    private func isOurs(_ packet: EchoPacket) -> Bool {
        packet.session == plan.number && packet.secret == secret
            && packet.sequence > (packet.isProof ? lastProof : answered)
            && (!packet.isProof || packet.sequence % EchoSession.proving == 0)
            && packet.sequence <= sequence && sequence - packet.sequence < UInt64(EchoSession.remembered)
    }

    /// Whoever judges was late: what should have been sent may not have been, so the gateway gets one interval more, and the time
    /// that an answer takes.
    public mutating func wasLate(now: Int64) { grace = max(grace, now + interval + roundTrip) }

    /// The state is not known any more.
    public mutating func forget(now: Int64) {
        state = .unknown
        grace = max(grace, now + EchoSession.firstSilence)
    }

    /// When it has to be judged next, if no echo comes back until then; nil: never.
    public var deadline: Int64? {
        switch state {
        case .up: max(lastHeard + detection, grace)
        case .unknown: max(started + EchoSession.firstSilence, grace)
        case .down: nil
        }
    }

    /// Down, if nothing was heard for the whole detection time (RFC 5880, section 6.8.4) although enough was sent.
    ///
    /// - Returns: whether it has become down.
    public mutating func judge(now: Int64) -> Bool {
        guard let deadline, now >= deadline else { return false }
        // An answer takes its time: only what was sent an interval ago (a tenth less, for clocks and wake-ups) should be back.
        let unanswered = (0..<UInt64(min(EchoSession.remembered, plan.multiplier + 1))).count { age in
            sequence > answered + age
                && sentAt[Int((sequence - age) % UInt64(EchoSession.remembered))] <= now - interval * 9 / 10
        }
        guard unanswered >= plan.multiplier - 1 else { return false }
        state = .down
        return true
    }

    public func isSteady(now: Int64) -> Bool { state == .up && now - upSince >= EchoSession.steadyAfter }
}

import Model
import TestSupport
import Testing

@testable import Liveness
@testable import Planner

/// When a gateway is up, and when it is down: by a clock that the test turns.
struct EchoSessionTests {
    static let millisecond: Int64 = 1_000_000
    static let secret = EchoPacket.Secret(high: 1, low: 2)
    static func plan(interval: Int = 100, multiplier: Int = 3) -> LivenessPlan.Session {
        .init(
            end: GatewayEnd(node: "n2", identity: .defaultAddress), number: 7, interval: interval,
            multiplier: multiplier, isTranslated: true)
    }

    /// A session, and the gateway at the other end: answers after `delay` while it is alive.
    struct World {
        var session: EchoSession
        var now: Int64 = 5_000_000_000
        var delay: Int64 = EchoSessionTests.millisecond
        var isAlive = true
        /// Old flows live where new ones vanish.
        var answersProofs = true
        var under: [(at: Int64, packet: EchoPacket)] = []
        var changes: [(at: Int64, state: GatewayHealth.State)] = []

        init(_ plan: LivenessPlan.Session = EchoSessionTests.plan()) {
            session = EchoSession(plan, secret: EchoSessionTests.secret, now: now)
        }

        /// As the thread does, every millisecond.
        mutating func run(_ milliseconds: Int, wakesUp: (Int64) -> Bool = { _ in true }) {
            for _ in 0..<milliseconds {
                now += EchoSessionTests.millisecond
                guard wakesUp(now) else { continue }
                let before = session.state
                for answer in under where answer.at <= now {
                    _ = session.heard(answer.packet, at: answer.at, isTranslated: answer.packet.isProof)
                }
                under.removeAll { $0.at <= now }
                _ = session.judge(now: now)
                if session.nextSend <= now {
                    let packet = session.echo(now: now)
                    if isAlive { under.append((now + delay, packet)) }
                    if answersProofs, let proof = session.proof { under.append((now + delay, proof)) }
                }
                if session.state != before { changes.append((now, session.state)) }
            }
        }
    }

    @Test func aGatewayThatAnswersIsUpWithItsFirstEcho() {
        var world = World()
        world.run(5)
        #expect(world.session.state == .up)
        world.run(60_000)
        #expect(world.changes.map(\.state) == [.up])
        #expect(world.session.sequence > 590 && world.session.proofs > 10 && world.session.failedProofs == 0)
    }

    @Test(arguments: 0..<100) func aGatewayThatDiesIsDownAfterTheDetectionTime(_ moment: Int) {
        var world = World()
        world.run(1000 + moment)
        let death = world.now
        world.isAlive = false
        // What is on its way when it dies is lost too.
        world.under = []
        world.run(1000)
        #expect(world.session.state == .down)
        let after = (world.changes[1].at - death) / Self.millisecond
        #expect((190...300).contains(after), "\(after) ms")
        world.isAlive = true
        let back = world.now
        world.run(200)
        #expect(world.session.state == .up && world.changes[2].at - back <= 102 * Self.millisecond)
    }

    /// A gateway that is far away: the helper is frozen for a while, and judges before the first answer can be back.
    @Test(arguments: [40, 90, 150, 280], [60, 70, 100, 130, 150, 199])
    func aPauseIsNoFaultHoweverFarTheGatewayIs(_ delay: Int64, _ moment: Int) {
        for interval in [20, 100] {
            var world = World(Self.plan(interval: interval))
            world.delay = delay * Self.millisecond
            world.run(2000 + moment)
            // Wakes up late, by much and by little; what came in meanwhile has its own time.
            for pause: Int64 in [20_000, 80] {
                world.now += pause * Self.millisecond
                world.session.wasLate(now: world.now)
                world.run(2000)
            }
            // A policy with a shorter interval comes.
            world.session.follow(Self.plan(interval: 20), now: world.now)
            world.run(2000)
            #expect(world.changes.map(\.state) == [.up], "\(interval) ms")
            world.isAlive = false
            world.run(1500)
            #expect(world.session.state == .down)
        }
    }

    /// New flows vanish and old ones live (squat/kilo#489): the proof's flow is an old one.
    @Test(arguments: [3, 30, 50]) func aProofIsNoSignOfLife(_ multiplier: Int) {
        var world = World(Self.plan(multiplier: multiplier))
        world.run(6000)
        #expect(world.session.proofs == 1)
        world.isAlive = false
        world.under = []
        let death = world.now
        world.run(60_000)
        #expect(world.changes.map(\.state) == [.up, .down])
        #expect((world.changes.dropFirst().first?.at ?? .max) - death <= Int64(multiplier) * 100 * Self.millisecond)
        #expect(world.session.proofs == 13 && world.session.failedProofs == 0)
        #expect(world.session.lastHeard <= death)
    }

    /// A gateway that answers and does not translate is up, and is told of; a proof counts once.
    @Test func aProofIsCountedOnceAndChangesNothingElse() {
        var session = EchoSession(Self.plan(), secret: Self.secret, now: 0)
        #expect(session.proof == nil)
        for _ in 0..<50 { _ = session.echo(now: 1) }
        let proof = session.proof!
        #expect(proof.isProof && proof.sequence == 50)
        for isTranslated in [false, true, true] {
            let isNews = session.heard(proof, at: 2, isTranslated: isTranslated)
            #expect(!isNews)
        }
        session.looped(proof, now: 3)
        #expect(session.failedProofs == 1 && session.proofs == 0)
        #expect(session.state == .unknown && session.answered == 0 && session.lastHeard == 0)
        // One that was never sent.
        let isNews = session.heard(
            EchoPacket(session: 7, sequence: 49, secret: Self.secret, isProof: true), at: 2, isTranslated: true)
        #expect(!isNews && session.proofs == 0)
        _ = session.echo(now: 4)
        #expect(session.proof == nil)
    }

    @Test func neverSeenIsNotDownForThreeSeconds() {
        var world = World()
        world.isAlive = false
        world.run(2999)
        #expect(world.session.state == .unknown)
        world.run(2)
        #expect(world.session.state == .down)
    }

    /// A way of 250 ms is as good as one of 1 ms.
    @Test func aLongWayIsNoFault() {
        var world = World()
        world.delay = 250 * Self.millisecond
        world.run(20_000)
        #expect(world.changes.map(\.state) == [.up])
    }

    @Test func whoDidNotWakeUpDoesNotJudge() {
        var world = World()
        world.run(1000)
        // For a whole second the thread does not run: nothing was sent, and so nothing is missing.
        let start = world.now
        world.run(1000, wakesUp: { $0 - start > 990 * Self.millisecond })
        world.run(1000)
        #expect(world.changes.map(\.state) == [.up])
    }

    @Test func oneEchoOfThreeIsEnough() {
        var world = World()
        world.run(1000)
        for round in 0..<300 {
            world.isAlive = round % 3 == 0
            world.run(100)
        }
        #expect(world.changes.map(\.state) == [.up])
    }

    @Test func otherIntervalsHaveOtherDetectionTimes() {
        for (interval, multiplier) in [(20, 2), (50, 5), (1000, 3), (10_000, 2)] {
            var world = World(Self.plan(interval: interval, multiplier: multiplier))
            world.run(interval * 3 + 10)
            world.isAlive = false
            world.under = []
            let death = world.now
            world.run(interval * (multiplier + 2))
            let after = Int((world.changes.last?.at ?? 0) - death) / 1_000_000
            #expect(world.session.state == .down)
            #expect(after <= interval * multiplier + 2 && after >= interval * (multiplier - 1) - 12, "\(after)")
        }
    }

    @Test func steadyIsUpForTenSeconds() {
        var world = World()
        world.run(9_990)
        #expect(!world.session.isSteady(now: world.now))
        world.run(20)
        #expect(world.session.isSteady(now: world.now))
    }

    // MARK: what others send

    @Test func strangersReplaysAndInventionsChangeNothing() {
        var session = EchoSession(Self.plan(), secret: Self.secret, now: 0)
        let echo = session.echo(now: 0)
        func refused(_ packet: EchoPacket) -> Bool {
            var copy = session
            let isNews = copy.heard(packet, at: 1, isTranslated: false)
            return !isNews && copy.state == session.state && copy.answered == session.answered
                && copy.lastHeard == session.lastHeard
        }
        #expect(refused(EchoPacket(session: 8, sequence: 1, secret: Self.secret)))
        #expect(refused(EchoPacket(session: 7, sequence: 1, secret: .init(high: 1, low: 3))))
        #expect(refused(EchoPacket(session: 7, sequence: 2, secret: Self.secret)), "never sent")
        #expect(refused(EchoPacket(session: 7, sequence: 0, secret: Self.secret)))
        #expect(refused(EchoPacket(session: 7, sequence: .max, secret: Self.secret)))
        let isUp = session.heard(echo, at: 1, isTranslated: false)
        #expect(isUp)
        #expect(refused(echo), "a replay")
        for _ in 0..<100 { _ = session.echo(now: 2) }
        #expect(refused(EchoPacket(session: 7, sequence: 2, secret: Self.secret)), "too old to know")
    }

    @Test func anEchoThatNeverLeftSaysNothing() {
        var session = EchoSession(Self.plan(), secret: Self.secret, now: 0)
        var now: Int64 = 0
        let first = session.echo(now: now)
        _ = session.heard(first, at: 1, isTranslated: false)
        for _ in 0..<50 {
            now += 100 * Self.millisecond
            session.looped(session.echo(now: now), now: now)
            let isDown = session.judge(now: now)
            #expect(!isDown)
        }
        #expect(session.state == .up)
    }

    @Test func aPacketIsReadAsItWasWritten() {
        let packet = EchoPacket(
            session: 4095, sequence: 0x0102_0304_0506_0708, secret: .random(word: 0x0A0B_0C0D), isProof: true)
        var bytes = [UInt8](repeating: 0, count: EchoPacket.size)
        bytes.withUnsafeMutableBytes { packet.write(to: $0) }
        #expect(bytes.withUnsafeBytes { EchoPacket($0) } == packet)
        #expect(Array(bytes[16..<20]) == [0x0A, 0x0B, 0x0C, 0x0D])
        for length in 0..<EchoPacket.size {
            #expect(Array(bytes[..<length]).withUnsafeBytes { EchoPacket($0) } == nil)
        }
        #expect((bytes + [0]).withUnsafeBytes { EchoPacket($0) } == nil)
        for place in [0, 1, 2, 3, 32, 33, 34, 36, 37, 38, 39] {
            var other = bytes
            other[place] ^= 0x80
            #expect(other.withUnsafeBytes { EchoPacket($0) } == nil, "byte \(place)")
        }
    }
}

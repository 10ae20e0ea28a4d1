import Liveness
import Planner

/// Whatever comes in at the port of echoes: nothing changes but by an echo that was sent, with its session's secret, once.
func check(_ bytes: [UInt8]) {
    let secret = EchoPacket.Secret(high: 0x0102_0304_0506_0708, low: 0x1112_1314_1516_1718)
    let plan = LivenessPlan.Session(
        end: GatewayEnd(node: "n2", identity: EgressIdentity(key: 0)), number: 7, interval: 100, multiplier: 3,
        isTranslated: true)
    var session = EchoSession(plan, secret: secret, now: 0)
    for tick in 0..<3 as Range<Int64> { _ = session.echo(now: tick * 100_000_000) }
    // What comes in is one datagram after another.
    for start in stride(from: 0, to: bytes.count, by: EchoPacket.size) {
        let part = Array(bytes[start..<min(start + EchoPacket.size, bytes.count)])
        guard let packet = part.withUnsafeBytes({ EchoPacket($0) }) else { continue }
        precondition(part.count == EchoPacket.size)
        var written = [UInt8](repeating: 0, count: EchoPacket.size)
        written.withUnsafeMutableBytes { packet.write(to: $0) }
        precondition(written == part, "what was read is what was written")
        let isGenuine =
            packet.session == 7 && packet.secret == secret && packet.sequence > session.answered
            && packet.sequence <= session.sequence
        let before = (session.state, session.answered, session.lastHeard)
        let isUp = session.heard(packet, at: 250_000_000, isTranslated: false)
        precondition(
            (isGenuine && !packet.isProof) || (!isUp && before == (session.state, session.answered, session.lastHeard)))
        precondition(session.answered <= session.sequence)
        session.looped(packet, now: 260_000_000)
        _ = session.judge(now: 300_000_000)
    }
}

import CLinux
import Model
import Netlink
import Planner

/// The sockets of echoes: one that receives, one that sends, with a fresh source port every second, so that each second is a new
/// flow to the overlay and the cloud below (squat/kilo#489: old flows live, and new ones vanish), and one that sends what the
/// gateway is to translate, which its firewall knows by the source port.
struct EchoSockets {
    /// Why echoes cannot be sent or received; empty where they can.
    private(set) var problem = ""
    private var receiver: Int32 = -1
    private var sender: Int32 = -1
    private var prover: Int32 = -1
    /// Sends the echoes to gateways that have asked for few.
    private var slowSender: Int32 = -1
    private var slowRenewAt: Int64 = 0
    private var renewAt: Int64 = 0
    private var retryAt: Int64 = 0
    /// Dropped at receivers that are closed.
    private var droppedBefore: UInt64 = 0
    /// Begins the secrets of all echoes of this process.
    let word = UInt32.random(in: .min ... .max)
    private var buffer = [culvert_echo](repeating: culvert_echo(), count: 64)
    /// What is sent in one go by each socket: lists that keep their memory.
    private var echoes: [culvert_echo] = []
    private var slowEchoes: [culvert_echo] = []
    private var proofs: [culvert_echo] = []

    /// Numbers of sessions whose gateway has asked for longer intervals. A new source port is up to two new entries in such a
    /// gateway's connection tracking, for 30 s (where Cilium tracks its own tunnel, before 1.19), so it has one in ten
    /// intervals only: 86,000 entries from 5,000 nodes that send every 350 ms.
    private var slow: Set<UInt32> = []
    /// Between two source ports of these, nanoseconds.
    private var slowPeriod: Int64 = 0

    /// - Parameter sessions: all sessions.
    mutating func follow(_ sessions: [LivenessPlan.Session]) {
        let asked = sessions.filter { $0.asked != nil }
        slow = Set(asked.map(\.number))
        slowPeriod = 10_000_000 * Int64(asked.map(\.interval).max() ?? 0)
        if slow.isEmpty, slowSender >= 0 {
            CLinux.close(slowSender)
            (slowSender, slowRenewAt) = (-1, 0)
        }
    }

    /// Source ports of echoes that are not translated (RFC 5881, section 4, asks for 49152 to 65535).
    private static let ports: ClosedRange<UInt16> = 49152...(Ownership.provingPort - 1)

    mutating func close() {
        droppedBefore = dropped
        for descriptor in [receiver, sender, slowSender, prover] where descriptor >= 0 { CLinux.close(descriptor) }
        (receiver, sender, slowSender, prover, renewAt, slowRenewAt) = (-1, -1, -1, -1, 0, 0)
    }

    /// Datagrams at the port of echoes that the kernel has dropped, nearly always because they are none.
    var dropped: UInt64 { droppedBefore + (receiver >= 0 ? UInt64(culvert_dropped(receiver)) : 0) }

    /// Makes sure that there are sockets, and that their ports are fresh.
    mutating func open(source: IPAddress, destination: IPAddress, now: Int64) {
        if receiver < 0, now >= retryAt {
            receiver = culvert_echo_receiver(
                destination.v4Value, Ownership.echoPort, UInt32(EchoPacket.size), EchoPacket.magic, word)
            if receiver < 0 {
                fail("UDP port \(Ownership.echoPort) of \(destination)", receiver, now)
                return
            }
        }
        if receiver >= 0, !slow.isEmpty, now >= slowRenewAt {
            EchoSockets.renew(&slowSender, source)
            slowRenewAt = now + (slowSender < 0 ? 1_000_000_000 : slowPeriod)
        }
        guard now >= renewAt, receiver >= 0 else { return }
        EchoSockets.renew(&sender, source)
        if prover < 0 { prover = culvert_echo_sender(source.v4Value, Ownership.provingPort) }
        if sender < 0 || prover < 0 {
            return fail("a socket with the source \(source)", min(sender, prover), now)
        }
        problem = ""
        renewAt = now + 1_000_000_000
    }

    private mutating func fail(_ what: String, _ code: Int32, _ now: Int64) {
        problem = "\(what) cannot be had: \(NetlinkError(operation: "bind", code: -code))"
        retryAt = now + 1_000_000_000
        renewAt = retryAt
    }

    /// A sender with a fresh source port in the place of this one. While there is none (this process has too many files open,
    /// say), the old one is better than none.
    private static func renew(_ sender: inout Int32, _ source: IPAddress) {
        var fresh: Int32 = -1
        for _ in 0..<8 {
            fresh = culvert_echo_sender(source.v4Value, .random(in: ports))
            if fresh != -EADDRINUSE { break }
        }
        if fresh < 0 && sender >= 0 { return }
        if sender >= 0 { CLinux.close(sender) }
        sender = fresh
    }

    /// Sends them, each by the tunnel that its session names. One that the kernel does not take is one that is not answered.
    mutating func send(_ packets: [EchoPacket], to destination: IPAddress) {
        guard sender >= 0, prover >= 0 else { return }
        // Where there is no port for the slow ones, they go with the others.
        for packet in packets {
            var echo = culvert_echo()
            withUnsafeMutableBytes(of: &echo.bytes) { packet.write(to: $0) }
            echo.length = UInt32(EchoPacket.size)
            echo.mark = Ownership.echoMark(packet.session)
            if packet.isProof {
                proofs.append(echo)
            } else if !slow.isEmpty, slowSender >= 0, slow.contains(packet.session) {
                slowEchoes.append(echo)
            } else {
                echoes.append(echo)
            }
        }
        EchoSockets.send(&echoes, by: sender, to: destination)
        EchoSockets.send(&slowEchoes, by: slowSender, to: destination)
        EchoSockets.send(&proofs, by: prover, to: destination)
    }

    /// Sends all, and empties the list without giving its memory back.
    private static func send(_ echoes: inout [culvert_echo], by socket: Int32, to destination: IPAddress) {
        guard !echoes.isEmpty else { return }
        _ = culvert_echo_send(socket, destination.v4Value, Ownership.echoPort, echoes, Int32(echoes.count))
        echoes.removeAll(keepingCapacity: true)
    }

    /// Takes all that has come in.
    ///
    /// - Parameter body: an echo (nil: something else), its source, TTL, and when the kernel had it (nanoseconds of
    ///   CLOCK_REALTIME; 0: not known).
    mutating func receive(_ body: (EchoPacket?, UInt32, UInt8, Int64) -> Void) {
        guard receiver >= 0 else { return }
        // At most this many at a time: a flood of foreign packets to this port must not delay the judgement of
        // gateways.
        for _ in 0..<64 {
            let count = culvert_echo_receive(receiver, &buffer, Int32(buffer.count))
            if count <= 0 { return }
            for index in 0..<Int(count) {
                let echo = buffer[index]
                let packet = withUnsafeBytes(of: echo.bytes) { bytes in
                    EchoPacket(UnsafeRawBufferPointer(rebasing: bytes[..<min(bytes.count, Int(echo.length))]))
                }
                body(packet, echo.source, echo.ttl, echo.received)
            }
            if count < buffer.count { return }
        }
    }
}

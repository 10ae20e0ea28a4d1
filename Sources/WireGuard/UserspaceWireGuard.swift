import CLinux
import Model

/// A program that speaks WireGuard behind a tun device of its own, such as wireguard-go, by its socket: the
/// "cross-platform userspace implementation" protocol of wireguard.com/xplatform.
public final class UserspaceWireGuard: WireGuardControl {
    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    /// Where such programs put their sockets, `NAME.sock`.
    public static let directory = "/var/run/wireguard"
    private let directory: String
    /// The device's public key, which follows from the private one that the socket tells.
    private let publicKey: ([UInt8]) -> WireGuardKey?

    /// - Parameter publicKey: the public key of a private key, nil where it is no key.
    public init(directory: String = UserspaceWireGuard.directory, publicKey: @escaping ([UInt8]) -> WireGuardKey?) {
        self.directory = directory
        self.publicKey = publicKey
    }

    public func device(_ name: String) throws -> WireGuardStatus? {
        let reply = try exchange(name, UserspaceProtocol.get)
        return try UserspaceProtocol.status(reply, publicKey: publicKey)
    }

    public func configure(_ name: String, privateKey: [UInt8], listenPort: UInt16) throws {
        _ = try exchange(name, UserspaceProtocol.configure(privateKey: privateKey, listenPort: listenPort))
    }

    public func apply(_ change: WireGuardChange, device name: String) throws {
        _ = try exchange(name, UserspaceProtocol.request(change))
    }

    /// Removes all peers. The program goes on running, without use.
    public func removeAllPeers(_ name: String) throws {
        _ = try exchange(name, "set=1\nreplace_peers=true\n\n")
    }

    /// One request and its answer, up to the empty line.
    private func exchange(_ name: String, _ request: String) throws -> [(key: Substring, value: Substring)] {
        let path = "\(directory)/\(name).sock"
        func failure(_ what: String, _ code: Int32) -> Failure {
            let remedy =
                code == EACCES || code == ENOENT || code == ECONNREFUSED
                ? "; run wireguard-go \(name) as the helper's user, with \(directory) belonging to it" : ""
            return Failure(description: "\(path): \(what): \(String(cString: strerror(code)))\(remedy)")
        }
        let end = ContinuousClock.now + .seconds(2)
        let descriptor = culvert_stream_connect(path, 1)
        guard descriptor >= 0 else { throw failure("cannot be reached", -descriptor) }
        defer { close(descriptor) }
        // It is told the private key.
        let owner = culvert_peer_uid(descriptor)
        guard owner == 0 || owner == Int64(geteuid()) else { throw failure("belongs to user \(owner)", EPERM) }
        let bytes = Array(request.utf8)
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes {
                send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw failure("does not accept the request", culvert_errno()) }
            sent += count
        }
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while !answer.suffix(2).elementsEqual([10, 10]) {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            guard count > 0 else { throw failure("does not answer", count == 0 ? EPIPE : culvert_errno()) }
            guard ContinuousClock.now < end else { throw failure("sends an answer without an end", ETIMEDOUT) }
            answer += buffer[..<count]
            guard answer.count < 64 * 1024 * 1024 else { throw failure("sends an answer without an end", EMSGSIZE) }
        }
        let lines = UserspaceProtocol.lines(String(decoding: answer, as: UTF8.self))
        let code = lines.last { $0.key == "errno" }.flatMap { Int32($0.value) } ?? EPROTO
        guard code == 0 else { throw failure("refuses the request", code < 0 ? -code : code) }
        return lines
    }
}

/// The protocol's text, apart from any socket.
enum UserspaceProtocol {
    static let get = "get=1\n\n"

    static func configure(privateKey: [UInt8], listenPort: UInt16) -> String {
        "set=1\nprivate_key=\(hex(privateKey))\nlisten_port=\(listenPort)\n\n"
    }

    static func request(_ change: WireGuardChange) -> String {
        var lines = ["set=1"]
        switch change {
        case .remove(let key): lines += ["public_key=\(hex(key.bytes))", "remove=true"]
        case .set(let peer, let replacing, let endpoint):
            lines.append("public_key=\(hex(peer.publicKey.bytes))")
            lines.append("preshared_key=\(hex(peer.presharedKey?.bytes ?? [UInt8](repeating: 0, count: 32)))")
            if let endpoint { lines.append("endpoint=\(endpoint)") }
            lines.append("persistent_keepalive_interval=\(peer.persistentKeepalive)")
            if replacing { lines.append("replace_allowed_ips=true") }
            lines += peer.allowedIPs.map { "allowed_ip=\($0)" }
        }
        return lines.joined(separator: "\n") + "\n\n"
    }

    static func lines(_ text: String) -> [(key: Substring, value: Substring)] {
        text.split(separator: "\n").compactMap { line in
            line.firstIndex(of: "=").map { (line[..<$0], line[line.index(after: $0)...]) }
        }
    }

    /// - Throws: where a key is none; unknown lines are left out, as the protocol wants it.
    static func status(
        _ lines: [(key: Substring, value: Substring)], publicKey: ([UInt8]) -> WireGuardKey?
    ) throws -> WireGuardStatus {
        var status = WireGuardStatus()
        var current: WireGuardKey?
        for (key, value) in lines {
            func change(_ body: (inout PeerStatus) -> Void) {
                if let current, status.peers[current] != nil { body(&status.peers[current]!) }
            }
            switch key {
            case "private_key":
                status.publicKey = bytes(value).flatMap { $0.contains { $0 != 0 } ? publicKey($0) : nil }
            case "listen_port": status.listenPort = UInt16(value) ?? 0
            case "public_key":
                guard let peer = bytes(value).flatMap({ WireGuardKey(bytes: $0) }) else {
                    throw UserspaceWireGuard.Failure(description: "public_key=\(value) is not a WireGuard key")
                }
                current = peer
                status.peers[peer] = PeerStatus(configuration: WireGuardPeer(publicKey: peer))
            case "preshared_key":
                if let shared = bytes(value), shared.contains(where: { $0 != 0 }) {
                    change { $0.configuration.presharedKey = WireGuardKey(bytes: shared) }
                }
            case "endpoint":
                if let endpoint = Endpoint(String(value)), let address = endpoint.address {
                    change { $0.configuration.endpoint = SocketAddress(address, port: endpoint.port) }
                }
            case "persistent_keepalive_interval": change { $0.configuration.persistentKeepalive = UInt16(value) ?? 0 }
            case "allowed_ip":
                if let network = IPNetwork(String(value)) { change { $0.configuration.allowedIPs.append(network) } }
            case "last_handshake_time_sec": change { $0.lastHandshake = Int64(value) ?? 0 }
            case "rx_bytes": change { $0.receivedBytes = UInt64(value) ?? 0 }
            case "tx_bytes": change { $0.sentBytes = UInt64(value) ?? 0 }
            default: break
            }
        }
        for key in status.peers.keys { status.peers[key]?.configuration.allowedIPs.sort() }
        return status
    }

    static func hex(_ bytes: [UInt8]) -> String {
        let digits = Array("0123456789abcdef".utf8)
        return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }

    /// nil where the text is not pairs of hexadecimal digits.
    static func bytes(_ text: Substring) -> [UInt8]? {
        let digits = Array(text.utf8)
        guard digits.count.isMultiple(of: 2) else { return nil }
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let byte = UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16) else {
                return nil
            }
            bytes.append(byte)
        }
        return bytes
    }
}

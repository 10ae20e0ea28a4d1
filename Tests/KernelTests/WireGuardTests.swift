import CLinux
import Foundation
import Model
import TestSupport
import Testing

@testable import Agent
@testable import Reconcile
@testable import WireGuard

/// Keys, and what is changed of peers; no kernel needed.
@Suite struct WireGuardTests {
    static func key(_ n: UInt8) -> WireGuardKey { WireGuardKey(bytes: [n] + [UInt8](repeating: 7, count: 31))! }
    static func network(_ text: String) -> IPNetwork { IPNetwork(text)! }
    static func at(_ text: String) -> SocketAddress {
        SocketAddress(Endpoint(text)!.address!, port: Endpoint(text)!.port)
    }

    static func peer(_ n: UInt8, endpoint: String? = nil, _ networks: String...) -> WireGuardPeer {
        WireGuardPeer(publicKey: key(n), endpoint: endpoint.map(at), allowedIPs: networks.map(network))
    }
    static func there(_ peer: WireGuardPeer, handshake: Int64 = 1000) -> [WireGuardKey: PeerStatus] {
        var status = PeerStatus(configuration: peer)
        status.lastHandshake = handshake
        return [peer.publicKey: status]
    }
    static let now: Int64 = 1010

    @Test func whatIsEqualIsLeftAlone() {
        let peer = Self.peer(1, endpoint: "192.0.2.1:51820", "10.1.0.0/24")
        #expect(WireGuardChanges.between(Self.there(peer), [peer], previous: [peer], now: Self.now).isEmpty)
    }

    @Test func newAndGonePeers() {
        let old = Self.peer(1, "10.1.0.0/24")
        let new = Self.peer(2, endpoint: "192.0.2.2:1", "10.2.0.0/24")
        #expect(
            WireGuardChanges.between(Self.there(old), [new], previous: nil, now: Self.now) == [
                .remove(Self.key(1)), .set(new, replacing: true, endpoint: Self.at("192.0.2.2:1")),
            ])
    }

    @Test func addressesAreAddedWhereNoneGoes() {
        let old = Self.peer(1, "10.1.0.0/24")
        let more = Self.peer(1, "10.1.0.0/24", "10.3.0.0/24")
        #expect(
            WireGuardChanges.between(Self.there(old), [more], previous: [old], now: Self.now)
                == [.set(Self.peer(1, "10.3.0.0/24"), replacing: false, endpoint: nil)])
        let other = Self.peer(1, "10.3.0.0/24")
        #expect(
            WireGuardChanges.between(Self.there(old), [other], previous: [old], now: Self.now)
                == [.set(other, replacing: true, endpoint: nil)])
    }

    @Test func aPeerThatMovedStaysWhereItIs() {
        let wanted = Self.peer(1, endpoint: "192.0.2.1:51820", "10.1.0.0/24")
        let moved = Self.there(Self.peer(1, endpoint: "192.0.2.9:4000", "10.1.0.0/24"))
        #expect(WireGuardChanges.between(moved, [wanted], previous: [wanted], now: Self.now).isEmpty)
        // But for news of it, and where it is silent.
        let before = Self.peer(1, endpoint: "192.0.2.2:51820", "10.1.0.0/24")
        #expect(WireGuardChanges.between(moved, [wanted], previous: [before], now: Self.now).count == 1)
        #expect(
            WireGuardChanges.between(
                moved, [wanted], previous: [wanted], now: Self.now + WireGuardChanges.handshakeLifetime
            ).count == 1)
    }

    @Test func aPeerThatIsReachedThroughItsOwnTunnelComesBack() {
        let wanted = Self.peer(1, endpoint: "192.0.2.1:51820", "10.1.0.11/32")
        let looped = Self.there(Self.peer(1, endpoint: "10.1.0.11:51820", "10.1.0.11/32"))
        let isRouted = { (address: IPAddress) in Self.network("10.1.0.11/32").contains(address) }
        #expect(
            WireGuardChanges.between(looped, [wanted], previous: [wanted], now: Self.now, isRouted: isRouted)
                == [
                    .set(
                        Self.peer(1, endpoint: "192.0.2.1:51820"), replacing: false,
                        endpoint: Self.at("192.0.2.1:51820"))
                ]
        )
    }

    // MARK: keys

    @Test func keysAreTheirText() {
        for n: UInt8 in [0, 1, 127, 255] {
            let bytes = [UInt8](repeating: n, count: 32)
            let text = Data(bytes).base64EncodedString()
            #expect(WireGuardKey(text)?.bytes == bytes && WireGuardKey(bytes: bytes)?.text == text)
        }
        for text in [
            "", "abc", String(repeating: "A", count: 44), String(repeating: "A", count: 42) + "B=",
            "é" + String(repeating: "A", count: 41) + "=",
        ] {
            #expect(WireGuardKey(text) == nil, "\(text)")
        }
        #expect(WireGuardKey(bytes: [1, 2, 3]) == nil)
    }

    @Test func theKeyFileIsMadeOnceAndReadByItsOwnerOnly() throws {
        let directory = NSTemporaryDirectory() + "\(Shell.prefix)-key"
        Shell.run("mkdir -p \(directory)")
        defer { Shell.run("rm -rf \(directory)") }
        let file = directory + "/wireguard.key"
        let first = try WireGuardKeyFile(stateDirectory: directory)
        #expect(Shell.run("stat -c %a \(file)").output == "600\n")
        #expect(try WireGuardKeyFile(stateDirectory: directory).publicKey == first.publicKey)
        #expect(WireGuardKeyFile.publicKey(of: first.privateKey) == first.publicKey)
        func refused(_ message: String) {
            let error = #expect(throws: WireGuardKeyFile.Failure.self) {
                try WireGuardKeyFile(stateDirectory: directory)
            }
            #expect(error?.description.contains(message) == true, "\(error?.description ?? "")")
        }
        chmod(file, 0o644)
        refused("chmod 600")
        chmod(file, 0o600)
        Shell.run("echo nonsense > \(file)")
        refused("is not a WireGuard key")
        #expect(throws: WireGuardKeyFile.Failure.self) { try WireGuardKeyFile(stateDirectory: "/proc/none") }
    }

    // MARK: the protocol of programs in user space

    @Test func requestsInUserSpace() {
        var peer = Self.peer(1, endpoint: "192.0.2.1:51820", "10.1.0.0/24")
        peer.persistentKeepalive = 5
        let hex = "01" + String(repeating: "07", count: 31)
        let none = String(repeating: "0", count: 64)
        #expect(
            UserspaceProtocol.request(.set(peer, replacing: true, endpoint: peer.endpoint))
                == "set=1\npublic_key=\(hex)\npreshared_key=\(none)\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=5\nreplace_allowed_ips=true\nallowed_ip=10.1.0.0/24\n\n"
        )
        #expect(UserspaceProtocol.request(.remove(Self.key(1))) == "set=1\npublic_key=\(hex)\nremove=true\n\n")
    }

    @Test func statusInUserSpace() throws {
        let hex = "01" + String(repeating: "07", count: 31)
        let none = String(repeating: "0", count: 64)
        let text =
            "private_key=\(hex)\nlisten_port=51820\npublic_key=\(hex)\npreshared_key=\(none)\nprotocol_version=1\nendpoint=[2001:db8::1]:9\nlast_handshake_time_sec=1000\nlast_handshake_time_nsec=5\ntx_bytes=7\nrx_bytes=8\npersistent_keepalive_interval=25\nallowed_ip=10.2.0.0/24\nallowed_ip=10.1.0.0/24\nnew_in_a_later_version=x\nerrno=0\n\n"
        let status = try UserspaceProtocol.status(UserspaceProtocol.lines(text)) { WireGuardKey(bytes: $0) }
        #expect(status.publicKey == Self.key(1) && status.listenPort == 51820)
        let peer = try #require(status.peers[Self.key(1)])
        #expect(peer.configuration.endpoint?.description == "[2001:db8::1]:9" && peer.configuration.presharedKey == nil)
        #expect((peer.lastHandshake, peer.sentBytes, peer.receivedBytes) == (1000, 7, 8))
        #expect(peer.configuration.allowedIPs == ["10.1.0.0/24", "10.2.0.0/24"].map(Self.network))
        #expect(throws: UserspaceWireGuard.Failure.self) {
            try UserspaceProtocol.status(UserspaceProtocol.lines("public_key=xyz\n")) { _ in nil }
        }
        let error = #expect(throws: UserspaceWireGuard.Failure.self) {
            try UserspaceWireGuard(directory: "/nowhere", publicKey: { _ in nil }).device("wg")
        }
        #expect(error?.description.contains("run wireguard-go wg") == true)
    }
}

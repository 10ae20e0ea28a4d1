import CLinux
import Model
import Netlink

/// Generic netlink family `wireguard` (linux/wireguard.h).
public final class KernelWireGuard: WireGuardControl {
    private let socket: NetlinkSocket
    private var family: UInt16?

    public init() throws { socket = try NetlinkSocket(bus: NETLINK_GENERIC) }

    /// Whether this kernel has WireGuard, or can load it.
    ///
    /// - Throws: where it cannot be asked.
    public func isAvailable() throws -> Bool {
        if family == nil { family = try GenericNetlink.family("wireguard", socket: socket) }
        return family != nil
    }

    private func resolve(_ name: String) throws -> UInt16 {
        if let family { return family }
        guard let found = try GenericNetlink.family("wireguard", socket: socket) else {
            throw NetlinkError(
                operation: "wg show \(name)", code: EOPNOTSUPP,
                kernelMessage: "this kernel has no WireGuard, and it cannot be loaded (modprobe wireguard)")
        }
        family = found
        return found
    }

    // MARK: reading

    /// `wg show NAME dump`, but for the private key. nil where there is no such device.
    public func device(_ name: String) throws -> WireGuardStatus? {
        let header = genlmsghdr(cmd: UInt8(WG_CMD_GET_DEVICE.rawValue), version: 1, reserved: 0)
        let request = NetlinkMessage(
            "wg show \(name)", type: try resolve(name), flags: UInt16(NLM_F_DUMP), header: header
        ) { $0.string(WGDEVICE_A_IFNAME.rawValue, name) }
        var device = WireGuardStatus()
        do {
            try socket.dump(request) { reply in
                for attribute in reply.attributes(after: MemoryLayout<genlmsghdr>.size) {
                    switch UInt32(attribute.type) {
                    case WGDEVICE_A_PUBLIC_KEY.rawValue: device.publicKey = WireGuardKey(bytes: attribute.bytes)
                    case WGDEVICE_A_LISTEN_PORT.rawValue: device.listenPort = attribute.u16
                    case WGDEVICE_A_PEERS.rawValue:
                        for entry in attribute.nested { KernelWireGuard.read(peer: entry.nested, into: &device) }
                    default: break
                    }
                }
            }
        } catch let error as NetlinkError where error.code == ENODEV {
            return nil
        }
        for key in device.peers.keys { device.peers[key]?.configuration.allowedIPs.sort() }
        return device
    }

    /// A peer with many allowed addresses comes in parts.
    private static func read(peer attributes: NetlinkAttributes, into device: inout WireGuardStatus) {
        guard
            let key = attributes.first(where: { UInt32($0.type) == WGPEER_A_PUBLIC_KEY.rawValue })
                .flatMap({ WireGuardKey(bytes: $0.bytes) })
        else { return }
        var peer = device.peers[key] ?? PeerStatus(configuration: WireGuardPeer(publicKey: key))
        for attribute in attributes {
            let bytes = attribute.bytes
            switch UInt32(attribute.type) {
            case WGPEER_A_PRESHARED_KEY.rawValue:
                if bytes.contains(where: { $0 != 0 }) { peer.configuration.presharedKey = WireGuardKey(bytes: bytes) }
            case WGPEER_A_ENDPOINT.rawValue: peer.configuration.endpoint = KernelSocketAddress.read(bytes)
            case WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL.rawValue: peer.configuration.persistentKeepalive = attribute.u16
            case WGPEER_A_LAST_HANDSHAKE_TIME.rawValue: peer.lastHandshake = Int64(bitPattern: number(bytes))
            case WGPEER_A_RX_BYTES.rawValue: peer.receivedBytes = number(bytes)
            case WGPEER_A_TX_BYTES.rawValue: peer.sentBytes = number(bytes)
            case WGPEER_A_ALLOWEDIPS.rawValue:
                for entry in attribute.nested {
                    var address: IPAddress?
                    var length = 0
                    for part in entry.nested {
                        switch UInt32(part.type) {
                        case WGALLOWEDIP_A_IPADDR.rawValue: address = part.address
                        case WGALLOWEDIP_A_CIDR_MASK.rawValue: length = Int(part.u8)
                        default: break
                        }
                    }
                    if let address {
                        peer.configuration.allowedIPs.append(IPNetwork(address, prefixLength: length))
                    }
                }
            default: break
            }
        }
        device.peers[key] = peer
    }

    private static func number(_ bytes: [UInt8]) -> UInt64 {
        bytes.count >= 8 ? bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) } : 0
    }

    // MARK: changing

    /// `wg set NAME private-key … listen-port PORT`
    public func configure(_ name: String, privateKey: [UInt8], listenPort: UInt16) throws {
        try set("wg set \(name) private-key (hidden) listen-port \(listenPort)", name) { attributes in
            attributes.bytes(WGDEVICE_A_PRIVATE_KEY.rawValue, privateKey)
            attributes.u16(WGDEVICE_A_LISTEN_PORT.rawValue, listenPort)
        }
    }

    public func apply(_ change: WireGuardChange, device name: String) throws {
        switch change {
        case .remove(let key):
            try setPeer(name, "wg set \(name) peer \(key) remove", key, flags: WGPEER_F_REMOVE_ME.rawValue) { _ in }
        case .set(let peer, let replacing, let endpoint):
            // The rest in parts: one netlink attribute has 64 KiB at most.
            var rest = peer.allowedIPs[...]
            var flags = replacing ? WGPEER_F_REPLACE_ALLOWEDIPS.rawValue : 0
            var first = true
            repeat {
                let part = rest.prefix(500)
                rest = rest.dropFirst(500)
                let isFirst = first
                try setPeer(name, "wg set \(name) peer \(peer.publicKey)", peer.publicKey, flags: flags) { attributes in
                    if isFirst {
                        attributes.bytes(
                            WGPEER_A_PRESHARED_KEY.rawValue,
                            peer.presharedKey?.bytes ?? [UInt8](repeating: 0, count: 32))
                        attributes.u16(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL.rawValue, peer.persistentKeepalive)
                        if let endpoint {
                            attributes.bytes(WGPEER_A_ENDPOINT.rawValue, KernelSocketAddress.write(endpoint))
                        }
                    }
                    attributes.nested(UInt32(NLA_F_NESTED) | WGPEER_A_ALLOWEDIPS.rawValue) { list in
                        for network in part {
                            list.nested(UInt32(NLA_F_NESTED)) { entry in
                                entry.u16(
                                    WGALLOWEDIP_A_FAMILY.rawValue,
                                    UInt16(network.family == .v4 ? AF_INET : AF_INET6))
                                entry.address(WGALLOWEDIP_A_IPADDR.rawValue, network.address)
                                entry.u8(WGALLOWEDIP_A_CIDR_MASK.rawValue, UInt8(network.prefixLength))
                            }
                        }
                    }
                }
                flags = 0
                first = false
            } while !rest.isEmpty
        }
    }

    private func setPeer(
        _ name: String, _ operation: String, _ key: WireGuardKey, flags: UInt32,
        _ body: (NetlinkMessage.Attributes) -> Void
    ) throws {
        try set(operation, name) { attributes in
            attributes.nested(UInt32(NLA_F_NESTED) | WGDEVICE_A_PEERS.rawValue) { peers in
                peers.nested(UInt32(NLA_F_NESTED)) { peer in
                    peer.bytes(WGPEER_A_PUBLIC_KEY.rawValue, key.bytes)
                    peer.u32(WGPEER_A_FLAGS.rawValue, flags)
                    body(peer)
                }
            }
        }
    }

    private func set(_ operation: String, _ name: String, _ body: (NetlinkMessage.Attributes) -> Void) throws {
        let header = genlmsghdr(cmd: UInt8(WG_CMD_SET_DEVICE.rawValue), version: 1, reserved: 0)
        try socket.execute(
            NetlinkMessage(operation, type: try resolve(name), flags: 0, header: header, capacity: 60 * 1024) {
                $0.string(WGDEVICE_A_IFNAME.rawValue, name)
                body($0)
            })
    }
}

/// `struct sockaddr_in` and `sockaddr_in6` (linux/in.h, linux/in6.h), as bytes.
enum KernelSocketAddress {
    static func read(_ bytes: [UInt8]) -> SocketAddress? {
        guard bytes.count >= 16 else { return nil }
        let family = bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt16.self) }
        let port = UInt16(bytes[2]) << 8 | UInt16(bytes[3])
        let address =
            Int32(family) == AF_INET6 && bytes.count >= 24
            ? IPAddress(bytes: bytes[8..<24]) : Int32(family) == AF_INET ? IPAddress(bytes: bytes[4..<8]) : nil
        return address.map { SocketAddress($0, port: port) }
    }

    static func write(_ endpoint: SocketAddress) -> [UInt8] {
        let isV6 = endpoint.address.family == .v6
        let family = withUnsafeBytes(of: UInt16(isV6 ? AF_INET6 : AF_INET)) { Array($0) }
        let port = [UInt8(endpoint.port >> 8), UInt8(truncatingIfNeeded: endpoint.port)]
        let zeros = { (count: Int) in [UInt8](repeating: 0, count: count) }
        return isV6
            ? family + port + zeros(4) + endpoint.address.bytes + zeros(4)
            : family + port + endpoint.address.bytes + zeros(8)
    }
}

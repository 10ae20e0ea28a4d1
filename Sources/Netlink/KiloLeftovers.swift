import CLinux
import Model

/// What Kilo makes in a node's kernel and leaves there when it does not end cleanly: the WireGuard device `kilo0`, whose UDP
/// port stays busy; routes of protocol `static` over it and over the IPIP device; rules and routes of table 1107. (Names and
/// numbers are Kilo's own: pkg/mesh/backend.go, pkg/mesh/routes.go, pkg/encapsulation.)
public struct KiloLeftovers {
    public static let device = "kilo0"
    /// The kernel's IPIP device, which Cilium calls `cilium_tunl` where it makes use of it.
    static let tunnels: Set<String> = ["tunl0", "cilium_tunl"]
    static let table: UInt32 = 1107
    private static let staticProtocol = UInt8(RTPROT_STATIC)

    private let socket: NetlinkSocket

    /// - Parameter socket: of the network namespace that is looked at.
    public init(socket: NetlinkSocket) { self.socket = socket }

    /// Whether the device is there and carries something.
    public func isUp() throws -> Bool { try socket.link(named: Self.device)?.isUp ?? false }

    /// Takes routing over from Kilo: sets its device down, which frees its UDP port, and removes its routes and rules.
    /// The device itself stays, so that Kilo can come back.
    ///
    /// - Returns: what was done, as commands of `ip`; empty if Kilo left nothing.
    /// - Throws: what the kernel refuses.
    @discardableResult
    public func takeOver() throws -> [String] {
        var done: [String] = []
        // Routes over the device go with it: what cannot be told to be Kilo's is left alone where there is no such device.
        let link = try socket.link(named: Self.device)
        let rules = try deleteRules()
        if rules > 0 { done.append("ip rule del table \(Self.table) (\(rules))") }
        guard link != nil || rules > 0 else { return [] }
        let names = Dictionary(
            try socket.links().map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
        let stale = try socket.allRoutesV4().filter { route in
            let name = names[route.index] ?? ""
            return route.routeProtocol == Self.staticProtocol
                && [Rule.mainTable, Self.table].contains(route.table)
                && (name == Self.device || Self.tunnels.contains(name))
        }
        for (_, error) in try socket.execute(stale.map { Self.delete($0) }) where error.code != ESRCH { throw error }
        if !stale.isEmpty { done.append("ip route flush proto static dev \(Self.device), tunl0 (\(stale.count))") }
        if let link, link.isUp {
            try socket.execute(LinkRequest.setDown(index: link.index, name: link.name))
            done.append("ip link set dev \(Self.device) down")
        }
        return done
    }

    /// `takeOver`, and the device is deleted as well.
    ///
    /// - Returns: what was done.
    /// - Throws: what the kernel refuses.
    public func remove() throws -> [String] {
        var done = try takeOver()
        if let link = try socket.link(named: Self.device) {
            try socket.execute(LinkRequest.delete(index: link.index, name: link.name))
            done.append("ip link del dev \(Self.device)")
        }
        return done
    }

    private static func delete(_ route: KernelRoute) -> NetlinkMessage {
        var header = rtmsg()
        header.rtm_family = UInt8(AF_INET)
        header.rtm_dst_len = UInt8(route.destination.prefixLength)
        header.rtm_protocol = staticProtocol
        header.rtm_scope = UInt8(RT_SCOPE_NOWHERE.rawValue)
        header.rtm_table = route.table < 256 ? UInt8(route.table) : UInt8(RT_TABLE_UNSPEC.rawValue)
        return NetlinkMessage(
            "ip route del \(route.destination.routeText) proto static table \(route.table)",
            type: UInt16(RTM_DELROUTE), flags: 0, header: header, capacity: 128
        ) { attributes in
            if route.destination.prefixLength > 0 {
                attributes.address(RTA_DST.rawValue, route.destination.address)
            }
            attributes.u32(RTA_TABLE.rawValue, route.table)
            if route.metric != 0 { attributes.u32(RTA_PRIORITY.rawValue, route.metric) }
            attributes.u32(RTA_OIF.rawValue, UInt32(route.index))
        }
    }

    /// One rule that leads to the table after the other, until there is none: the kernel picks the first that matches.
    private func deleteRules() throws -> Int {
        var count = 0
        var header = fib_rule_hdr()
        header.family = UInt8(AF_INET)
        header.action = UInt8(FR_ACT_TO_TBL)
        let request = NetlinkMessage(
            "ip rule del table \(Self.table)", type: UInt16(RTM_DELRULE), flags: 0, header: header, capacity: 64
        ) { $0.u32(FRA_TABLE, Self.table) }
        while count < 100_000 {
            guard let (_, error) = try socket.execute([request]).first else {
                count += 1
                continue
            }
            if error.code == ENOENT { return count }
            throw error
        }
        return count
    }
}

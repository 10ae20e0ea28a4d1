import Model

/// Tunnel devices, their MTUs and how a packet is handed to them.
struct TunnelLinks {
    /// Bytes that each header costs (facts: RFC 2003, RFC 2784 and 2890, RFC 7348).
    enum Overhead {
        /// Cilium's own VXLAN or Geneve over IPv4.
        static let overlay = 50
        static let ipip = 20
        static let greWithKey = 28
        static let fou = 8
        static let vxlan = 50
        /// RFC 791 header, UDP, and 32 bytes of its own; over IPv6 20 more.
        static let wireGuard = 60
        static let wireGuardOverV6 = 80
        /// What eBPF host routing takes off a device without Ethernet header: the kernel compares a length that still
        /// has the pod's 14 bytes with the MTU plus 4.
        static let ebpfAllowance = 10
    }

    /// One device with what it is for.
    struct Tunnel: Equatable {
        let link: Link
        let identity: EgressIdentity
        /// The largest packet that passes it under either kind of routing, bytes.
        let podMTU: Int
    }

    /// One end that this node sends to.
    struct Sender: Hashable {
        /// The gateway's end of the tunnel.
        let gateway: IPAddress
        let identity: EgressIdentity
    }

    let tunnelProtocol: Configuration.TunnelProtocol
    let local: IPAddress
    private(set) var tunnels: [String: Tunnel] = [:]
    private(set) var neighbours: [Neighbour] = []
    private(set) var numbers: AssignedIDs.Numbers
    private let overlayMTU: Int

    /// Gateway address on a tunnel to self over VXLAN: a route's gateway may not be one of the node's own addresses,
    /// and this one exists only as a permanent neighbour entry.
    static let selfGateway = IPAddress(v4: 0xA9FE_2F01)
    /// An address on the uplink that nobody has.
    static let nobody = IPAddress(v4: 0xA9FE_2F02)

    /// - Parameters:
    ///   - senders: ends that pods of this node use or could come to use.
    ///   - served: identities that this node is a gateway for.
    init(
        tunnelProtocol: Configuration.TunnelProtocol, local: IPAddress, overlayMTU: Int,
        senders: [Sender], served: Set<EgressIdentity>, previous: AssignedIDs
    ) {
        self.tunnelProtocol = tunnelProtocol
        self.local = local
        self.overlayMTU = overlayMTU
        var keys: Set<String> = []
        for sender in senders {
            keys.insert(
                TunnelLinks.senderKey(
                    tunnelProtocol, local: local, gateway: sender.gateway, identity: sender.identity))
        }
        for identity in served { keys.insert(TunnelLinks.receiverKey(tunnelProtocol, identity)) }
        if tunnelProtocol == .vxlan {
            for sender in senders where sender.gateway == local {
                keys.insert(TunnelLinks.receiverKey(tunnelProtocol, sender.identity))
            }
        }
        let mainKey = TunnelLinks.receiverKey(tunnelProtocol, .defaultAddress)
        keys.remove(mainKey)
        numbers = AssignedIDs.assign(
            keys, previous: previous.tunnels, first: 1, retired: previous.retired.tunnels
        ).filter { $0.value <= Ownership.mostTunnels }

        add(mainKey, kind: receiver(.defaultAddress), identity: .defaultAddress)
        for identity in served.sorted() where identity != .defaultAddress {
            add(TunnelLinks.receiverKey(tunnelProtocol, identity), kind: receiver(identity), identity: identity)
        }
        for end in senders {
            let (gateway, identity) = (end.gateway, end.identity)
            let key = TunnelLinks.senderKey(tunnelProtocol, local: local, gateway: gateway, identity: identity)
            add(key, kind: sender(gateway, identity), identity: identity)
            if tunnelProtocol == .vxlan { addNeighbour(key, gateway: gateway, identity: identity) }
        }
        neighbours = Array(Set(neighbours)).sorted { ($0.device, $0.peer) < ($1.device, $1.peer) }
    }

    private mutating func add(_ key: String, kind: Link.Kind, identity: EgressIdentity) {
        guard tunnels[key] == nil else { return }
        let isMain = key == TunnelLinks.receiverKey(tunnelProtocol, .defaultAddress)
        // Where all names are given, the tunnel is not there, and what would go by it is unreachable.
        guard let name = numbers[key].map(Ownership.tunnelName) ?? (isMain ? Ownership.mainTunnel : nil) else { return }
        let mtu = overlayMTU - TunnelLinks.overhead(kind)
        tunnels[key] = Tunnel(
            link: Link(name: name, kind: kind, mtu: mtu, address: local), identity: identity,
            podMTU: tunnelProtocol == .vxlan ? mtu : mtu - Overhead.ebpfAllowance)
    }

    static func overhead(_ kind: Link.Kind) -> Int {
        switch kind {
        case .ipip(_, _, let fou): Overhead.ipip + (fou == nil ? 0 : Overhead.fou)
        case .gre(_, _, _, let fou): Overhead.greWithKey + (fou == nil ? 0 : Overhead.fou)
        case .vxlan: Overhead.vxlan
        case .wireguard: Overhead.wireGuard
        }
    }

    private func receiver(_ identity: EgressIdentity) -> Link.Kind { device(remote: nil, identity) }
    private func sender(_ gateway: IPAddress, _ identity: EgressIdentity) -> Link.Kind {
        if tunnelProtocol == .vxlan && gateway == local {
            // A VXLAN frame whose source MAC is the receiving device's own is dropped, so the way to self needs a
            // second device. Its forwarding entry sends with the receiver's VNI and to the receiver's port.
            return .vxlan(
                local: local, vni: identity.vni | EgressIdentity.selfVNIBit, port: Ownership.vxlanSelfPort,
                mac: TunnelLinks.mac(local, toSelf: true))
        }
        return device(remote: gateway, identity)
    }

    private func device(remote: IPAddress?, _ identity: EgressIdentity) -> Link.Kind {
        let fou = tunnelProtocol == .fou
        switch tunnelProtocol {
        case .vxlan:
            return .vxlan(
                local: local, vni: identity.vni, port: Ownership.vxlanPort, mac: TunnelLinks.mac(local, toSelf: false))
        case .ipip, .fou:
            if identity == .defaultAddress {
                return .ipip(local: local, remote: remote, fouPort: fou ? Ownership.fouIPIPPort : nil)
            }
            return .gre(local: local, remote: remote, key: identity.key, fouPort: fou ? Ownership.fouGREPort : nil)
        }
    }

    private mutating func addNeighbour(_ key: String, gateway: IPAddress, identity: EgressIdentity) {
        guard let tunnel = tunnels[key] else { return }
        let toSelf = gateway == local
        neighbours.append(
            Neighbour(
                device: tunnel.link.name, peer: toSelf ? TunnelLinks.selfGateway : gateway,
                mac: TunnelLinks.mac(gateway, toSelf: false), remote: gateway, vni: toSelf ? identity.vni : nil,
                port: toSelf ? Ownership.vxlanPort : nil))
    }

    /// The entries by which a VXLAN device finds a peer.
    func neighbour(on device: String, peer: IPAddress) -> Neighbour {
        Neighbour(device: device, peer: peer, mac: TunnelLinks.mac(peer, toSelf: false), remote: peer)
    }

    /// A locally administered MAC address that every node can work out: 02:c7 and the overlay address (03→ bit 2 set
    /// for the sending end of a tunnel to self).
    static func mac(_ address: IPAddress, toSelf: Bool) -> MACAddress {
        MACAddress((toSelf ? 0x06C7 : 0x02C7) << 32 | UInt64(address.v4Value))
    }

    /// The next hop towards `gateway`.
    func nextHop(gateway: IPAddress, identity: EgressIdentity) -> NextHop.Target? {
        guard let tunnel = tunnel(gateway: gateway, identity: identity) else { return nil }
        guard tunnelProtocol == .vxlan else { return .device(tunnel.link.name) }
        return .via(gateway == local ? TunnelLinks.selfGateway : gateway, device: tunnel.link.name)
    }

    func tunnel(gateway: IPAddress, identity: EgressIdentity) -> Tunnel? {
        tunnels[TunnelLinks.senderKey(tunnelProtocol, local: local, gateway: gateway, identity: identity)]
    }

    /// Every device that packets of `identity` may arrive on, by name.
    func devices(of identity: EgressIdentity) -> [String] {
        tunnels.values.filter { $0.identity == identity }.map(\.link.name).sorted()
    }

    /// UDP ports at which tunnels in FOU end.
    var fouPorts: [FOUPort] {
        guard tunnelProtocol == .fou else { return [] }
        return [
            FOUPort(port: Ownership.fouIPIPPort, ipProtocol: 4, local: local),
            FOUPort(port: Ownership.fouGREPort, ipProtocol: 47, local: local),
        ]
    }

    var links: [Link] { tunnels.values.map(\.link).sorted { $0.name < $1.name } }

    static func senderKey(
        _ tunnelProtocol: Configuration.TunnelProtocol, local: IPAddress, gateway: IPAddress, identity: EgressIdentity
    ) -> String {
        switch tunnelProtocol {
        case .vxlan: gateway == local ? "vxlan/\(identity.key)>self" : receiverKey(.vxlan, identity)
        case .ipip, .fou: "\(identity.key)>\(gateway)"
        }
    }
    static func receiverKey(_ tunnelProtocol: Configuration.TunnelProtocol, _ identity: EgressIdentity) -> String {
        "\(tunnelProtocol == .vxlan ? "vxlan/" : "")\(identity.key)"
    }
}

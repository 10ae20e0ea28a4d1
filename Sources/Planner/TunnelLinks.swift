import Model

/// Tunnel devices, their MTUs and how a packet is handed to them.
struct TunnelLinks {
    /// Bytes that are lost to other headers than those of the encapsulation, which `Encapsulation.overhead` has.
    enum Overhead {
        /// Cilium's own VXLAN or Geneve over IPv4.
        static let overlay = 50
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

    let encapsulation: any Encapsulation
    let local: IPAddress
    private(set) var tunnels: [String: Tunnel] = [:]
    private(set) var neighbours: [Neighbour] = []
    private(set) var numbers: AssignedIDs.Numbers
    private let overlayMTU: Int

    /// An address on the uplink that no host has.
    static let nobody = IPAddress(v4: 0xA9FE_2F02)

    /// - Parameters:
    ///   - senders: ends that pods of this node use or could come to use.
    ///   - served: identities that this node is a gateway for.
    init(
        encapsulation: any Encapsulation, local: IPAddress, overlayMTU: Int,
        senders: [Sender], served: Set<EgressIdentity>, previous: AssignedIDs
    ) {
        self.encapsulation = encapsulation
        self.local = local
        self.overlayMTU = overlayMTU
        let paths = senders.map { TunnelPath(local: local, gateway: $0.gateway, identity: $0.identity) }
        var keys = Set(served.map(encapsulation.receiverKey))
        for path in paths { keys.formUnion(encapsulation.numberedKeys(path)) }
        let mainKey = encapsulation.receiverKey(.defaultAddress)
        keys.remove(mainKey)
        numbers = AssignedIDs.assign(
            keys, previous: previous.tunnels, first: 1, retired: previous.retired.tunnels
        ).filter { $0.value <= Ownership.mostTunnels }

        addReceiver(.defaultAddress)
        for identity in served.sorted() { addReceiver(identity) }
        for path in paths {
            let key = encapsulation.senderKey(path)
            add(key, kind: encapsulation.sender(path), identity: path.identity)
            if let device = tunnels[key]?.link.name, let neighbour = encapsulation.neighbour(path, device: device) {
                neighbours.append(neighbour)
            }
        }
        neighbours = Array(Set(neighbours)).sorted { ($0.device, $0.peer) < ($1.device, $1.peer) }
    }

    private mutating func addReceiver(_ identity: EgressIdentity) {
        add(
            encapsulation.receiverKey(identity), kind: encapsulation.receiver(local: local, identity),
            identity: identity)
    }

    private mutating func add(_ key: String, kind: Link.Kind, identity: EgressIdentity) {
        guard tunnels[key] == nil else { return }
        let isMain = key == encapsulation.receiverKey(.defaultAddress)
        // Where all names are given, the tunnel is not there, and what would go by it is unreachable.
        guard let name = numbers[key].map(Ownership.tunnelName) ?? (isMain ? Ownership.mainTunnel : nil) else { return }
        let mtu = overlayMTU - encapsulation.overhead(of: identity)
        tunnels[key] = Tunnel(
            link: Link(name: name, kind: kind, mtu: mtu, address: local), identity: identity,
            podMTU: mtu - encapsulation.ebpfAllowance)
    }

    /// The entry by which the main tunnel finds a peer; nil: it needs none.
    func mainTunnelNeighbour(peer: IPAddress) -> Neighbour? {
        encapsulation.neighbour(
            TunnelPath(local: local, gateway: peer, identity: .defaultAddress), device: Ownership.mainTunnel)
    }

    /// The next hop towards `gateway`.
    func nextHop(gateway: IPAddress, identity: EgressIdentity) -> NextHop.Target? {
        let path = TunnelPath(local: local, gateway: gateway, identity: identity)
        return tunnels[encapsulation.senderKey(path)].map { encapsulation.nextHop(path, device: $0.link.name) }
    }

    func tunnel(gateway: IPAddress, identity: EgressIdentity) -> Tunnel? {
        tunnels[encapsulation.senderKey(TunnelPath(local: local, gateway: gateway, identity: identity))]
    }

    /// Every device that packets of `identity` may arrive on, by name.
    func devices(of identity: EgressIdentity) -> [String] {
        tunnels.values.filter { $0.identity == identity }.map(\.link.name).sorted()
    }

    /// The number of the tunnel that this node receives `identity` by; 0 for the main one, nil where there is none.
    func receiverNumber(of identity: EgressIdentity) -> UInt32? {
        let key = encapsulation.receiverKey(identity)
        if key == encapsulation.receiverKey(.defaultAddress) { return 0 }
        return numbers[key]
    }

    /// UDP ports at which tunnels in FOU end.
    var fouPorts: [FOUPort] { encapsulation.fouPorts(local: local) }

    var links: [Link] { tunnels.values.map(\.link).sorted { $0.name < $1.name } }
}

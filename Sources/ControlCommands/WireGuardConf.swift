import Jansson
import Model

/// wg-quick(8)'s format, made from the topology's JSON. Private and preshared keys are not in it: they never leave
/// their files.
struct WireGuardConf {
    private let topology: JSON
    private let own: JSON
    private let kind: ShowConf.Kind
    private let name: String

    init(_ topology: JSON, kind: ShowConf.Kind, name: String) throws {
        self.topology = topology
        self.kind = kind
        self.name = name
        let segments = topology[TopologyField.segments]?.elements ?? []
        let peers = topology[TopologyField.peers]?.elements ?? []
        switch kind {
        case .node:
            guard
                let segment = segments.first(where: { segment in
                    (segment[SegmentField.nodes]?.elements ?? []).contains { $0[SegmentNodeField.name]?.string == name }
                })
            else { throw Failure("the mesh has no node \"\(name)\"") }
            guard segment[SegmentField.gateway]?.string == name else {
                throw Failure(
                    "\(name) has no WireGuard device: the gateway of \(segment[SegmentField.key]?.string ?? "") is \(segment[SegmentField.gateway]?.string ?? "")"
                )
            }
            own = segment
        case .peer:
            guard let peer = peers.first(where: { $0[MeshPeerField.name]?.string == name }) else {
                let names = peers.compactMap { $0[MeshPeerField.name]?.string }.joined(separator: ", ")
                throw Failure("there is no peer \"\(name)\"; the peers are: \(names.isEmpty ? "none" : names)")
            }
            own = peer
        }
    }

    /// Everything that it is to have.
    var text: String {
        var text = "[Interface]\n"
        switch kind {
        case .node:
            text += "# PrivateKey is in the node's own wireguard.key\n"
            text += "Address = \(own[SegmentField.wireGuardAddress]?.string ?? "")/32\n"
            text += "ListenPort = \(topology[TopologyField.port]?.integer ?? 0)\n"
        case .peer:
            text += "# PrivateKey = (the one whose public key is \(own[MeshPeerField.publicKey]?.string ?? ""))\n"
            let addresses = strings(own[MeshPeerField.allowedIPs])
            if !addresses.isEmpty { text += "Address = \(addresses.joined(separator: ", "))\n" }
        }
        let keepalive = own[MeshPeerField.persistentKeepalive]?.integer ?? 0
        for segment in topology[TopologyField.segments]?.elements ?? []
        where segment[SegmentField.key] != own[SegmentField.key] || kind == .peer {
            text += section(
                "\(segment[SegmentField.key]?.string ?? ""), gateway \(segment[SegmentField.gateway]?.string ?? "")",
                segment,
                strings(segment[SegmentField.allowedIPs]) + strings(segment[SegmentField.allowedLocationIPs]),
                keepalive: keepalive,
                preshared: kind == .peer && own[MeshPeerField.hasPresharedKey]?.bool == true)
        }
        for peer in topology[TopologyField.peers]?.elements ?? []
        where kind == .node || peer[MeshPeerField.name]?.string != name {
            text += section(
                "peer \(peer[MeshPeerField.name]?.string ?? "")", peer, strings(peer[MeshPeerField.allowedIPs]),
                keepalive: keepalive,
                preshared: kind == .node && peer[MeshPeerField.hasPresharedKey]?.bool == true)
        }
        return text
    }

    /// One [Peer] section, for a host that needs this node or peer as a peer.
    var asPeer: String {
        section(
            name, own, strings(own[MeshPeerField.allowedIPs]) + strings(own[SegmentField.allowedLocationIPs]),
            keepalive: 0, preshared: false)
    }

    /// The same as a Peer object of kilo.squat.ai/v1alpha1.
    var peerObject: JSON {
        let endpoint = own[MeshPeerField.endpoint]?.string.flatMap { text -> JSON? in
            guard let colon = text.lastIndex(of: ":"), let port = Int64(text[text.index(after: colon)...]) else {
                return nil
            }
            let host = text[..<colon].filter { $0 != "[" && $0 != "]" }
            let isAddress =
                host.allSatisfy { $0.isHexDigit || $0 == "." || $0 == ":" } && host.contains { !$0.isLetter }
            return .make(
                ("dnsOrIP", .make((isAddress ? "ip" : "dns", .string(String(host))))), ("port", .integer(port)))
        }
        return .make(
            ("apiVersion", .string("kilo.squat.ai/v1alpha1")), ("kind", .string("Peer")),
            ("metadata", .make(("name", .string(name)))),
            (
                "spec",
                .make(
                    (
                        "allowedIPs",
                        .array(
                            (strings(own[MeshPeerField.allowedIPs]) + strings(own[SegmentField.allowedLocationIPs])).map
                            { .string($0) })
                    ), ("endpoint", endpoint), ("publicKey", own[MeshPeerField.publicKey]))
            ))
    }

    private func section(
        _ title: String, _ value: JSON, _ allowedIPs: [String], keepalive: Int64, preshared: Bool
    ) -> String {
        var text = "\n# \(title)\n[Peer]\nPublicKey = \(value[MeshPeerField.publicKey]?.string ?? "")\n"
        if preshared { text += "# PresharedKey is in the Peer object\n" }
        if let endpoint = value[MeshPeerField.endpoint]?.string { text += "Endpoint = \(endpoint)\n" }
        text += "AllowedIPs = \(allowedIPs.joined(separator: ", "))\n"
        if keepalive > 0 { text += "PersistentKeepalive = \(keepalive)\n" }
        return text
    }

    private func strings(_ value: JSON?) -> [String] { (value?.elements ?? []).compactMap(\.string) }
}

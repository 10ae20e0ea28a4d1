import Model

/// `Peer` (kilo.squat.ai/v1alpha1).
enum PeerManifest {
    static func read(_ reader: ManifestReader) throws(ManifestReader.Failure) -> MeshPeer {
        let name = try Manifests.metadata(reader).required("name")
        guard let spec = try reader.object("spec") else { throw reader.fail("spec", "is missing") }
        guard let key = WireGuardKey(try spec.required("publicKey")) else {
            throw spec.fail("publicKey", "is not a WireGuard key (32 bytes in base64)")
        }
        var peer = MeshPeer(name: name, publicKey: key)
        if let text = try spec.string("presharedKey"), !text.isEmpty {
            guard let preshared = WireGuardKey(text) else {
                throw spec.fail("presharedKey", "is not a WireGuard key (32 bytes in base64)")
            }
            peer.presharedKey = preshared
        }
        peer.allowedIPs = try spec.networks("allowedIPs")
        if let seconds = try spec.integer("persistentKeepalive") {
            guard let value = UInt16(exactly: seconds) else {
                throw spec.fail("persistentKeepalive", "is not a number of seconds, 0 to 65535")
            }
            peer.persistentKeepalive = value
        }
        if let endpoint = try spec.object("endpoint") { peer.endpoint = try read(endpoint: endpoint) }
        return peer
    }

    private static func read(endpoint: ManifestReader) throws(ManifestReader.Failure) -> Endpoint? {
        guard let port = try endpoint.integer("port") else { throw endpoint.fail("port", "is missing") }
        guard let port = UInt16(exactly: port), port > 0 else { throw endpoint.fail("port", "is not a port") }
        let host = try endpoint.object("dnsOrIP") ?? endpoint
        if let text = try host.string("ip"), !text.isEmpty {
            guard let address = IPAddress(text) else { throw host.fail("ip", "\"\(text)\" is not an IP address") }
            return Endpoint(host: .address(address), port: port)
        }
        if let text = try host.string("dns"), !text.isEmpty {
            guard let parsed = Endpoint("\(text):\(port)") else {
                throw host.fail("dns", "\"\(text)\" is not a DNS name")
            }
            return parsed
        }
        throw endpoint.fail("dnsOrIP", "has neither ip nor dns")
    }
}

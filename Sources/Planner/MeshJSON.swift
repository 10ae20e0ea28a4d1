import Jansson
import Model

/// The mesh as JSON: what `culvertctl graph`, `showconf` and `mtu` are made from, live and offline alike.
public enum MeshJSON {
    public static func topology(_ topology: MeshTopology, configuration: MeshConfiguration) -> JSON {
        TopologyField.object(
            (.subnet, .string("\(configuration.subnet)")), (.port, .integer(Int64(configuration.port))),
            (.interface, .string(configuration.interface)),
            (.granularity, .string(configuration.granularity.rawValue)),
            (.segments, .array(topology.segments.map { segment($0, topology, port: configuration.port) })),
            (.peers, .array(topology.peers.map(peer))),
            (.problems, .array(topology.problems.map { .string($0) })))
    }

    private static func segment(_ segment: MeshTopology.Segment, _ topology: MeshTopology, port: UInt16) -> JSON {
        let gateway = segment.gateway
        return SegmentField.object(
            (.key, .string(segment.key)), (.location, .string(topology.location(of: gateway))),
            (.gateway, .string(gateway.name)), (.wireGuardAddress, .string("\(segment.wireGuardAddress)")),
            (.publicKey, gateway.mesh.key.map { .string($0.text) } ?? .null),
            (.endpoint, MeshTopology.endpoint(of: gateway, port: port).map { .string("\($0)") } ?? .null),
            (.persistentKeepalive, .integer(Int64(gateway.mesh.persistentKeepalive))),
            (.allowedIPs, .array(segment.ownNetworks.sorted().map { .string("\($0)") })),
            (.allowedLocationIPs, .array(segment.allowedLocationIPs.map { .string("\($0)") })),
            (
                .nodes,
                .array(
                    segment.nodes.map { node in
                        SegmentNodeField.object(
                            (.name, .string(node.name)),
                            (.privateAddress, node.mesh.privateAddress.map { .string("\($0.address)") } ?? .null),
                            (.podCIDRs, .array(node.podCIDRs.map { .string("\($0)") })))
                    })
            ))
    }

    /// Without its preshared key.
    private static func peer(_ peer: MeshPeer) -> JSON {
        MeshPeerField.object(
            (.name, .string(peer.name)), (.publicKey, .string(peer.publicKey.text)),
            (.hasPresharedKey, .bool(peer.presharedKey != nil)),
            (.endpoint, peer.endpoint.map { .string("\($0)") } ?? .null),
            (.persistentKeepalive, .integer(Int64(peer.persistentKeepalive))),
            (.allowedIPs, .array(peer.allowedIPs.map { .string("\($0)") })))
    }

    public static func mtu(_ lines: [PathMTULine]) -> JSON {
        .array(lines.map { PathMTUField.object((.what, .string($0.what)), (.bytes, .integer(Int64($0.bytes)))) })
    }
}

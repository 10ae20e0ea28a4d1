import Jansson
import Model
import Planner

/// What a node says of itself to the others: a Node object of annotations only, which an inventory merges into the
/// Node of the same name.
struct PublishedNode: Equatable {
    let name: String
    let annotations: [String: String]

    /// - Parameters:
    ///   - wireGuardAddress: of this node, where it is a gateway.
    ///   - lastSeen: seconds since 1970 of Kilo's last check-in; only said to Kilo.
    init(
        facts: LocalFacts, discovered: [WireGuardKey: SocketAddress] = [:], configuration: Configuration, node: Node?,
        wireGuardAddress: IPAddress? = nil, lastSeen: Int64 = 0
    ) {
        name = facts.nodeName
        var annotations: [String: String] = [:]
        annotations["kilo.squat.ai/cilium-internal-ip"] = facts.overlayAddress?.description
        annotations["culvert.dev/egress-address"] = facts.egressAddressV4?.description
        if configuration.mesh.enabled {
            annotations["kilo.squat.ai/key"] = facts.publicKey?.text
            // What the user forces stays the user's word; it is told by the annotation itself.
            annotations["kilo.squat.ai/internal-ip"] = facts.privateAddress?.description
            if configuration.mesh.granularity == .full { annotations["kilo.squat.ai/granularity"] = "full" }
            if configuration.mesh.persistentKeepalive > 0 {
                annotations["kilo.squat.ai/persistent-keepalive"] = "\(configuration.mesh.persistentKeepalive)"
            }
            if !discovered.isEmpty {
                annotations["kilo.squat.ai/discovered-endpoints"] =
                    JSON.object(
                        discovered.sorted { $0.key < $1.key }.map { key, address in
                            JSON.Member(
                                key.text,
                                .make(
                                    ("IP", .string("\(address.address)")), ("Port", .integer(Int64(address.port))),
                                    ("Zone", .string(""))))
                        }
                    ).text(indent: 0)
            }
            if configuration.mesh.kiloInterop {
                // What Kilo's nodes write of themselves, and without which they take a node for gone.
                annotations["kilo.squat.ai/endpoint"] =
                    node.flatMap { MeshTopology.endpoint(of: $0, port: configuration.mesh.port) }?.description
                annotations["kilo.squat.ai/internal-ip"] = facts.privateAddress?.description ?? "-"
                annotations["kilo.squat.ai/granularity"] = configuration.mesh.granularity.rawValue
                annotations["kilo.squat.ai/persistent-keepalive"] = "\(configuration.mesh.persistentKeepalive)"
                annotations["kilo.squat.ai/wireguard-ip"] =
                    wireGuardAddress.map { "\($0)/\(configuration.mesh.subnet.prefixLength)" } ?? ""
                annotations["kilo.squat.ai/last-seen"] = "\(lastSeen)"
            }
        }
        self.annotations = annotations
    }

    /// As YAML. Values are single-quoted, where nothing is special but the quote itself.
    var manifest: String {
        let lines = annotations.sorted { $0.key < $1.key }.map { key, value in
            "    \(key): '\(value.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "''"))'\n"
        }
        return "apiVersion: v1\nkind: Node\nmetadata:\n  name: '\(name)'\n  annotations:"
            + (lines.isEmpty ? " {}\n" : "\n" + lines.joined())
    }
}

import Jansson
import Model
import Planner

/// What a node says of itself to the others: a Node object of annotations only, which an inventory merges into the
/// Node of the same name.
struct PublishedNode: Equatable {
    let name: String
    let annotations: [String: String]

    /// What is said of the mesh.
    enum MeshPart {
        case all
        /// Another's key stays in force, and without a sign of life of ours another gateway is chosen.
        case withoutKey
        /// All of it is a Kilo's to say. What stands already and is the same goes on being said: it would be taken out of the
        /// Node otherwise, and Kilo, which has only found it unchanged, would be without it until it writes again.
        case nothing
    }

    /// - Parameters:
    ///   - mesh: what is said of it.
    ///   - wireGuardAddress: of this node, where it is a gateway.
    ///   - echoInterval: that it wishes as a gateway, milliseconds.
    ///   - lastSeen: seconds since 1970 of Kilo's last check-in; only said to Kilo.
    init(
        facts: LocalFacts, discovered: [WireGuardKey: SocketAddress] = [:], configuration: Configuration, node: Node?,
        wireGuardAddress: IPAddress? = nil, lastSeen: Int64 = 0, echoInterval: Int? = nil, mesh: MeshPart = .all
    ) {
        name = facts.nodeName
        var annotations: [String: String] = [:]
        annotations["kilo.squat.ai/cilium-internal-ip"] = facts.overlayAddress?.description
        annotations[Planner.egressAddressAnnotation] = facts.egressAddressV4?.description
        annotations[EchoPace.annotation] = echoInterval.map { "\($0)" }
        let besideKilo = annotations
        if configuration.mesh.enabled {
            annotations["kilo.squat.ai/key"] = mesh == .withoutKey ? nil : facts.publicKey?.text
            // A value that the user forces stays the user's: it is already in the annotation.
            annotations["kilo.squat.ai/internal-ip"] = facts.privateAddress?.description
            // A value that another program has written for this node is left alone.
            let keepalive = configuration.mesh.persistentKeepalive
            if keepalive > 0, [0, keepalive].contains(node?.mesh.persistentKeepalive ?? 0) {
                annotations["kilo.squat.ai/persistent-keepalive"] = "\(keepalive)"
            }
            let granularity = configuration.mesh.granularity
            if granularity == .full || configuration.mesh.kiloInterop,
                [nil, granularity].contains(node?.mesh.granularity)
            {
                annotations["kilo.squat.ai/granularity"] = granularity.rawValue
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
                    node.flatMap { MeshPlan.ownEndpoint(of: $0, facts: facts, configuration: configuration.mesh) }?
                    .description
                annotations["kilo.squat.ai/internal-ip"] = facts.privateAddress?.description ?? "-"
                // Kilo's name for the overlay address, which it reads with a length only.
                annotations["kilo.squat.ai/cni-compatibility-ip"] = facts.overlayAddress.map { "\($0)/32" }
                annotations["kilo.squat.ai/wireguard-ip"] =
                    wireGuardAddress.map { "\($0)/\(configuration.mesh.subnet.prefixLength)" } ?? ""
                annotations["kilo.squat.ai/last-seen"] = mesh == .withoutKey ? nil : "\(lastSeen)"
            }
        }
        if mesh == .nothing {
            annotations = besideKilo.merging(
                annotations.filter { !PublishedNode.signs.contains($0.key) && node?.annotations[$0.key] == $0.value }
            ) { own, _ in own }
        }
        self.annotations = annotations
    }

    /// By which each of two programs says that the node is its own.
    private static let signs: Set = [
        "kilo.squat.ai/key", "kilo.squat.ai/last-seen", "kilo.squat.ai/discovered-endpoints",
    ]

    /// As YAML. Values are single-quoted, where nothing is special but the quote itself.
    var manifest: String {
        let lines = annotations.sorted { $0.key < $1.key }.map { key, value in
            "    \(key): '\(value.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "''"))'\n"
        }
        return "apiVersion: v1\nkind: Node\nmetadata:\n  name: '\(name)'\n  annotations:"
            + (lines.isEmpty ? " {}\n" : "\n" + lines.joined())
    }
}

/// The annotations of its Node that a helper may write.
public enum PublishedAnnotations {
    public static let names: Set<String> = Set(
        [
            "cilium-internal-ip", "key", "internal-ip", "persistent-keepalive", "granularity", "discovered-endpoints",
            "endpoint", "cni-compatibility-ip", "wireguard-ip", "last-seen",
        ].map { "kilo.squat.ai/\($0)" }
    ).union([Planner.egressAddressAnnotation, EchoPace.annotation])

    /// The command that removes them by a user's credentials.
    public static func removal(of node: String) -> String {
        "kubectl annotate node \(node) " + names.sorted().map { "\($0)-" }.joined(separator: " ")
    }
}

import Model

/// What a node says of itself to the others: a Node object of annotations only, which an inventory merges into the
/// Node of the same name.
struct PublishedNode: Equatable {
    let name: String
    let annotations: [String: String]

    init(facts: LocalFacts) {
        name = facts.nodeName
        var annotations: [String: String] = [:]
        annotations["kilo.squat.ai/cilium-internal-ip"] = facts.overlayAddress?.description
        annotations["culvert.dev/egress-address"] = facts.egressAddressV4?.description
        self.annotations = annotations
    }

    /// As YAML.
    var manifest: String {
        let lines = annotations.sorted { $0.key < $1.key }.map { "    \($0.key): \"\($0.value)\"\n" }
        return "apiVersion: v1\nkind: Node\nmetadata:\n  name: \"\(name)\"\n  annotations:"
            + (lines.isEmpty ? " {}\n" : "\n" + lines.joined())
    }
}

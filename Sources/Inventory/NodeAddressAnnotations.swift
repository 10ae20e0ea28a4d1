import Model

/// Annotations of a Node that hold an address or a network, Kilo's and Cilium's. A malformed one is reported and counts
/// as absent: one bad annotation must take neither the node's other values nor other objects with it.
enum NodeAddressAnnotations {
    /// An address, with or without a prefix length; the strongest first (design.md, "Inventory").
    static let nodeAddresses = ["kilo.squat.ai/force-internal-ip", "kilo.squat.ai/internal-ip"]
    static let overlayAddresses = ["kilo.squat.ai/cilium-internal-ip", "kilo.squat.ai/cni-compatibility-ip"]
    /// Used after the CiliumNode's value.
    static let lastOverlayAddresses = ["network.cilium.io/ipv4-cilium-host", "network.cilium.io/ipv6-cilium-host"]
    /// Networks.
    static let podCIDRs = ["network.cilium.io/ipv4-pod-cidr", "network.cilium.io/ipv6-pod-cidr"]

    /// nil where the annotation is absent, empty, `-` (Kilo's word for "none") or malformed.
    static func address(_ key: String, of annotations: [String: String]) -> InterfaceAddress? {
        annotations[key].flatMap { isNone($0) ? nil : interfaceAddress($0) }
    }
    static func addresses(_ keys: [String], of annotations: [String: String]) -> [IPAddress] {
        keys.compactMap { address($0, of: annotations)?.address }
    }
    static func networks(_ keys: [String], of annotations: [String: String]) -> [IPNetwork] {
        keys.compactMap { annotations[$0].flatMap { IPNetwork($0) } }
    }

    /// The malformed ones.
    static func problems(of node: Node) -> [InventoryProblem] {
        func report(_ key: String, _ what: String) -> InventoryProblem {
            InventoryProblem(
                file: "Node \(node.name)", field: "metadata.annotations[\"\(key)\"]",
                message: "\"\(shown(node.annotations[key] ?? ""))\" is not \(what); it is left out")
        }
        var problems: [InventoryProblem] = []
        for key in nodeAddresses + overlayAddresses + lastOverlayAddresses {
            guard let text = node.annotations[key], !isNone(text), interfaceAddress(text) == nil else { continue }
            problems.append(report(key, "an address in CIDR notation"))
        }
        for key in podCIDRs {
            guard let text = node.annotations[key], !text.isEmpty, IPNetwork(text) == nil else { continue }
            problems.append(report(key, "a network in CIDR notation"))
        }
        return problems
    }

    /// The beginning of a value that a stranger wrote, short enough for a message.
    static func shown(_ text: String) -> String { text.utf8.count <= 100 ? text : text.prefix(80) + "…" }

    private static func isNone(_ text: String) -> Bool { text.isEmpty || text == "-" }

    /// `ADDRESS/LENGTH` or `ADDRESS`, the host part kept.
    static func interfaceAddress(_ text: String) -> InterfaceAddress? {
        guard let network = IPNetwork(text),
            let address = text.split(separator: "/").first.flatMap({ IPAddress(String($0)) })
        else { return nil }
        return InterfaceAddress(address, prefixLength: network.prefixLength)
    }
}

import Model

/// A node among those that a gateway selector matches: higher priority first, and then by name.
struct GatewayRank: Comparable, Hashable, Sendable {
    /// Of a node: an annotation, or a label of that name where there is none (CiliumNodes carry labels only); an integer, 0 where
    /// it is missing. Candidates with a higher one go first.
    static let priorityKey = "culvert.dev/gateway-priority"

    let priority: Int
    let name: String
    let location: String
    /// Kubernetes has given the node up, and no echo has come back that shows the opposite.
    let isDoubtful: Bool

    init(_ node: Node, topologyLabel: String) {
        priority =
            (node.annotations[GatewayRank.priorityKey] ?? node.labels[GatewayRank.priorityKey]).flatMap { Int($0) } ?? 0
        name = node.name
        location = node.mesh.location ?? node.labels[topologyLabel] ?? ""
        isDoubtful = node.isGivenUp
    }

    static func < (a: Self, b: Self) -> Bool {
        a.priority != b.priority ? a.priority > b.priority : a.name < b.name
    }
}

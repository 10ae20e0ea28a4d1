import Model

/// Where tunnels end: this node's address and the other nodes', and what fits between them.
struct TunnelEnds {
    /// This node's own; nil: not known, and there are no tunnels.
    let local: IPAddress?
    /// Bytes of the largest packet that the overlay carries.
    let overlayMTU: Int
    private let configuration: Configuration
    private let nodeName: String
    private let inventory: Inventory

    init(configuration: Configuration, facts: LocalFacts, inventory: Inventory) {
        self.configuration = configuration
        self.inventory = inventory
        nodeName = facts.nodeName
        let told = inventory.nodes[facts.nodeName].flatMap {
            MeshPlan.outerAddress($0, overlay: configuration.overlay)
        }
        // An address that is not known at the moment is the last one that was: live tunnels have it.
        local = (configuration.overlay == .cilium ? facts.overlayAddress : nil) ?? told ?? facts.lastOverlayAddress
        let encryption = inventory.cilium?.encryptionOverhead ?? 0
        overlayMTU =
            configuration.overlay == .none
            ? facts.underlayMTU : facts.underlayMTU - TunnelLinks.Overhead.overlay - encryption
    }

    /// Where tunnels to a node end; nil where that is not known.
    func address(of name: String) -> IPAddress? {
        name == nodeName
            ? local : inventory.nodes[name].flatMap { MeshPlan.outerAddress($0, overlay: configuration.overlay) }
    }
}

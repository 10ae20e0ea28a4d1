extension KubernetesInventory {
    /// What is read of Nodes.
    public enum NodeReading: Sendable {
        /// The own one; of others their CiliumNodes have all.
        case own
        /// Labels and annotations of all.
        case metadata
        /// Addresses and pod networks too: there are no CiliumNodes.
        case whole
    }
}

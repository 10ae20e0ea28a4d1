import Firewall
import Model
import Netlink

/// Connections through this gateway that began under a release that kept no zones of connection tracking. They stay where
/// they are: a zone would translate them anew, with another port, and break them.
enum FlowsWithoutZone {
    /// More than that are translated anew. The set has twice the room, and one transaction holds them all.
    private static let most = 65_536

    /// What goes into the set when the firewall table gets it. Empty where the table has the set already, and where there is no
    /// table: then nothing has come out of a tunnel yet.
    ///
    /// - Parameter kernel: the table as the kernel has it; nil: there is none, or it was not looked at.
    static func flows(kernel: KernelFirewall?, wanted: FirewallTable?) -> [[UInt8]] {
        guard let kernel, !kernel.setNames.contains(Ownership.flowsWithoutZone),
            wanted?.sets.contains(where: { $0.name == Ownership.flowsWithoutZone }) == true
        else { return [] }
        // Where connection tracking cannot be asked, connections break, and nothing else does.
        return (try? ConnectionTracking().translatedFlows(most: most)) ?? []
    }
}

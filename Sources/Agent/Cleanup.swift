import CLinux
import Firewall
import Model
import Netlink
import Reconcile

/// `culvertd cleanup`: removes exactly what is ours.
public enum Cleanup {
    /// Everything of Culvert in this network namespace's kernel, and in the run directory.
    ///
    /// - Throws: where a helper is running, or the kernel refuses to let go of something.
    /// - Returns: how many changes were made to the kernel.
    public static func run(runDirectory: String) throws -> Int {
        let store = AttachmentStore(runDirectory: runDirectory)
        if access(runDirectory, W_OK) == 0 { try store.lock() }
        let outcome = try Reconciler().apply(HostState())
        if let failure = outcome.failures.first {
            throw AttachmentStore.Failure(
                description:
                    "not everything could be removed: \(failure.message); remove the cause and run this command again")
        }
        store.removeAll()
        return outcome.count
    }

    /// What a Kilo has left in this network namespace's kernel.
    ///
    /// - Throws: what the kernel refuses.
    /// - Returns: what was removed, line by line.
    public static func removeKilo() throws -> [String] {
        try KiloLeftovers(socket: NetlinkSocket(bus: NETLINK_ROUTE)).remove() + KiloChains().remove()
    }
}

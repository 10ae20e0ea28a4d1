import Model
import Reconcile

/// `culvertd cleanup`: removes exactly what is ours.
public enum Cleanup {
    /// Everything of Culvert in this network namespace's kernel, and in the run directory.
    ///
    /// - Returns: how many changes were made to the kernel.
    public static func run(runDirectory: String) throws -> Int {
        let changes = try Reconciler().apply(HostState(), full: true)
        AttachmentStore(runDirectory: runDirectory).removeAll()
        return changes
    }
}

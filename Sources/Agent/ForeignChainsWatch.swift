import Firewall
import Model

/// Looks at other programs' firewall rules, which may be thousands: not on the main path.
actor ForeignChainsWatch {
    nonisolated let executor: KernelThread
    nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    /// - Parameter thread: where it is done.
    init(on thread: KernelThread) { executor = thread }

    /// - Returns: what other tables drop of forwarded packets; nil where the kernel does not tell.
    func read() -> [ForwardDrop]? { try? ForeignForwardChains().read() }
}

import CLinux

/// A dedicated thread for system calls that block. Swift's cooperative threads must not block.
public enum BlockingThread {
    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    /// Runs `body` on a new, detached thread.
    ///
    /// - Throws: where the system gives no thread; `body` is let go of.
    public static func start(_ purpose: String, stackKiB: UInt32 = 512, _ body: @escaping @Sendable () -> Void) throws {
        let retained = Unmanaged.passRetained(Body(body))
        let error = culvert_start_thread(
            { argument in
                if let argument { Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
                return nil
            }, retained.toOpaque(), stackKiB)
        guard error < 0 else { return }
        retained.release()
        throw NetlinkError(operation: "thread for \(purpose)", code: -error)
    }
}

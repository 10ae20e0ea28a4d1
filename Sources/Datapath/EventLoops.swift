import CLinux
import Firewall
import Inventory
import Logging
import Netlink

/// The threads that wait for the kernel and for files, and tell the agent.
public enum EventLoops {
    /// Kernel events of both kinds and changes of the inventory directory, for as long as the process lives.
    ///
    /// - Throws: where the kernel's notifications cannot be had.
    public static func start(agent: NodeAgent, inventoryDirectory: String, logger: Logger) async throws {
        let ports = await agent.eventPorts
        let (drift, driftSignal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let (deletions, deletionSignal) = AsyncStream.makeStream(of: Int32.self)
        try thread(HostEventLoop(ports: ports.route, drift: driftSignal, deletions: deletionSignal, logger: logger))
        try thread(FirewallEventLoop(port: ports.firewall, drift: driftSignal, logger: logger))
        try thread(InventoryLoop(directory: inventoryDirectory, agent: agent))
        Task {
            for await _ in drift {
                await agent.kernelChanged()
                // Our repair may itself cause events (routes that vanish with a device), which one more look settles.
                try? await Task.sleep(for: .milliseconds(20))
            }
        }
        Task {
            for await index in deletions {
                if index == 0 { await agent.lookAtEverything() } else { await agent.linksDeleted([index]) }
            }
        }
    }

    private static func thread(_ loop: Loop) throws {
        let error = culvert_start_thread(
            { argument in
                if let argument { Unmanaged<Loop>.fromOpaque(argument).takeRetainedValue().run() }
                return nil
            }, Unmanaged.passRetained(loop).toOpaque())
        if error < 0 { throw NetlinkError(operation: "thread for events", code: -error) }
    }

    class Loop {
        func run() {}
    }

    private final class HostEventLoop: Loop {
        let events: HostEvents
        let drift: AsyncStream<Void>.Continuation
        let deletions: AsyncStream<Int32>.Continuation
        let logger: Logger
        init(
            ports: UInt32, drift: AsyncStream<Void>.Continuation, deletions: AsyncStream<Int32>.Continuation,
            logger: Logger
        ) throws {
            events = try HostEvents(ownPorts: [ports])
            self.drift = drift
            self.deletions = deletions
            self.logger = logger
        }
        override func run() {
            while true {
                do {
                    for event in try events.next() {
                        switch event {
                        case .linkDeleted(let index): deletions.yield(index)
                        case .drift: drift.yield()
                        case .overrun: deletions.yield(0)
                        }
                    }
                } catch {
                    logger.error("kernel notifications: \(error)")
                    deletions.yield(0)
                    sleep(1)
                }
            }
        }
    }

    private final class FirewallEventLoop: Loop {
        let events: FirewallEvents
        let drift: AsyncStream<Void>.Continuation
        let logger: Logger
        init(port: UInt32, drift: AsyncStream<Void>.Continuation, logger: Logger) throws {
            events = try FirewallEvents(ownPort: port)
            self.drift = drift
            self.logger = logger
        }
        override func run() {
            while true {
                do { if try events.next() { drift.yield() } } catch {
                    logger.error("nftables notifications: \(error)")
                    drift.yield()
                    sleep(1)
                }
            }
        }
    }

    private final class InventoryLoop: Loop {
        let directory: String
        let agent: NodeAgent
        init(directory: String, agent: NodeAgent) {
            self.directory = directory
            self.agent = agent
        }
        override func run() {
            while true {
                guard let watch = DirectoryWatch(directory) else {
                    sleep(1)
                    let agent = agent
                    Task { await agent.inventoryChanged() }
                    continue
                }
                // Whatever happened before the watch began.
                signal()
                while access(directory, R_OK) == 0 {
                    if watch.wait(milliseconds: 5000) { signal() }
                }
            }
        }
        private func signal() {
            let agent = agent
            Task { await agent.inventoryChanged() }
        }
    }
}

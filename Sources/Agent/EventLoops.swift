import CLinux
import Firewall
import Inventory
import Logging
import Netlink

/// The threads that wait for the kernel and for files, and tell the agent.
public enum EventLoops {
    /// Kernel events of both kinds and changes of the inventory, for as long as the process lives.
    ///
    /// - Throws: where the kernel's notifications cannot be had.
    public static func start(agent: NodeAgent, logger: Logger) async throws {
        let ports = await agent.eventPorts
        let (drift, driftSignal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let (deletions, deletionSignal) = AsyncStream.makeStream(of: Int32.self)
        let host = try HostEventLoop(
            ports: ports.route, drift: driftSignal, deletions: deletionSignal, logger: logger)
        try BlockingThread.start("kernel notifications") { host.run() }
        let firewall = try FirewallEventLoop(port: ports.firewall, drift: driftSignal, logger: logger)
        try BlockingThread.start("nftables notifications") { firewall.run() }
        if let files = agent.source.files {
            try BlockingThread.start("the inventory directory") { files.watch() }
        }
        if await agent.configuration.mesh.enabled { Task { await watchMesh(agent: agent) } }
        Task { for await _ in agent.source.changes { await agent.inventoryChanged() } }
        Task { for await policies in agent.reports { await agent.source.report(policies) } }
        Task { for await annotations in agent.publications { await agent.source.publish(annotations: annotations) } }
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

    /// Looks at WireGuard every ten seconds, checks in with Kilo every thirty (its own timer), and asks for the addresses
    /// of endpoints' names every minute.
    private static func watchMesh(agent: NodeAgent) async {
        var round = 0
        while true {
            if round % 6 == 0 {
                let names = await agent.endpointNames
                if !names.isEmpty { await agent.namesResolved(await EndpointResolver.addresses(of: names)) }
            }
            if round % 3 == 0 { await agent.checkInWithKilo() }
            await agent.lookAtWireGuard()
            round += 1
            try? await Task.sleep(for: .seconds(10))
        }
    }

    // Each loop is used by one thread only, which is why those with a socket may cross to it.

    private final class HostEventLoop: @unchecked Sendable {
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
        func run() {
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

    private final class FirewallEventLoop: @unchecked Sendable {
        let events: FirewallEvents
        let drift: AsyncStream<Void>.Continuation
        let logger: Logger
        init(port: UInt32, drift: AsyncStream<Void>.Continuation, logger: Logger) throws {
            events = try FirewallEvents(ownPort: port)
            self.drift = drift
            self.logger = logger
        }
        func run() {
            while true {
                do { if try events.next() { drift.yield() } } catch {
                    logger.error("nftables notifications: \(error)")
                    drift.yield()
                    sleep(1)
                }
            }
        }
    }
}

import CLinux
import Dispatch
import Firewall
import Inventory
import Logging
import Netlink
import Reconcile
import Synchronization

/// The threads that wait for the kernel and for files, and the tasks that pass their events to the agent.
public struct EventLoops: Sendable {
    private let agent: NodeAgent
    private let changes: KernelChanges
    private let deletions: AsyncStream<Int32>
    /// The plugin has left records of DELs.
    private let records: AsyncStream<Void>

    /// Begins to listen, so that no later event is missed. Events are not passed on yet.
    ///
    /// - Throws: if the kernel's notifications are not available.
    public static func listen(agent: NodeAgent, logger: Logger) async throws -> EventLoops {
        let ports = await agent.eventPorts
        let changes = KernelChanges()
        let (deletions, deletionSignal) = AsyncStream.makeStream(of: Int32.self)
        let host = try HostEventLoop(ports: ports.route, changes: changes, deletions: deletionSignal, logger: logger)
        try BlockingThread.start("kernel notifications") { host.run() }
        let firewall = try FirewallEventLoop(ports: ports.firewall, changes: changes, logger: logger)
        try BlockingThread.start("nftables notifications") { firewall.run() }
        let (records, recordSignal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let directory = agent.deletedDirectory
        try BlockingThread.start("DELs on record") { watch(directory) { _ = recordSignal.yield() } }
        if let files = agent.source.files {
            try BlockingThread.start("the inventory directory") { files.watch() }
        }
        try agent.failOver.start()
        try agent.echoes.start()
        try agent.targets.start()
        return EventLoops(agent: agent, changes: changes, deletions: deletions, records: records)
    }

    /// Signals that something in a directory may have changed, for as long as the process lives.
    private static func watch(_ directory: String, _ changed: () -> Void) {
        while true {
            guard let watch = DirectoryWatch(directory) else {
                sleep(1)
                continue
            }
            changed()
            while watch.wait(milliseconds: -1) != .ended { changed() }
            sleep(1)
        }
    }

    /// Passes the events since `listen`, and all later ones, to the agent for as long as the process lives. It must be
    /// called after the agent has loaded the state of the previous run.
    public func serve() async {
        let agent = agent
        if agent.configuration.mesh.enabled {
            Task { await EventLoops.watchMesh(agent: agent) }
            Task { await EventLoops.checkIn(agent: agent) }
            let resolver = EndpointResolver()
            Task { await EventLoops.askForNames(resolver, agent: agent) }
            Task { await EventLoops.takeAddresses(resolver, agent: agent) }
        }
        Task { for await _ in agent.source.changes { await agent.inventoryChanged() } }
        Task { for await policies in agent.reports { await agent.publisher.report(policies) } }
        Task { for await annotations in agent.publications { await agent.publisher.publish(annotations: annotations) } }
        Task { for await reports in agent.failOver.reports { await agent.failedOver(reports) } }
        Task {
            for await _ in agent.failOver.news {
                // Gateways that flap are told of once a second.
                try? await Task.sleep(for: .seconds(1))
                await agent.healthChanged()
            }
        }
        Task { for await verdicts in agent.targets.changes { await agent.targetsChanged(verdicts) } }
        let changes = changes
        Task { await EventLoops.repair(changes, agent) }
        let deletions = deletions
        Task {
            for await index in deletions {
                if index == 0 { await agent.lookAtEverything() } else { await agent.linksDeleted([index]) }
            }
        }
        let records = records
        Task { for await _ in records { await agent.drainDeletions() } }
        Task {
            try? await Task.sleep(for: .seconds(1))
            while true {
                await agent.lookAtHost()
                try? await Task.sleep(for: .seconds(30))
            }
        }
    }

    /// Has what others change put back, kind by kind. The first time at once; while others go on, less and less often.
    private static func repair(_ changes: KernelChanges, _ agent: NodeAgent) async {
        let shortest = Duration.milliseconds(20)
        var pause = shortest
        for await _ in changes.signals {
            let (parts, facts) = changes.take()
            if parts.isEmpty && !facts { continue }
            let clock = ContinuousClock.now
            let repaired = await agent.kernelChanged(parts, facts: facts)
            // Looking in vain again and again costs others their time; a repair is never put off.
            pause = repaired ? shortest : min(pause * 2, .milliseconds(500))
            let spent = ContinuousClock.now - clock
            try? await Task.sleep(for: max(pause, spent * 2))
            if !changes.isPending { pause = shortest }
        }
    }

    /// Asks for the addresses of endpoints' names every minute.
    private static func askForNames(_ resolver: EndpointResolver, agent: NodeAgent) async {
        while true {
            resolver.ask(await agent.endpointNames)
            try? await Task.sleep(for: .seconds(60))
        }
    }

    /// Hands answers on, those together that come shortly after each other.
    private static func takeAddresses(_ resolver: EndpointResolver, agent: NodeAgent) async {
        for await _ in resolver.signals {
            await agent.namesResolved(resolver.takeAnswers())
            try? await Task.sleep(for: .milliseconds(200))
        }
    }

    /// Looks at WireGuard every ten seconds, and who is in the mesh every five.
    private static func watchMesh(agent: NodeAgent) async {
        var round = 0
        while true {
            await agent.lookWhoIsSilent()
            if round % 2 == 0 { await agent.lookAtWireGuard() }
            round += 1
            try? await Task.sleep(for: .seconds(5))
        }
    }

    /// Checks in with Kilo's nodes every thirty seconds, whatever the rest is busy with.
    private static func checkIn(agent: NodeAgent) async {
        while true {
            await agent.checkInWithKilo()
            try? await Task.sleep(for: .seconds(30))
        }
    }

    // Each loop is used by one thread only, which is why those with a socket may cross to it.

    private final class HostEventLoop: @unchecked Sendable {
        let events: HostEvents
        let changes: KernelChanges
        let deletions: AsyncStream<Int32>.Continuation
        let logger: Logger
        init(
            ports: Set<UInt32>, changes: KernelChanges, deletions: AsyncStream<Int32>.Continuation, logger: Logger
        ) throws {
            events = try HostEvents(ownPorts: ports)
            self.changes = changes
            self.deletions = deletions
            self.logger = logger
        }
        func run() {
            while true {
                do {
                    for event in try events.next() {
                        switch event {
                        case .linkDeleted(let index): deletions.yield(index)
                        case .ourLinks: changes.add([.links])
                        case .ourNextHops: changes.add([.nextHops])
                        case .ourRoutes: changes.add([.routes])
                        case .ourRules: changes.add([.rules])
                        case .neighbours: changes.add([.neighbours])
                        // A device that goes down takes routes along, and says nothing of them.
                        case .facts: changes.add([.links], facts: true)
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
        let changes: KernelChanges
        let logger: Logger
        init(ports: Set<UInt32>, changes: KernelChanges, logger: Logger) throws {
            events = try FirewallEvents(ownPorts: ports)
            self.changes = changes
            self.logger = logger
        }
        func run() {
            while true {
                do { if try events.next() { changes.add([.firewall]) } } catch {
                    logger.error("nftables notifications: \(error)")
                    changes.add([.firewall])
                    sleep(1)
                }
            }
        }
    }
}

/// Parts of the kernel that somebody else has changed and nobody has looked at yet.
final class KernelChanges: Sendable {
    private struct Pending {
        var parts: Set<KernelPart> = []
        var facts = false
    }
    private let pending = Mutex(Pending())
    let signals: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation

    init() { (signals, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1)) }

    func add(_ parts: Set<KernelPart>, facts: Bool = false) {
        pending.withLock {
            $0.parts.formUnion(parts)
            $0.facts = $0.facts || facts
        }
        signal.yield()
    }
    func take() -> (parts: Set<KernelPart>, facts: Bool) {
        pending.withLock { pending in
            let taken = pending
            pending = Pending()
            return (taken.parts, taken.facts)
        }
    }
    var isPending: Bool { pending.withLock { !$0.parts.isEmpty || $0.facts } }
}

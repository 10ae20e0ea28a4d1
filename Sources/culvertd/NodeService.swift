import Agent
import CLinux
import Logging
import ServiceLifecycle

/// The node as a service: reads the inventory, takes over what was, and listens on `cni.sock` until shutdown, which lets the
/// calls finish that are under way. A shutdown during the start ends the program at once.
struct NodeService: Service {
    let agent: NodeAgent
    /// Begins to read the inventory, and waits until it is known.
    let begin: @Sendable () async -> Void
    let socket: String
    let isReady: Ready
    let logger: Logger

    func run() async throws {
        let logger = logger
        let server = try await withGracefulShutdownHandler {
            try await start()
        } onGracefulShutdown: {
            logger.info("stopped while starting; what is in the kernel stays as it is")
            _exit(0)
        }
        server.start()
        isReady.value = true
        logger.info("ready", metadata: ["node": "\(agent.nodeName)"])
        // The most of what is resident is code, and half of that is for the start.
        culvert_let_go_of_code()
        try? await gracefulShutdown()
        isReady.value = false
        server.stop()
        await agent.finish()
    }

    private func start() async throws -> PluginServer {
        await begin()
        // Listening first, so that nothing that happens during the start is missed; and nobody is told of it before what
        // was is loaded.
        let events = try await EventLoops.listen(agent: agent, logger: logger)
        try await agent.start()
        await events.serve()
        return try PluginServer(path: socket, agent: agent, logger: logger)
    }
}

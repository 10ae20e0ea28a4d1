import API
import Agent
import ArgumentParser
import CLinux
import CNI
import ControlCommands
import FoundationEssentials
import Glibc
import Inventory
import Logging
import Model
import ServiceLifecycle
import Synchronization

/// One program under two names: called as `culvertctl` (by a link, in the image and in the Debian package) it is that. The
/// two would otherwise carry the same libraries twice.
@main
enum Main {
    static func main() async {
        if culvert_is_called("culvertctl") == 1 { await Culvertctl.main() } else { await Culvertd.main() }
    }
}

struct Culvertd: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "culvertd",
        abstract: "Culvert's helper: manages this node's tunnels, routes and firewall.",
        discussion: """
            Examples:
              culvertd check-config
              culvertd run --node worker-1
              culvertd install --once
            """,
        version: CulvertRelease.version,
        subcommands: [Run.self, CheckConfig.self, Install.self, Uninstall.self, CleanupCommand.self])
}

struct Run: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run the helper until SIGTERM or SIGINT.",
        discussion: """
            It needs the capability CAP_NET_ADMIN and no other. Tunnels and routes stay as they are when it stops. \
            Options given here override the configuration file.

            Examples:
              culvertd run
              culvertd run --config culvertd.yaml --node worker-1 --log-level debug
            """)

    @Option(help: "Configuration file. (default: /etc/culvert/culvertd.yaml, if it exists)") var config: String?
    @Option(help: "Name of this node. (default: node in the configuration, else NODE_NAME, else the host name)")
    var node: String?
    @Option(
        help: "Directory of manifests. (default: inventory.path in the configuration, else /etc/culvert/inventory.d)")
    var inventory: String?
    @Option(help: "Directory of the sockets and attachments.") var runDir = "/run/culvert"
    @Option(help: "Directory of what outlives a reboot.") var stateDir = "/var/lib/culvert"
    @Option(
        help:
            "Log level: trace, debug, info, notice, warning, error or critical. (default: log.level in the configuration, else info)"
    )
    var logLevel: String?

    @Option(
        help:
            "Group that may open api.sock, by name or number. (default: listen.apiGroup in the configuration, else the helper's group)"
    )
    var apiGroup: String?

    func run() async throws {
        StopSignals.endTheStart()
        var settings = HelperConfiguration()
        let defaultConfig = "/etc/culvert/culvertd.yaml"
        if let path = config ?? (access(defaultConfig, F_OK) == 0 ? defaultConfig : nil) {
            do { settings = try HelperConfiguration(contentsOf: path) } catch {
                throw ValidationError("\(error)")
            }
        }
        let level = logLevel ?? settings.logLevel
        guard let threshold = Logger.Level(rawValue: level) else {
            throw ValidationError(
                "\(level) is not a log level; use trace, debug, info, notice, warning, error or critical")
        }
        LoggingSystem.bootstrap { label in
            var handler = StreamLogHandler.standardError(label: label)
            handler.logLevel = threshold
            return handler
        }
        let logger = Logger(label: "culvertd")
        signal(SIGPIPE, SIG_IGN)

        culvert_raise_file_limit()
        _ = culvert_raise_net_admin()
        guard culvert_has_net_admin() == 1 else {
            logger.critical(
                "CAP_NET_ADMIN is missing: run as root, or give the binary the capability (setcap cap_net_admin+ep)")
            throw ExitCode(1)
        }
        let name =
            node ?? settings.node ?? ProcessInfo.processInfo.environment["NODE_NAME"]
            ?? ProcessInfo.processInfo.hostName
        let directory = inventory ?? settings.inventoryPath
        let isReady = Ready()
        do {
            let keys = settings.planner.mesh.enabled ? try WireGuardKeyFile(stateDirectory: stateDir) : nil
            settings.inventoryPath = directory
            let chosen = try InventorySources.make(
                settings, nodeName: name, stateDirectory: stateDir, logger: logger)
            let agent = try NodeAgent(
                settings: .init(
                    nodeName: name, runDirectory: runDir, configuration: settings.planner, keys: keys,
                    stateDirectory: stateDir),
                source: chosen.source, publisher: chosen.publisher, logger: logger)
            let apiSocket = runDir + "/api.sock"
            try removeStaleSocket(apiSocket)
            let group = try (apiGroup ?? settings.apiGroup).map { try APIGroup($0) }
            // Until the socket has its group, nobody else may open it.
            umask(group == nil ? 0o117 : 0o177)
            let api = try StatusAPI.server(
                socket: apiSocket, agent: agent, logger: logger, isReady: { isReady.value },
                onServerRunning: { group?.take(apiSocket, logger: logger) })
            let node = NodeService(
                agent: agent, begin: chosen.begin, socket: runDir + "/cni.sock", isReady: isReady, logger: logger)
            // The API answers while the node still starts: a helper that waits for its inventory is alive, and says why
            // it is not ready.
            let services = ServiceGroup(
                configuration: .init(
                    services: [.init(service: api), .init(service: node)],
                    gracefulShutdownSignals: [.sigterm, .sigint], logger: logger))
            try await services.run()
            logger.info("stopped; tunnels and routes stay as they are")
        } catch let error as ExitCode { throw error } catch {
            logger.critical("\(error)")
            throw ExitCode(1)
        }
    }

    /// Hummingbird replaces a socket, and crashes at anything else.
    private func removeStaleSocket(_ path: String) throws {
        var status = stat()
        guard lstat(path, &status) == 0 else { return }
        guard status.st_mode & S_IFMT == S_IFSOCK else {
            throw ValidationError("\(path) exists and is not a socket; remove it")
        }
        unlink(path)
    }
}

final class Ready: Sendable {
    private let flag = Atomic<Bool>(false)
    var value: Bool {
        get { flag.load(ordering: .sequentiallyConsistent) }
        set { flag.store(newValue, ordering: .sequentiallyConsistent) }
    }
}

struct CleanupCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cleanup",
        abstract: "Remove everything that Culvert made on this node.",
        discussion: """
            Stop the helper first. Removes Culvert's objects from the kernel and the records in the run directory. With inventory.source \
            kubernetes it also removes the annotations that the helper wrote to the Node object. With --kilo it removes \
            only what Kilo left on this node.

            Examples:
              culvertd cleanup
              culvertd cleanup --kilo
            """)

    @Option(help: "Configuration file. (default: /etc/culvert/culvertd.yaml, if it exists)") var config: String?
    @Option(help: "Name of this node. (default: node in the configuration, else NODE_NAME, else the host name)")
    var node: String?
    @Option(help: "Directory of the sockets and of the records that last until a reboot.") var runDir = "/run/culvert"
    @Option(help: "Directory of what outlives a reboot.") var stateDir = "/var/lib/culvert"
    @Flag(
        help: ArgumentHelp(
            "Remove what Kilo left on this node, and nothing of Culvert's.",
            discussion:
                "The device kilo0, routes of protocol static over it and over tunl0, table 1107 with its rules, and the chains KILO-NAT and KILO-IPIP of iptables-nft. Stop Kilo first, because it would make them again."
        )) var kilo = false

    func run() async throws {
        _ = culvert_raise_net_admin()
        do {
            if kilo { return try removeKilo() }
            let changes = try Cleanup.run(runDirectory: runDir)
            // Who had an ADD is not known any more: those pods must not be taken for pods that had none.
            try ChainRecordFile.remove(stateDir)
            print("removed: \(changes) changes to the kernel, and the records in \(runDir)")
            try await withdraw()
        } catch {
            StandardError.write("culvertd: \(error)\n")
            throw ExitCode(1)
        }
    }

    private func removeKilo() throws {
        let done = try Cleanup.removeKilo()
        print(
            done.isEmpty ? "Kilo has left nothing in this kernel" : done.map { "removed: \($0)\n" }.joined(),
            terminator: "")
        if done.isEmpty { print() }
        print(
            "chains that were made by iptables-legacy cannot be seen by this command; these commands show them: iptables-legacy -t nat -S | grep KILO; iptables-legacy -t filter -S | grep KILO"
        )
    }

    /// What the helper has written into its Node, by the helper's own credentials.
    private func withdraw() async throws {
        let defaultConfig = "/etc/culvert/culvertd.yaml"
        let path = config ?? (access(defaultConfig, F_OK) == 0 ? defaultConfig : nil)
        let settings = try path.map { try HelperConfiguration(contentsOf: $0) }
        let name =
            node ?? settings?.node ?? ProcessInfo.processInfo.environment["NODE_NAME"]
            ?? ProcessInfo.processInfo.hostName
        guard let settings else {
            print(
                "there is no configuration (--config): if the helper has written annotations into its Node, they are still there, and this removes them: \(PublishedAnnotations.removal(of: name))"
            )
            return
        }
        guard settings.source == .kubernetes else { return }
        do {
            try await InventorySources.withdraw(settings, nodeName: name)
            print("removed: the annotations of Node \(name)")
        } catch {
            throw ValidationError(
                "the kernel is clean; the annotations of Node \(name) cannot be removed (\(error)): run \(PublishedAnnotations.removal(of: name))"
            )
        }
    }
}

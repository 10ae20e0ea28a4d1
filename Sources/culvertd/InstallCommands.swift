import ArgumentParser
import CLinux
import FoundationEssentials
import Glibc
import Installer
import Inventory
import Logging
import Model

/// Where a container runtime looks, as both commands need it.
struct RuntimeDirectories: ParsableArguments {
    @Option(help: "Directory of the runtime's network configurations.") var confDir = "/etc/cni/net.d"
    @Option(
        help:
            "Directory of the runtime's plugins. (default: bin_dir of /etc/containerd/config.toml, else \(PluginDirectory.usual))"
    )
    var binDir: String?
}

struct Install: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Add the plugin to this node and to the plugin chain of a network.",
        discussion: """
            Copies the plugin into the runtime's plugin directory, makes the helper's directories, and chains the plugin \
            by the first of these methods that the node allows: an entry that Cilium writes itself; Culvert's own list, \
            which sorts before the network's file (own-list); a drop-in file, which needs libcni 1.3 or later (drop-in); \
            an entry in the network's file (in-place). Then it watches the directory until SIGTERM. With --once it ends as \
            soon as the plugin is chained. It runs as uid 0 with the helper's group and needs no capability.

            Examples:
              culvertd install --chain-after cilium    # watches until SIGTERM
              culvertd install --once --chain-by in-place
            """)

    @OptionGroup var directories: RuntimeDirectories
    @Option(help: "Name of the network to chain after. (default: the network whose file the runtime uses first)")
    var chainAfter: String?
    @Option(help: "Method: own-list, drop-in or in-place. (default: the first one that the node allows)")
    var chainBy: ChainMethod?
    @Flag(help: "End when the plugin is chained, instead of watching the directory.") var once = false
    @Option(help: "File of the plugin. (default: culvert, in the directory of this program)") var plugin: String?
    @Option(help: "Run directory of the helper.") var runDir = "/run/culvert"
    @Option(help: "Directory of the helper's files that outlive a reboot.") var stateDir = "/var/lib/culvert"
    @Option(
        help:
            "Group of the helper, by name or number. (default: the group that this program runs as; if that is root's, the group culvert, if it exists)"
    )
    var group: String?
    @Option(
        help:
            "A place where the container runtime's program may be, which says whether it reads drop-ins; may be repeated. (default: the usual places)"
    )
    var runtime: [String] = []
    @Option(help: "What the plugin does with a new pod while the helper cannot be reached: refuse or allow.")
    var whenHelperUnavailable = "refuse"
    @Option(
        help:
            "How many times in a row the plugin may be taken out of the chain before this command gives up, 1 to 1000.")
    var giveUpAfter = 10
    @Option(
        help:
            "exit or rest. exit: end with exit code 3 after giving up. rest: stay, not ready, and try again after an hour."
    )
    var afterDefeat = AfterDefeat.exit

    enum AfterDefeat: String, ExpressibleByArgument, CaseIterable {
        case exit, rest
    }
    /// Given up: a supervisor that starts the program anew would only go on with the fight.
    private static let defeated = ExitCode(3)

    func validate() throws {
        if let plugin, !plugin.hasPrefix("/") { throw ValidationError("--plugin must be an absolute path") }
        guard runDir.hasPrefix("/"), runDir.utf8.count <= 90 else {
            throw ValidationError("--run-dir must be an absolute path of at most 90 characters: it has a socket in it")
        }
        guard ["refuse", "allow"].contains(whenHelperUnavailable) else {
            throw ValidationError("--when-helper-unavailable must be refuse or allow")
        }
        guard (1...1000).contains(giveUpAfter) else {
            throw ValidationError("--give-up-after must be a number from 1 to 1000")
        }
    }

    func run() throws {
        let logger = InstallLog.start()
        StopSignals.listen()
        var state = ChainStateFile(runDirectory: runDir, logger: logger)
        do {
            let notes = try SharedDirectories.make(
                runDirectory: runDir, stateDirectory: stateDir, group: try helperGroup())
            for note in notes { logger.warning("\(note)") }
            // What an installer before this one has come to holds no longer.
            state.write(ChainState(.waiting, reason: "culvertd install is starting"))
            let file = PluginFile(directory: directories.binDir ?? PluginDirectory.ofRuntime())
            let source = plugin ?? InstallLog.besideThisProgram(PluginEntry.type)
            if try file.install(from: source) == .written { logger.info("copied the plugin to \(file.path)") }
            guard let folder = try open(logger, &state) else { return }
            let watch = ChainWatch(
                folder: folder,
                wishes: ChainWishes(
                    entry: PluginEntry(
                        socket: runDir + "/cni.sock", allowsWithoutHelper: whenHelperUnavailable == "allow"),
                    network: chainAfter, method: chainBy,
                    readsDropIns: RuntimeLibrary.readsDropIns(programs: runtime)),
                losses: ChainLosses(most: giveUpAfter),
                report: { report in
                    switch report {
                    case .info(let text): logger.info("\(text)")
                    case .warning(let text): logger.warning("\(text)")
                    }
                })
            try keep(watch, folder, file, source, &state, logger)
        } catch let error as ExitCode { throw error } catch {
            state.write(ChainState(.failed, reason: "\(error)"))
            logger.critical("\(error)")
            throw ExitCode(1)
        }
    }

    /// Tells the helper since when the plugin is called.
    ///
    /// - Returns: why the helper cannot be told; empty where it can.
    private func keepRecord(_ method: ChainMethod?, hasChained: Bool) -> String {
        do {
            try ChainRecordFile.keep(
                ChainRecord(
                    since: Int64(time(nil)), isFound: !hasChained,
                    // What somebody else's entry says is not looked at.
                    allowsWithoutHelper: method == nil || whenHelperUnavailable == "allow"), stateDir)
            return ""
        } catch { return "the helper cannot be told since when the plugin is in the chain: \(error)" }
    }

    private func helperGroup() throws -> gid_t {
        guard let group else {
            let own = getegid()
            return own == 0 ? getgrnam("culvert")?.pointee.gr_gid ?? own : own
        }
        if let number = gid_t(group) { return number }
        guard let entry = getgrnam(group) else {
            throw InstallationFailure("the group \(group) does not exist: groupadd -r \(group)")
        }
        return entry.pointee.gr_gid
    }

    /// The directory, once it is there and no other installer works on it. nil: a signal ended the wait.
    private func open(_ logger: Logger, _ state: inout ChainStateFile) throws -> ConfigurationFolder? {
        let path = directories.confDir
        var said = ""
        func wait(_ reason: String, _ state: inout ChainStateFile) {
            if said != reason { logger.info("waiting: \(reason)") }
            said = reason
            state.write(ChainState(.waiting, reason: reason))
        }
        let begin = ContinuousClock.now
        while true {
            if access(path, F_OK) != 0 {
                if once {
                    throw InstallationFailure(
                        "\(path) does not exist: start the network's own program (Cilium) first, or name the directory with --conf-dir"
                    )
                }
                wait("\(path) does not exist yet", &state)
            } else if let folder = try ConfigurationFolder(path) {
                return folder
            } else {
                if once && ContinuousClock.now - begin > .seconds(5) {
                    throw InstallationFailure("another culvertd install keeps watch over \(path): stop it first")
                }
                wait("another culvertd install is working in \(path)", &state)
            }
            if StopSignals.wait(milliseconds: 500) { return nil }
        }
    }

    /// How long a chain must stand before `--once` believes it: a writer that takes it away does so within milliseconds.
    private static let settling = Duration.seconds(1)
    /// How long `--once` waits for a file that cannot be used, because somebody is writing it.
    private static let patience = Duration.seconds(2)

    private func keep(
        _ watch: ChainWatch, _ folder: ConfigurationFolder, _ file: PluginFile, _ source: String,
        _ state: inout ChainStateFile, _ logger: Logger
    ) throws {
        var watch = watch
        var recordProblem = ""
        let begin = ContinuousClock.now
        var chainedSince: ContinuousClock.Instant?
        var isDefeatSaid = false
        var events = DirectoryWatch(directories.confDir)
        while !StopSignals.isSet {
            if folder.isReplaced {
                throw InstallationFailure(
                    "\(directories.confDir) was deleted or replaced: this program must be started again to see the new directory, which its supervisor does"
                )
            }
            if events?.isWatching(directories.confDir) != true { events = DirectoryWatch(directories.confDir) }
            let now = ContinuousClock.now
            let outcome = watch.step(now: (now - begin) / .seconds(1))
            if let found = ChainState(outcome) { state.write(found) }
            if case .chained = outcome { chainedSince = chainedSince ?? now } else { chainedSince = nil }
            if case .defeated = outcome {} else { isDefeatSaid = false }
            var pause: Int32 = 2000
            switch outcome {
            case .chained(_, let method):
                let problem = keepRecord(method, hasChained: watch.hasChained)
                if problem != recordProblem && !problem.isEmpty { logger.warning("\(problem)") }
                recordProblem = problem
                if once {
                    if let since = chainedSince, now - since >= Install.settling { return }
                    pause = 50
                }
            case .waiting(let reason):
                if once {
                    guard now - begin < Install.patience else {
                        throw InstallationFailure(
                            "\(reason) in \(directories.confDir); start the network's own program (Cilium) first, or leave --once out"
                        )
                    }
                    pause = 50
                }
            case .obstructed(let reason): if once { throw InstallationFailure(reason) }
            case .resting(let seconds):
                // Events of the opponent do not shorten the pause.
                if StopSignals.wait(milliseconds: Int32(min(seconds, 60) * 1000) + 1) { return }
                continue
            case .overtaken: pause = 1
            case .failed(let reason): throw InstallationFailure(reason)
            case .defeated(let reason):
                if once { throw InstallationFailure(reason) }
                if !isDefeatSaid { logger.critical("\(reason)") }
                isDefeatSaid = true
                if afterDefeat == .exit { throw Install.defeated }
                if StopSignals.wait(milliseconds: pause) { return }
                continue
            }
            // Somebody who empties the plugin directory, as an upgrade of the runtime may, leaves a chain that fails.
            if access(file.path, F_OK) != 0, try file.install(from: source) == .written {
                logger.warning("\(file.path) was missing and has been restored")
            }
            if let events {
                _ = events.wait(milliseconds: pause)
            } else if StopSignals.wait(milliseconds: pause) {
                return
            }
        }
        logger.info("stopped; the chain stays as it is")
    }
}

/// The installer's word in the run directory on what it has come to (`ChainState`).
struct ChainStateFile {
    private let path: String
    private let logger: Logger
    private var last: ChainState?

    init(runDirectory: String, logger: Logger) {
        path = ChainState.path(runDirectory: runDirectory)
        self.logger = logger
    }

    /// Nothing is written where it says so already.
    mutating func write(_ state: ChainState) {
        guard state != last else { return }
        last = state
        // The helper is of the directory's group, and reads it.
        do { try AtomicFile.write(state.json.text() + "\n", to: path, mode: 0o640) } catch {
            logger.warning("\(error): nobody is told whether the plugin is in the chain")
        }
    }
}

struct Uninstall: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Take the plugin out of the chain and remove it from this node.",
        discussion: """
            Stop `culvertd install` first. Files that belong to Culvert are removed. In files of other programs only Culvert's entry is removed, and \
            every other byte stays. The command can be repeated. `culvertd cleanup` removes what is in the kernel.

            Examples:
              culvertd uninstall
              culvertd uninstall --keep-plugin
            """)

    @OptionGroup var directories: RuntimeDirectories
    @Option(help: "Directory of what outlives a reboot.") var stateDir = "/var/lib/culvert"
    @Flag(
        help:
            "Do not remove the plugin's file. CRI-O and podman remember the chain of running containers, and need the plugin for their DEL."
    )
    var keepPlugin = false
    @Option(help: "Directory of the helper's sockets, where the installer has said how it chained the plugin.")
    var runDir = "/run/culvert"

    func run() throws {
        let logger = InstallLog.start()
        StopSignals.listen()
        do {
            var foreign: [String] = []
            if access(directories.confDir, F_OK) == 0 {
                foreign = try restore(logger)
            }
            if foreign.isEmpty { unlink(ChainState.path(runDirectory: runDir)) }
            // The usual directory too: containerd's configuration may have named none when the plugin was installed.
            let plugins = Set([
                directories.binDir ?? PluginDirectory.ofRuntime(), directories.binDir ?? PluginDirectory.usual,
            ])
            .sorted().map(PluginFile.init)
            guard foreign.isEmpty else {
                throw InstallationFailure(
                    "\(foreign.joined(separator: ", ")) in \(directories.confDir) still has an entry for Culvert's plugin that another program wrote: remove it (with Cilium: in the ConfigMap of cni.configMap), then run this command again; until then the plugin is not removed"
                )
            }
            try ChainRecordFile.remove(stateDir)
            for plugin in plugins {
                if keepPlugin {
                    logger.info("kept \(plugin.path)")
                } else if try plugin.remove() {
                    logger.info("removed \(plugin.path)")
                }
            }
        } catch {
            logger.critical("\(error)")
            throw ExitCode(1)
        }
    }

    /// - Returns: files whose entry somebody else wrote.
    private func restore(_ logger: Logger) throws -> [String] {
        var folder: ConfigurationFolder?
        for attempt in 0..<50 {
            folder = try ConfigurationFolder(directories.confDir)
            if folder != nil { break }
            if attempt == 0 { logger.info("waiting: culvertd install is working in \(directories.confDir)") }
            if StopSignals.wait(milliseconds: 100) { throw ExitCode(1) }
        }
        guard let folder else {
            throw InstallationFailure("culvertd install keeps watch over \(directories.confDir): stop it first")
        }
        // A file that somebody writes at the same time is read again.
        for _ in 0..<1000 {
            let content = try folder.read()
            let changes = Restore.changes(content)
            if changes.isEmpty { return Restore.foreignEntries(content) }
            for change in changes {
                if try folder.apply(change) { logger.info("\(Uninstall.describe(change))") }
            }
        }
        throw InstallationFailure(
            "another program writes in \(directories.confDir) all the time: stop it, then run this command again")
    }

    private static func describe(_ change: DirectoryChange) -> String {
        switch change {
        case .write(let name, _, _): "wrote \(name)"
        case .replace(let name, _, _, _): "took Culvert's entry out of \(name)"
        case .remove(let name): "removed \(name)"
        case .writeDropIn(let network, _): "wrote a drop-in for \(network)"
        case .removeDropIn(let network): "removed the drop-in for \(network)"
        }
    }
}

extension ChainMethod: ExpressibleByArgument {}

enum InstallLog {
    static func start() -> Logger {
        LoggingSystem.bootstrap { StreamLogHandler.standardError(label: $0) }
        signal(SIGPIPE, SIG_IGN)
        return Logger(label: "culvertd")
    }

    static func besideThisProgram(_ name: String) -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        guard count > 0 else { return "/usr/local/bin/\(name)" }
        let own = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return PathText.directory(of: own) + "/" + name
    }
}

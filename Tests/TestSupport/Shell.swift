import CLinux
import Foundation
import Jansson

/// What a command printed and returned.
public struct CommandResult: Sendable {
    public let status: Int32
    public let output: String
    public let errors: String
    public var json: JSON? { try? JSON.parse([UInt8](output.utf8)) }
}

/// Runs commands and knows where things are.
public enum Shell {
    public static let packageRoot: String = {
        var url = URL(fileURLWithPath: #filePath)
        for _ in 0..<3 { url.deleteLastPathComponent() }
        return url.path
    }()

    /// Directory of the built programs: beside the test bundle.
    public static let binaries: String =
        ProcessInfo.processInfo.environment["CULVERT_BIN"]
        ?? URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().path

    public static var isRoot: Bool { geteuid() == 0 }
    /// Part of every name that a test makes, so that runs stand side by side.
    public static let prefix = "cv\(getpid())"

    /// Runs `command` in bash, with a deadline that ends it.
    @discardableResult
    public static func run(
        _ command: String, environment: [String: String] = [:], input: String? = nil, timeout: Int = 60
    ) -> CommandResult {
        // Files rather than pipes: daemons that a command leaves behind keep pipes open. And posix_spawn rather than
        // Foundation's Process, which needs a loopback interface that is up.
        let base = NSTemporaryDirectory() + "/\(prefix)-\(UUID().uuidString)"
        defer { for suffix in ["in", "out", "err"] { unlink("\(base).\(suffix)") } }
        _ = FileManager.default.createFile(atPath: base + ".in", contents: Data((input ?? "").utf8))
        var variables = ProcessInfo.processInfo.environment
        variables["LAB_BIN"] = binaries
        for (key, value) in environment { variables[key] = value }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, base + ".in", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, base + ".out", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, base + ".err", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        let words = ["/usr/bin/timeout", "-k", "5", "\(timeout)", "bash", "-c", command]
        var argv = words.map { strdup($0) } + [nil]
        var envp = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for pointer in argv + envp { free(pointer) } }
        var pid: pid_t = 0
        guard posix_spawn(&pid, words[0], &actions, nil, &argv, &envp) == 0 else {
            return CommandResult(status: -1, output: "", errors: "posix_spawn failed")
        }
        var raw: Int32 = 0
        while waitpid(pid, &raw, 0) < 0 && errno == EINTR {}
        let status = raw & 0x7F == 0 ? raw >> 8 & 0xFF : 128 + raw & 0x7F
        func text(_ suffix: String) -> String {
            String(decoding: FileManager.default.contents(atPath: "\(base).\(suffix)") ?? Data(), as: UTF8.self)
        }
        return CommandResult(status: status, output: text("out"), errors: text("err"))
    }
}

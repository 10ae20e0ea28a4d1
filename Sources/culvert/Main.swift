import CJansson
import CLinux

/// Where the C library starts the program: the package manager has the linker call this `main`. (Swift's own `@main` does not tell
/// an embedded program its arguments.)
@_cdecl("culvert_main")
public func main(_ count: Int32, _ arguments: UnsafePointer<UnsafePointer<CChar>?>) -> Int32 {
    Main.run(argument: count > 1 ? arguments[1].map { String(cString: $0) } : nil)
}

/// The executable: environment, stdin, stdout. Everything else is in PluginVerbs.
enum Main {
    /// - Parameter argument: the first on the command line.
    /// - Returns: the exit code.
    static func run(argument: String?) -> Int32 {
        if let argument { return answer(argument: argument) }
        // Otherwise libjansson would open /dev/urandom for it.
        json_object_seed(culvert_start_random())
        let outcome = Plugin.run(
            variable: { name in getenv(name).map { String(cString: $0) } },
            stdin: { command throws(CNIError) in try readStdin(command) })
        if !outcome.output.isEmpty && !put(outcome.output + "\n", to: 1) {
            _ = put("culvert: stdout: " + String(cString: strerror(culvert_errno())) + "\n", to: 2)
            return 1
        }
        return outcome.exitCode
    }

    /// The most that a configuration may have, bytes. A result with thousands of routes is far below it.
    static let maximumConfiguration = 4 * 1024 * 1024

    /// Reads stdin to its end. VERSION does without: a terminal or a pipe that stays silent for a second counts as
    /// empty. Any other verb waits as long as the default `timeoutSeconds`.
    static func readStdin(_ command: CNIEnvironment.Command) throws(CNIError) -> [UInt8] {
        let versionOnly = command == .version
        if versionOnly && isatty(0) == 1 { return [] }
        var bytes: [UInt8] = []
        let patience: Int64 = versionOnly ? 1000 : NetworkConfiguration.defaultTimeoutSeconds * 1000
        let deadline = culvert_monotonic_milliseconds() + patience
        while true {
            var entry = pollfd(fd: 0, events: Int16(POLLIN), revents: 0)
            let left = deadline - culvert_monotonic_milliseconds()
            if left <= 0 || poll(&entry, 1, Int32(clamping: left)) == 0 {
                if versionOnly { return bytes }
                throw CNIError(.ioFailure, "stdin did not end in time", details: "the configuration is read from stdin")
            }
            // Not zeroed: memory that nothing is read into is never touched.
            var count = 0
            let chunk = [UInt8](unsafeUninitializedCapacity: 16384) { room, filled in
                count = read(0, room.baseAddress, room.count)
                filled = max(0, count)
            }
            if count == 0 { return bytes }
            if count < 0 {
                if culvert_errno() == EINTR { continue }
                if versionOnly { return [] }
                throw CNIError(.ioFailure, "stdin cannot be read: " + String(cString: strerror(culvert_errno())))
            }
            if bytes.isEmpty { bytes = chunk } else { bytes += chunk }
            guard bytes.count <= maximumConfiguration else {
                throw CNIError(
                    .decodingFailure, "the configuration on stdin has more than \(maximumConfiguration) bytes")
            }
        }
    }

    static func answer(argument: String) -> Int32 {
        switch argument {
        case "--version", "-v", "version":
            return put("culvert \(CulvertRelease.version)\n", to: 1) ? 0 : 1
        case "--help", "-h", "help":
            return put(help, to: 1) ? 0 : 1
        default:
            _ = put("culvert: unknown argument \"\(argument)\"; see culvert --help\n", to: 2)
            return 2
        }
    }

    static func put(_ text: String, to descriptor: Int32) -> Bool {
        let bytes = Array(text.utf8)
        var offset = 0
        while offset < bytes.count {
            let written = bytes.withUnsafeBytes {
                write(descriptor, $0.baseAddress?.advanced(by: offset), bytes.count - offset)
            }
            if written < 0 && culvert_errno() == EINTR { continue }
            guard written > 0 else { return false }
            offset += written
        }
        return true
    }

    static var help: String {
        """
        culvert \(CulvertRelease.version): CNI plugin that routes pods through egress gateways.

        A container runtime runs this program, as the CNI specification 1.1 describes: CNI_COMMAND (ADD, DEL,
        CHECK, GC, STATUS or VERSION) and the other CNI_ variables are in the environment, the configuration is
        on stdin, the result is on stdout, and log lines are on stderr. The plugin is chained after Cilium (or
        another plugin that assigns addresses). It asks culvertd, the helper on the same node, to do the work.

        Keys of its configuration, all optional:
          socket                 path of the helper's socket (default \(NetworkConfiguration.defaultSocket))
          timeoutSeconds         how long one call may take, 1 to 300 (default \(NetworkConfiguration.defaultTimeoutSeconds))
          whenHelperUnavailable  "refuse" (default): the pod waits; "allow": it starts without Culvert
          defaultPolicy          name of the policy of pods that no policy selects
          capabilities           {"io.kubernetes.cri.pod-annotations": true} passes pod annotations to the plugin

        Example, an entry of a .conflist:
          {"type": "culvert", "capabilities": {"io.kubernetes.cri.pod-annotations": true}}

        Options: --help, --version

        """
    }
}

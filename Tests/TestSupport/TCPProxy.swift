import CLinux
import Foundation

/// Tests/StandIn/proxy.py, from Swift: a proxy before the stand-in API server.
public final class TCPProxy: Sendable {
    public let port: Int
    private let directory: String
    private let pid: pid_t

    /// - Parameter url: `http(s)://HOST:PORT` of the server.
    public init(_ name: String, to url: String) throws {
        directory = "/run/culvert-\(Shell.prefix)-proxy-\(name)"
        let server = url.split(separator: "/").last.map(String.init) ?? ""
        let started = Shell.run(
            """
            mkdir -p \(directory) && cd \(directory) && rm -f port closed
            /usr/bin/python3 \(Shell.packageRoot)/Tests/StandIn/proxy.py --to \(server) --closed \(directory)/closed --ready-file port \
                > log 2>&1 < /dev/null &
            echo $! > pid
            for _ in $(seq 200); do [ -s port ] && break; kill -0 $(cat pid) || { cat log >&2; exit 1; }; sleep 0.05; done
            cat port
            """)
        guard started.status == 0, let port = Int(started.output) else {
            throw APIServer.Failure(description: "the proxy does not start: \(started.errors)")
        }
        self.port = port
        pid =
            pid_t(
                Shell.run("cat \(directory)/pid").output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }

    deinit {
        if pid > 1 { CLinux.kill(pid, SIGKILL) }
        Shell.run("rm -rf \(directory)")
    }

    /// Takes connections and closes them at once, or carries them.
    public func close(_ isClosed: Bool) {
        Shell.run(isClosed ? "touch \(directory)/closed" : "rm -f \(directory)/closed")
    }
    /// Stands still: the kernel takes what is sent, and nothing comes back.
    public func freeze(_ isFrozen: Bool) { if pid > 1 { CLinux.kill(pid, isFrozen ? SIGSTOP : SIGCONT) } }
}

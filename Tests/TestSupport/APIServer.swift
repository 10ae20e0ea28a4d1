import CLinux
import Foundation
import Jansson

/// Tests/StandIn/apiserver.py, from Swift: a strict stand-in for the API server, which kubectl and the Python client
/// judge (Tests/StandIn/check.sh).
public final class APIServer: Sendable {
    public let directory: String
    /// `http(s)://127.0.0.1:PORT`
    public let url: String
    private let pid: Int

    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    /// - Parameters:
    ///   - arguments: more of its own, e.g. `--bookmark-seconds 0.5`.
    ///   - port: 0: any.
    public init(_ name: String, arguments: String = "", port: Int = 0) throws {
        directory = "/run/culvert-\(Shell.prefix)-api-\(name)"
        let started = Shell.run(
            """
            mkdir -p \(directory) && chmod 755 \(directory) && cd \(directory) && rm -f url
            /usr/bin/python3 \(Shell.packageRoot)/Tests/StandIn/apiserver.py --listen 127.0.0.1:\(port) --unix \(directory)/api.unix \
                --ready-file url \(arguments) > log 2>&1 < /dev/null &
            echo $! > apiserver.pid
            for _ in $(seq 200); do [ -s url ] && break; kill -0 $(cat apiserver.pid) || { cat log >&2; exit 1; }; sleep 0.05; done
            cat url
            """)
        guard started.status == 0, started.output.hasPrefix("http") else {
            throw Failure(description: "the stand-in API server does not start: \(started.errors)")
        }
        url = started.output
        pid =
            Int(
                Shell.run("cat \(directory)/apiserver.pid").output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }

    deinit {
        if pid > 1 { CLinux.kill(pid_t(pid), SIGKILL) }
        Shell.run("rm -rf \(directory)")
    }

    /// Calls its control plane.
    @discardableResult
    public func control(_ path: String, _ body: String? = nil) -> JSON? {
        Shell.run(
            "curl -sf --unix-socket \(directory)/api.unix \(body == nil ? "" : "--data-binary @-") http://localhost/_standin/\(path)",
            input: body
        ).json
    }
    /// e.g. `{"breakWatches":"reset"}`
    public func fault(_ json: String) { control("faults", json) }
    /// Makes or replaces objects, as JSON texts.
    public func apply(_ manifests: [String]) { control("apply", "[\(manifests.joined(separator: ","))]") }
    public func delete(_ manifests: [String]) { control("delete", "[\(manifests.joined(separator: ","))]") }
    /// An object as it is now.
    public func get(_ path: String) -> JSON? {
        Shell.run(
            "curl -sf --unix-socket \(directory)/api.unix -H 'Authorization: Bearer ADMIN' http://localhost\(path)"
        )
        .json
    }

    /// Requests by `verb resource`, the most watches ever open at once by resource, denials, and connections that were
    /// refused while it was told to.
    public func counters() -> (
        requests: [String: Int], mostWatches: [String: Int], denials: [JSON], refused: Int
    ) {
        let counters = control("counters")
        var requests: [String: Int] = [:]
        var most: [String: Int] = [:]
        for client in counters?["clients"]?.elements ?? [] {
            for verb in client["requests"]?.members ?? [] {
                for resource in verb.value.members ?? [] {
                    requests["\(verb.key) \(resource.key)", default: 0] += Int(resource.value.integer ?? 0)
                }
            }
            for entry in client["maxOpenWatches"]?.members ?? [] {
                most[entry.key] = max(most[entry.key] ?? 0, Int(entry.value.integer ?? 0))
            }
        }
        return (
            requests, most, counters?["denials"]?.elements ?? [], Int(counters?["refusedConnections"]?.integer ?? 0)
        )
    }
}

import ArgumentParser
import AsyncHTTPClient
import FoundationEssentials
import Installer
import Model
import NIOCore

/// Asks the helper whether it is ready, for a kubelet's probes and for scripts that wait. Unlike `status` it prints one
/// line, and policies make no difference.
struct ReadyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ready",
        abstract: "Exit with 0 if the helper is ready for new pods, otherwise with 1.",
        discussion: """
            Prints the helper's answer in one line. With --live only whether the helper answers at all counts. With --chain \
            the helper is not asked: exit 0 when `culvertd install` has put the plugin into the chain.

            Examples:
              culvertctl ready --live
              until culvertctl ready; do sleep 1; done    # waits for the helper
            """)

    @Option(help: "Run directory of the helper, where api.sock is.") var runDir = "/run/culvert"
    @Flag(help: "Exit with 0 if the helper answers, even if it is not ready.") var live = false
    @Flag(help: "Exit 0 when the plugin is in the chain.") var chain = false
    @Option(help: "Seconds to wait for the answer, 1 to 60.") var timeout = 4

    func validate() throws {
        guard (1...60).contains(timeout) else { throw ValidationError("--timeout must be a number from 1 to 60") }
        if live && chain { throw ValidationError("--live asks the helper, and --chain does not: use one of them") }
    }

    func run() async throws {
        if chain { return try showChain() }
        let socket = runDir + "/api.sock"
        guard let url = URL(httpURLWithSocketPath: socket, uri: live ? "/healthz" : "/readyz") else {
            throw ValidationError("\(socket) is not a valid path for a socket")
        }
        let client = HTTPClient(eventLoopGroupProvider: .singleton)
        let answer: (isReady: Bool, line: String)
        do {
            let response = try await client.execute(
                HTTPClientRequest(url: url.absoluteString), timeout: .seconds(Int64(timeout)))
            let body = try await response.body.collect(upTo: 64 * 1024)
            answer = (response.status == .ok, String(buffer: body).trimming(\.isNewline))
        } catch {
            try? await client.shutdown()
            throw Failure(
                "culvertd cannot be reached at \(socket): is it running, and may this user open the socket? (\(error))")
        }
        try? await client.shutdown()
        print(answer.line)
        if !answer.isReady { throw ExitCode(1) }
    }

    private func showChain() throws {
        guard let state = ChainState.read(runDirectory: runDir) else {
            throw Failure(
                "\(ChainState.path(runDirectory: runDir)) cannot be read: does culvertd install run, with this --run-dir?"
            )
        }
        print(state.line)
        if state.phase != .chained { throw ExitCode(1) }
    }
}

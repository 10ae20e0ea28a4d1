import Foundation
import Inventory
import Jansson
import Model
import TestSupport
import Testing

@testable import Kubernetes

/// Programs that print a credential: run once, and ended in time.
@Suite(.serialized) struct ExecCredentialTests {
    /// A plugin's program in a folder of its own, which writes a line into `runs` whenever it is run.
    struct Program {
        let directory: String
        let access: ClusterAccess
        var plugin: ExecCredentialPlugin {
            get throws {
                guard case .exec(let plugin) = access.credential else { throw ClusterAccess.Failure("no plugin") }
                return plugin
            }
        }

        init(_ name: String, server: String = "http://127.0.0.1:9", _ script: String) throws {
            directory = "/run/culvert-\(Shell.prefix)-exec-\(name)"
            Shell.run("rm -rf \(directory); mkdir -p \(directory)")
            try "#!/bin/sh\necho run >> \(directory)/runs\necho $$ > \(directory)/pid\n\(script)\n"
                .write(toFile: directory + "/plugin", atomically: true, encoding: .utf8)
            try """
            apiVersion: v1
            kind: Config
            current-context: c
            contexts: [{name: c, context: {cluster: c, user: u}}]
            clusters: [{name: c, cluster: {server: "\(server)"}}]
            users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin}}}]
            """.write(toFile: directory + "/config", atomically: true, encoding: .utf8)
            Shell.run("chmod 700 \(directory)/plugin; chmod 600 \(directory)/config")
            access = try ClusterAccess.kubeconfig(directory + "/config")
        }
        func remove() { Shell.run("rm -rf \(directory)") }
        static func print(_ token: String) -> String {
            "echo '{\"kind\":\"ExecCredential\",\"status\":{\"token\":\"\(token)\"}}'"
        }
        var runs: Int {
            Int(Shell.run("wc -l < \(directory)/runs").output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        }
        /// Processes of the program's session that are there: itself, and what it has started.
        var alive: Int {
            Int(
                Shell.run("ps -o pid= -s $(cat \(directory)/pid) | wc -l").output.trimmingCharacters(
                    in: .whitespacesAndNewlines)) ?? -1
        }
        func waitUntilGone() async -> Bool {
            for _ in 0..<60 {
                if alive == 0 { return true }
                try? await Task.sleep(for: .milliseconds(50))
            }
            return false
        }
    }

    @Test func requestsAtTheSameTimeRunTheProgramOnce() async throws {
        let directory = "/run/culvert-\(Shell.prefix)-api-exec"
        Shell.run("mkdir -p \(directory) && printf 'SECRET admin system:masters\n' > \(directory)/tokens")
        let server = try APIServer("exec", arguments: "--token-file \(directory)/tokens")
        let program = try Program("once", server: server.url, "sleep 0.5\n" + Program.print("SECRET"))
        defer { program.remove() }
        let client = try KubernetesClient(access: program.access, userAgent: "test")
        let answers = await withTaskGroup(of: Bool.self) { group in
            for _ in 0..<20 { group.addTask { (try? await client.get(.nodes, name: "n0")) != nil } }
            var count = 0
            for await hasAnswer in group where !hasAnswer { count += 1 }
            return count
        }
        #expect(answers == 20, "nobody has a Node n0, and nobody is refused")
        #expect(program.runs == 1)
        // A token that the server does not take any more: once more, for all of them.
        server.fault("{\"expireToken\":\"SECRET\"}")
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<20 { group.addTask { _ = try? await client.get(.nodes, name: "n0") } }
        }
        #expect(program.runs <= 4, "\(program.runs)")
        await client.shutdown()
    }

    @Test func aProgramThatHangsIsEndedAtItsDeadlineWithWhatItHasStarted() async throws {
        let program = try Program("hang", "trap '' TERM\nsleep 100 & sleep 100\n" + Program.print("T"))
        defer { program.remove() }
        let plugin = try program.plugin
        let clock = ContinuousClock.now
        let error = await #expect(throws: ClusterAccess.Failure.self) { try await plugin.run(patience: .seconds(1)) }
        #expect(
            error?.description.contains("printed no credential within 1.0 seconds") == true,
            "\(error?.description ?? "")")
        #expect(ContinuousClock.now - clock < .seconds(8))
        #expect(await program.waitUntilGone(), "\(program.alive) processes are left")
    }

    @Test func aRequestThatIsCancelledDoesNotWaitAndTheLastOneEndsTheProgram() async throws {
        let program = try Program("cancel", "sleep 100")
        defer { program.remove() }
        let client = try KubernetesClient(access: program.access, userAgent: "test")
        let requests = (0..<2).map { _ in Task { try await client.get(.nodes, name: "n0") } }
        // Beside other suites that may take a while.
        for _ in 0..<1200 where program.runs == 0 { try await Task.sleep(for: .milliseconds(50)) }
        #expect(program.runs > 0, "the program was not started")
        let clock = ContinuousClock.now
        requests[0].cancel()
        _ = await requests[0].result
        #expect(ContinuousClock.now - clock < .seconds(2))
        #expect(program.alive > 0, "another request waits for it")
        requests[1].cancel()
        _ = await requests[1].result
        #expect(await program.waitUntilGone())
        await client.shutdown()
    }

    @Test func whatAProgramSaysOnStandardErrorIsNeverShown() async throws {
        let program = try Program("secret", "echo SECRET >&2; exit 7")
        defer { program.remove() }
        let plugin = try program.plugin
        let error = await #expect(throws: ClusterAccess.Failure.self) { try await plugin.run() }
        #expect(
            error?.description.contains("exited with code 7") == true && error?.description.contains("SECRET") == false)
    }
}

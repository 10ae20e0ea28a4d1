import FoundationEssentials
import Jansson
import Subprocess

/// A program that prints a credential (Kubernetes, "client-go credential plugins").
public struct ExecCredentialPlugin: Equatable, Sendable {
    public let command: String
    public let arguments: [String]
    public let environment: [String: String]
    public let apiVersion: String

    init(_ exec: JSON, path: String, base: String) throws(ClusterAccess.Failure) {
        guard let command = exec["command"]?.string, !command.isEmpty else {
            throw ClusterAccess.Failure("\(path): exec has no command")
        }
        // With a slash it is relative to the kubeconfig, without one it is looked up in PATH.
        self.command = command.contains("/") && !command.hasPrefix("/") ? base + "/" + command : command
        arguments = (exec["args"]?.elements ?? []).compactMap(\.string)
        var environment: [String: String] = [:]
        for variable in exec["env"]?.elements ?? [] {
            if let name = variable["name"]?.string { environment[name] = variable["value"]?.string ?? "" }
        }
        self.environment = environment
        apiVersion = exec["apiVersion"]?.string ?? "client.authentication.k8s.io/v1"
        guard apiVersion.hasPrefix("client.authentication.k8s.io/v1") else {
            throw ClusterAccess.Failure("\(path): exec.apiVersion \(apiVersion) is not known")
        }
    }

    /// What it printed.
    struct Credential: Sendable {
        let token: String
        let expires: Date?
    }

    /// How long a program may take. It may ask a server of its own.
    static let patience = Duration.seconds(30)

    /// Runs it. At its deadline, and when the task is cancelled, it is ended, with whatever it has started.
    func run(patience: Duration = ExecCredentialPlugin.patience) async throws -> Credential {
        let ended = try await withThrowingTaskGroup(of: (TerminationStatus, String)?.self) { group in
            group.addTask { try await execute() }
            group.addTask {
                try await Task.sleep(for: patience)
                return nil
            }
            defer { group.cancelAll() }
            return try await group.next() ?? nil
        }
        try Task.checkCancellation()
        guard let (status, output) = ended else {
            throw ClusterAccess.Failure("\(command) printed no credential within \(patience) and was terminated")
        }
        switch status {
        case .exited(0): return try credential(output)
        case .exited(let code):
            throw ClusterAccess.Failure("\(command) exited with code \(code) and printed no credential")
        case .signaled(let signal):
            throw ClusterAccess.Failure("\(command) was terminated by signal \(signal) and printed no credential")
        }
    }

    private func execute() async throws -> (TerminationStatus, String) {
        var variables: [Environment.Key: String?] = [:]
        for (name, value) in environment { variables[Environment.Key(stringLiteral: name)] = value }
        variables["KUBERNETES_EXEC_INFO"] =
            JSON.make(
                ("apiVersion", .string(apiVersion)), ("kind", .string("ExecCredential")),
                ("spec", .make(("interactive", .bool(false))))
            ).text()
        // A session of its own, so that what the program starts ends with it.
        var options = PlatformOptions()
        options.createSession = true
        options.teardownSequence = [
            .gracefulShutDown(toProcessGroup: true, allowedDurationToNextStep: .milliseconds(500))
        ]
        do {
            // Whatever it says on stderr may hold a secret.
            let result = try await Subprocess.run(
                command.contains("/") ? .path(.init(command)) : .name(command), arguments: Arguments(arguments),
                environment: .inherit.updating(variables), platformOptions: options,
                output: .string(limit: ExecCredentialPlugin.maximumOutput), error: .discarded)
            return (result.terminationStatus, result.standardOutput)
        } catch let error as CancellationError { throw error } catch {
            throw ClusterAccess.Failure("\(command) cannot be run: \(error)")
        }
    }
    private static let maximumOutput = 1024 * 1024

    private func credential(_ output: String) throws -> Credential {
        guard let status = try? JSON.parse([UInt8](output.utf8))["status"], let token = status["token"]?.string else {
            throw ClusterAccess.Failure(
                "\(command) printed no ExecCredential with a token (certificates of plugins are not supported)")
        }
        let expires = status["expirationTimestamp"]?.string.flatMap { try? Date($0, strategy: .iso8601) }
        return Credential(token: token, expires: expires)
    }
}

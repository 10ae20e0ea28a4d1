import Foundation
import Jansson

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

    /// Runs it, for at most half a minute.
    func run() async throws -> Credential {
        try await withCheckedThrowingContinuation { continuation in
            Thread.detachNewThread { continuation.resume(with: Result { try runAndWait() }) }
        }
    }

    private func runAndWait() throws -> Credential {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["timeout", "30", command] + arguments
        var variables = ProcessInfo.processInfo.environment.merging(environment) { _, new in new }
        variables["KUBERNETES_EXEC_INFO"] =
            JSON.make(
                ("apiVersion", .string(apiVersion)), ("kind", .string("ExecCredential")),
                ("spec", .make(("interactive", .bool(false))))
            ).text()
        process.environment = variables
        let output = Pipe()
        process.standardOutput = output
        process.standardInput = FileHandle.nullDevice
        // Whatever it says there may hold a secret.
        process.standardError = FileHandle.nullDevice
        do { try process.run() } catch { throw ClusterAccess.Failure("\(command) cannot be run: \(error)") }
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw ClusterAccess.Failure("\(command) ended with \(process.terminationStatus) and gave no credential")
        }
        guard let status = try? JSON.parse([UInt8](data))["status"], let token = status["token"]?.string else {
            throw ClusterAccess.Failure(
                "\(command) printed no ExecCredential with a token (certificates of plugins are not supported)")
        }
        let expires = status["expirationTimestamp"]?.string.flatMap { ISO8601DateFormatter().date(from: $0) }
        return Credential(token: token, expires: expires)
    }
}

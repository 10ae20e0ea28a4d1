import CLinux

#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
    import Jansson
#endif

/// The CNI plugin `culvert`: what one call of it prints and returns.
public enum Plugin {
    /// What a process that called the plugin sees.
    public struct Outcome: Sendable {
        /// The only thing that goes to stdout; empty for DEL, CHECK, GC and STATUS that succeed.
        public let output: String
        public let exitCode: Int32
    }

    /// - Parameters:
    ///   - variable: reads the environment.
    ///   - stdin: reads the whole of stdin; error 5 where that fails.
    public static func run(
        variable: (String) -> String?, stdin: (CNIEnvironment.Command) throws(CNIError) -> [UInt8]
    ) -> Outcome {
        var version = CNIVersion.latest
        do throws(CNIError) {
            let environment = try CNIEnvironment(variable: variable)
            let bytes = try stdin(environment.command)
            if environment.command == .version {
                return Outcome(output: try versionResult(stdin: bytes), exitCode: 0)
            }
            let configuration = try NetworkConfiguration(stdin: bytes, command: environment.command)
            version = configuration.version
            let deadline = culvert_monotonic_milliseconds() + configuration.timeoutSeconds * 1000
            switch environment.command {
            case .add:
                let result = try add(environment, configuration, deadline: deadline)
                return Outcome(output: result.text(indent: 2), exitCode: 0)
            case .del: try delete(environment, configuration, deadline: deadline)
            case .check: try check(environment, configuration, deadline: deadline)
            case .gc: try collectGarbage(configuration, deadline: deadline)
            case .status: try status(configuration, deadline: deadline)
            case .version: break
            }
            return Outcome(output: "", exitCode: 0)
        } catch {
            log("\(error.message)\(error.details.isEmpty ? "" : " (" + error.details + ")")")
            return Outcome(output: error.json(version: version.text).text(indent: 2), exitCode: 1)
        }
    }

    /// One line on stderr.
    static func log(_ line: String) {
        var text = "culvert: " + line + "\n"
        text.withUTF8 { _ = write(2, $0.baseAddress, $0.count) }
    }
}

import ArgumentParser
import CLinux
import FoundationEssentials
import Glibc
import Inventory
import Model

struct CheckConfig: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check-config",
        abstract: "Check a configuration file and print every error in it.",
        discussion: """
            Prints one line per error on stderr and exits with 1, or prints "valid" and exits with 0.

            Example:
              culvertd check-config --config new.yaml
            """)

    @Option(help: "Configuration file to check.") var config = "/etc/culvert/culvertd.yaml"

    func run() throws {
        guard let data = FileManager.default.contents(atPath: config) else {
            var reason = "it is not a regular file"
            let file = open(config, O_RDONLY | O_CLOEXEC)
            if file < 0 { reason = String(cString: strerror(culvert_errno())) } else { close(file) }
            throw fail(["\(config): cannot be read: \(reason)"])
        }
        guard let text = String(data: data, encoding: .utf8) else { throw fail(["\(config): is not UTF-8"]) }
        let problems = HelperConfiguration.problems(text: text)
        guard problems.isEmpty else {
            throw fail(
                problems.map { "\(config): \($0)" }
                    + ["\(config): \(problems.count == 1 ? "1 error" : "\(problems.count) errors")"])
        }
        print("\(config): valid")
    }

    private func fail(_ lines: [String]) -> ExitCode {
        StandardError.write(lines.map { $0 + "\n" }.joined())
        return ExitCode(1)
    }
}

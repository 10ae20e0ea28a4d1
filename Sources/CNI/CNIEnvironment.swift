/// The parameters that a runtime passes in the environment (CNI specification 1.1, "Parameters").
public struct CNIEnvironment: Equatable, Sendable {
    public enum Command: String, Sendable, CaseIterable {
        case add = "ADD"
        case del = "DEL"
        case check = "CHECK"
        case gc = "GC"
        case status = "STATUS"
        case version = "VERSION"
    }

    /// What `CNI_ARGS` says, of what Culvert knows.
    public struct Arguments: Equatable, Sendable {
        public var podNamespace = ""
        public var podName = ""
        public var podUID = ""
        /// `CULVERT_LABELS=key:value,key:value`, in their order.
        public var labels: [(String, String)] = []

        public static func == (a: Self, b: Self) -> Bool {
            a.podNamespace == b.podNamespace && a.podName == b.podName && a.podUID == b.podUID
                && a.labels.count == b.labels.count
                && zip(a.labels, b.labels).allSatisfy { $0.0 == $1.0 && $0.1 == $1.1 }
        }
    }

    public let command: Command
    public let containerID: String
    public let networkNamespace: String
    public let interfaceName: String
    public let arguments: Arguments

    /// - Parameter variable: reads one environment variable; nil when it is not set.
    /// - Throws: error 4, naming every variable that is missing or wrong.
    public init(variable: (String) -> String?) throws(CNIError) {
        guard let name = variable("CNI_COMMAND"), !name.isEmpty else {
            throw CNIError(
                .invalidEnvironment, "CNI_COMMAND is not set",
                details: "culvert is a CNI plugin and is run by a container runtime; see culvert --help")
        }
        guard let command = Command(rawValue: name) else {
            throw CNIError(
                .invalidEnvironment,
                "CNI_COMMAND is \"\(name)\", which is not one of ADD, DEL, CHECK, GC, STATUS, VERSION"
            )
        }
        self.command = command
        containerID = variable("CNI_CONTAINERID") ?? ""
        networkNamespace = variable("CNI_NETNS") ?? ""
        interfaceName = variable("CNI_IFNAME") ?? ""

        var missing: [String] = []
        switch command {
        case .add, .check:
            if containerID.isEmpty { missing.append("CNI_CONTAINERID") }
            if networkNamespace.isEmpty { missing.append("CNI_NETNS") }
            if interfaceName.isEmpty { missing.append("CNI_IFNAME") }
        case .del:
            if containerID.isEmpty { missing.append("CNI_CONTAINERID") }
            if interfaceName.isEmpty { missing.append("CNI_IFNAME") }
        case .gc:
            if (variable("CNI_PATH") ?? "").isEmpty { missing.append("CNI_PATH") }
        case .status, .version: break
        }
        guard missing.isEmpty else {
            throw CNIError(.invalidEnvironment, "\(name) needs \(missing.joined(separator: ", ")) in the environment")
        }
        if command == .add || command == .check || command == .del {
            try CNIEnvironment.checkIdentifier(containerID, what: "CNI_CONTAINERID", code: .invalidEnvironment)
            try CNIEnvironment.checkInterfaceName(interfaceName)
        }
        switch command {
        // DEL needs none, and must not be refused for what ADD was refused for.
        case .add, .check: arguments = try CNIEnvironment.parseArguments(variable("CNI_ARGS") ?? "")
        default: arguments = Arguments()
        }
    }

    /// Container IDs and network names: an alphanumeric character, then any of those, `_`, `.` and `-`.
    static func checkIdentifier(_ text: String, what: String, code: CNIError.Code) throws(CNIError) {
        let bytes = Array(text.utf8)
        func alphanumeric(_ byte: UInt8) -> Bool {
            (48...57).contains(byte) || (65...90).contains(byte) || (97...122).contains(byte)
        }
        guard bytes.count <= 255 else {
            throw CNIError(code, "\(what) is longer than 255 characters")
        }
        guard let first = bytes.first, alphanumeric(first),
            bytes.allSatisfy({ alphanumeric($0) || $0 == 95 || $0 == 46 || $0 == 45 })
        else {
            throw CNIError(
                code, "\(what) is \"\(text)\"",
                details: "it must start with a letter or digit, followed by letters, digits, '_', '.' and '-'")
        }
    }

    /// The kernel's rule for interface names (`dev_valid_name`), which the specification repeats.
    static func checkInterfaceName(_ name: String) throws(CNIError) {
        let bytes = Array(name.utf8)
        let wrong =
            bytes.count > 15
            ? "is longer than 15 characters"
            : name == "." || name == ".."
                ? "is not a name"
                : bytes.contains { $0 == 47 || $0 == 58 || $0 <= 32 } ? "contains '/', ':' or white space" : ""
        guard wrong.isEmpty else { throw CNIError(.invalidEnvironment, "CNI_IFNAME \"\(name)\" \(wrong)") }
    }

    /// `KEY=VALUE;KEY=VALUE`. Unknown keys are refused unless `IgnoreUnknown` is true, as libcni has it.
    static func parseArguments(_ text: String) throws(CNIError) -> Arguments {
        var arguments = Arguments()
        var unknown: [String] = []
        var ignoreUnknown = false
        for pair in text.utf8.split(separator: 59) {
            guard let equals = pair.firstIndex(of: 61) else {
                throw CNIError(
                    .invalidEnvironment,
                    "CNI_ARGS has \"\(String(decoding: pair, as: UTF8.self))\", which is not KEY=VALUE")
            }
            let key = String(decoding: pair[pair.startIndex..<equals], as: UTF8.self)
            let value = String(decoding: pair[pair.index(after: equals)...], as: UTF8.self)
            switch key {
            case "IgnoreUnknown": ignoreUnknown = try parseBoolean(value, key: key)
            case "K8S_POD_NAMESPACE": arguments.podNamespace = value
            case "K8S_POD_NAME": arguments.podName = value
            case "K8S_POD_UID": arguments.podUID = value
            case "K8S_POD_INFRA_CONTAINER_ID": break
            case "CULVERT_LABELS": arguments.labels = try parseLabels(value)
            default: unknown.append(key)
            }
        }
        guard unknown.isEmpty || ignoreUnknown else {
            throw CNIError(
                .invalidEnvironment, "CNI_ARGS has unknown keys: \(unknown.joined(separator: ", "))",
                details: "add IgnoreUnknown=1 to CNI_ARGS to ignore them")
        }
        return arguments
    }

    private static func parseBoolean(_ text: String, key: String) throws(CNIError) -> Bool {
        switch text {
        case "1", "true", "True", "TRUE", "yes": return true
        case "0", "false", "False", "FALSE", "no": return false
        default: throw CNIError(.invalidEnvironment, "CNI_ARGS has \(key)=\(text), which is not a boolean")
        }
    }

    private static func parseLabels(_ text: String) throws(CNIError) -> [(String, String)] {
        var labels: [(String, String)] = []
        for pair in text.utf8.split(separator: 44) {
            guard let colon = pair.firstIndex(of: 58), colon != pair.startIndex else {
                throw CNIError(
                    .invalidEnvironment,
                    "CULVERT_LABELS has \"\(String(decoding: pair, as: UTF8.self))\", which is not key:value")
            }
            labels.append(
                (
                    String(decoding: pair[pair.startIndex..<colon], as: UTF8.self),
                    String(decoding: pair[pair.index(after: colon)...], as: UTF8.self)
                ))
        }
        return labels
    }
}

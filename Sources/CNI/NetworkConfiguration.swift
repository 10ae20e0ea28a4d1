#if !hasFeature(Embedded)
    import Jansson
#endif

/// The plugin configuration that arrives on stdin (CNI specification 1.1, "Plugin configuration objects").
///
/// Culvert's own keys: `socket`, `timeoutSeconds`, `whenHelperUnavailable`, `defaultPolicy`. Keys that are not
/// known are ignored, as every chained plugin does: runtimes add some of their own.
public struct NetworkConfiguration: Equatable, Sendable {
    public enum WhenHelperUnavailable: String, Sendable { case refuse, allow }

    public let version: CNIVersion
    /// The network's name. Empty only for VERSION.
    public let name: String
    /// Path of the helper's `cni.sock`.
    public let socket: String
    /// How long one call may take in all, 1...300 seconds.
    public let timeoutSeconds: Int64
    public let whenHelperUnavailable: WhenHelperUnavailable
    /// Name of the policy for pods that no selector matches, or empty.
    public let defaultPolicy: String
    /// The result of the plugin before this one, complete and as it came. This and what is said of the pod: only for ADD and
    /// CHECK.
    public let previousResult: JSON?
    /// `args.cni.labels` (CONVENTIONS.md).
    public let labels: [(String, String)]
    /// Pod annotations below `culvert.dev/`, from the capability `io.kubernetes.cri.pod-annotations`.
    public let annotations: [(String, String)]
    /// `cni.dev/valid-attachments`; nil when the key is absent.
    public let validAttachments: [Attachment]?

    public struct Attachment: Equatable, Sendable {
        public let containerID: String
        public let interfaceName: String
        public init(containerID: String, interfaceName: String) {
            self.containerID = containerID
            self.interfaceName = interfaceName
        }
    }

    public static let defaultSocket = "/run/culvert/cni.sock"
    public static let defaultTimeoutSeconds: Int64 = 10

    /// - Throws: error 6 where the bytes are not a JSON object, 1 for a version that is not spoken, 7 for a wrong
    ///   value, which the message names. For DEL only the first.
    public init(stdin: [UInt8], command: CNIEnvironment.Command) throws(CNIError) {
        let root: JSON
        do { root = try JSON.parse(stdin) } catch {
            throw CNIError(.decodingFailure, "the configuration on stdin is not JSON", details: error.description)
        }
        guard root.members != nil else {
            throw CNIError(.decodingFailure, "the configuration on stdin is not a JSON object")
        }
        if command == .del { self.init(ofDeletion: root) } else { try self.init(root, command) }
    }

    /// A DEL is never refused for its configuration, or the pod could never be deleted: what is wrong in it counts as its
    /// default. (The ADD was refused for it.)
    private init(ofDeletion root: JSON) {
        version = CNIVersion(root["cniVersion"]?.string ?? "") ?? .latest
        let network = root["name"]?.string ?? ""
        let isName = (try? CNIEnvironment.checkIdentifier(network, what: "name", code: .invalidConfiguration)) != nil
        name = isName ? network : ""
        let path = root["socket"]?.string ?? ""
        socket = NetworkConfiguration.isSocketPath(path) ? path : NetworkConfiguration.defaultSocket
        let seconds = root["timeoutSeconds"]?.integer ?? 0
        timeoutSeconds = (1...300).contains(seconds) ? seconds : NetworkConfiguration.defaultTimeoutSeconds
        whenHelperUnavailable = .refuse
        defaultPolicy = ""
        validAttachments = nil
        previousResult = nil
        labels = []
        annotations = []
    }

    /// An absolute path that fits into a Unix socket's address.
    private static func isSocketPath(_ path: String) -> Bool { path.utf8.first == 47 && path.utf8.count < 108 }

    private init(_ root: JSON, _ command: CNIEnvironment.Command) throws(CNIError) {
        let versionText = try NetworkConfiguration.string(root, "cniVersion", default: "")
        guard !versionText.isEmpty else {
            throw CNIError(
                .incompatibleVersion, "cniVersion is missing, which means 0.1.0",
                details: "culvert supports 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")
        }
        guard let version = CNIVersion(versionText) else {
            throw CNIError(
                .incompatibleVersion, "cniVersion \"\(versionText)\" is not supported",
                details: "culvert supports 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")
        }
        self.version = version
        name = try NetworkConfiguration.string(root, "name", default: "")
        if name.isEmpty && command != .version {
            throw CNIError(.invalidConfiguration, "name is missing from the configuration")
        }
        if !name.isEmpty {
            try CNIEnvironment.checkIdentifier(name, what: "name", code: .invalidConfiguration)
        }
        socket = try NetworkConfiguration.string(root, "socket", default: NetworkConfiguration.defaultSocket)
        guard socket.utf8.first == 47 else {
            throw CNIError(.invalidConfiguration, "socket is \"\(socket)\", which is not an absolute path")
        }
        guard socket.utf8.count < 108 else {
            throw CNIError(
                .invalidConfiguration, "socket is longer than 107 characters, the most that a Unix socket has")
        }
        switch root["timeoutSeconds"] {
        case nil, .null?: timeoutSeconds = NetworkConfiguration.defaultTimeoutSeconds
        case .integer(let seconds)? where (1...300).contains(seconds): timeoutSeconds = seconds
        default: throw CNIError(.invalidConfiguration, "timeoutSeconds must be a whole number from 1 to 300")
        }
        let mode = try NetworkConfiguration.string(root, "whenHelperUnavailable", default: "refuse")
        guard let whenUnavailable = WhenHelperUnavailable(rawValue: mode) else {
            throw CNIError(
                .invalidConfiguration, "whenHelperUnavailable is \"\(mode)\"; it must be \"refuse\" or \"allow\"")
        }
        whenHelperUnavailable = whenUnavailable
        defaultPolicy = try NetworkConfiguration.string(root, "defaultPolicy", default: "")

        validAttachments = command == .gc ? try NetworkConfiguration.validAttachments(root) : nil
        // Other verbs do not need what is said of the pod, and are not refused for it: a pod whose ADD was refused must still
        // be deleted.
        guard command == .add || command == .check else {
            previousResult = nil
            labels = []
            annotations = []
            return
        }
        switch root["prevResult"] {
        case nil, .null?: previousResult = nil
        case .object(let members)?: previousResult = .object(members)
        default: throw CNIError(.invalidConfiguration, "prevResult is not an object")
        }
        labels = try NetworkConfiguration.labels(root)
        annotations = try NetworkConfiguration.annotations(root)
    }

    private static func string(_ root: JSON, _ key: String, default fallback: String) throws(CNIError) -> String {
        switch root[key] {
        case nil, .null?: return fallback
        case .string(let value)?: return value.isEmpty ? fallback : value
        default: throw CNIError(.invalidConfiguration, "\(key) is not a string")
        }
    }

    /// `args.cni.labels`: a list of `{"key": …, "value": …}` (CONVENTIONS.md, "Dynamic Plugin specific fields"), or a map, as
    /// labels are written everywhere else.
    private static func labels(_ root: JSON) throws(CNIError) -> [(String, String)] {
        guard let given = root["args"]?["cni"]?["labels"], !given.isNull else { return [] }
        let wrong = CNIError(
            .invalidConfiguration,
            "args.cni.labels is neither a list of {\"key\", \"value\"} nor a map of strings")
        var labels: [(String, String)] = []
        if let members = given.members {
            for member in members {
                guard let value = member.value.string else { throw wrong }
                labels.append((member.key, value))
            }
            return labels
        }
        guard let elements = given.elements else { throw wrong }
        for element in elements {
            guard let key = element["key"]?.string, let value = element["value"]?.string else { throw wrong }
            labels.append((key, value))
        }
        return labels
    }

    private static func annotations(_ root: JSON) throws(CNIError) -> [(String, String)] {
        guard let map = root["runtimeConfig"]?["io.kubernetes.cri.pod-annotations"], !map.isNull else { return [] }
        guard let members = map.members else {
            throw CNIError(
                .invalidConfiguration, "runtimeConfig \"io.kubernetes.cri.pod-annotations\" is not a map of strings")
        }
        var annotations: [(String, String)] = []
        for member in members where startsWith(member.key, "culvert.dev/") {
            guard let value = member.value.string else {
                throw CNIError(.invalidConfiguration, "the pod annotation \"\(member.key)\" is not a string")
            }
            annotations.append((member.key, value))
        }
        return annotations
    }

    private static func validAttachments(_ root: JSON) throws(CNIError) -> [Attachment]? {
        guard let list = root["cni.dev/valid-attachments"] ?? root["cni.dev/attachments"] else { return nil }
        if list.isNull { return [] }
        guard let elements = list.elements else {
            throw CNIError(.invalidConfiguration, "cni.dev/valid-attachments is not a list")
        }
        var attachments: [Attachment] = []
        for element in elements {
            guard let container = element["containerID"]?.string, let interface = element["ifname"]?.string else {
                throw CNIError(
                    .invalidConfiguration, "cni.dev/valid-attachments has an element without containerID and ifname")
            }
            attachments.append(Attachment(containerID: container, interfaceName: interface))
        }
        return attachments
    }

    static func startsWith(_ text: String, _ prefix: String) -> Bool {
        var iterator = text.utf8.makeIterator()
        for byte in prefix.utf8 {
            guard let other = iterator.next(), other == byte else { return false }
        }
        return true
    }

    public static func == (a: Self, b: Self) -> Bool {
        a.version == b.version && a.name == b.name && a.socket == b.socket && a.timeoutSeconds == b.timeoutSeconds
            && a.whenHelperUnavailable == b.whenHelperUnavailable && a.defaultPolicy == b.defaultPolicy
            && a.previousResult == b.previousResult && a.validAttachments == b.validAttachments
    }
}

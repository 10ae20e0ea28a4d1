#if !hasFeature(Embedded)
    import CNI
    import Jansson
#endif

/// What the plugin asks of the helper: one JSON object in one `SOCK_SEQPACKET` message. With ADD and CHECK the
/// pod's `NETLINK_ROUTE` socket travels along as `SCM_RIGHTS`.
public struct HelperRequest: Sendable {
    /// The most bytes that a message may have.
    public static let maximumSize = 128 * 1024
    /// The most lists and objects in each other. The helper's threads have a small stack, and reading JSON is recursive.
    static let maximumDepth = 32
    /// Of this protocol; a helper refuses others by name.
    public static let protocolVersion: Int64 = 1

    public var command: CNIEnvironment.Command
    public var network = ""
    public var containerID = ""
    public var interfaceName = ""
    /// The pod's addresses in CIDR notation.
    public var addresses: [String] = []
    public var podNamespace = ""
    public var podName = ""
    public var podUID = ""
    public var labels: [(String, String)] = []
    public var annotations: [(String, String)] = []
    public var defaultPolicy = ""
    /// GC only; nil means that nothing may be removed.
    public var validAttachments: [NetworkConfiguration.Attachment]?
    /// How long the plugin goes on waiting.
    public var timeoutMilliseconds: Int64 = NetworkConfiguration.defaultTimeoutSeconds * 1000

    public init(_ command: CNIEnvironment.Command) { self.command = command }

    /// Names the attachment, in memory and as a file: `CONTAINER_INTERFACE`.
    public var attachmentID: String { "\(containerID)_\(interfaceName)" }

    public var json: JSON {
        .make(
            ("protocol", .integer(HelperRequest.protocolVersion)),
            ("command", .string(command.rawValue)),
            ("network", .string(network)),
            ("containerID", .string(containerID)),
            ("ifname", .string(interfaceName)),
            ("addresses", .array(addresses.map { .string($0) })),
            ("namespace", .string(podNamespace)),
            ("name", .string(podName)),
            ("uid", .string(podUID)),
            ("labels", .strings(labels)),
            ("annotations", .strings(annotations)),
            ("defaultPolicy", .string(defaultPolicy)),
            (
                "validAttachments",
                validAttachments.map { list in
                    .array(
                        list.map {
                            .make(("containerID", .string($0.containerID)), ("ifname", .string($0.interfaceName)))
                        })
                }
            ),
            ("timeoutMilliseconds", .integer(timeoutMilliseconds)))
    }

    /// - Throws: code 103 with what is wrong with the message.
    public init(message bytes: [UInt8]) throws(CNIError) {
        guard HelperRequest.depth(bytes) <= HelperRequest.maximumDepth else {
            throw CNIError(
                .requestRefused,
                "the request is nested more than \(HelperRequest.maximumDepth) levels deep")
        }
        let root: JSON
        do { root = try JSON.parse(bytes) } catch {
            throw CNIError(.requestRefused, "the request is not JSON", details: error.description)
        }
        guard root.members != nil else { throw CNIError(.requestRefused, "the request is not a JSON object") }
        guard root["protocol"]?.integer == HelperRequest.protocolVersion else {
            throw CNIError(
                .requestRefused, "the request is not of protocol \(HelperRequest.protocolVersion)",
                details: "install culvert and culvertd of the same release")
        }
        guard let name = root["command"]?.string, let command = CNIEnvironment.Command(rawValue: name),
            command != .version
        else { throw CNIError(.requestRefused, "the request has an unknown command") }
        self.init(command)
        network = try HelperRequest.text(root, "network")
        containerID = try HelperRequest.text(root, "containerID")
        interfaceName = try HelperRequest.text(root, "ifname")
        podNamespace = try HelperRequest.text(root, "namespace")
        podName = try HelperRequest.text(root, "name")
        podUID = try HelperRequest.text(root, "uid")
        defaultPolicy = try HelperRequest.text(root, "defaultPolicy")
        switch root["addresses"] {
        case nil: break
        case .array(let elements)?:
            for element in elements {
                guard let address = element.string else {
                    throw CNIError(.requestRefused, "addresses has an element that is not a string")
                }
                addresses.append(address)
            }
        default: throw CNIError(.requestRefused, "addresses is not a list")
        }
        labels = try HelperRequest.map(root, "labels")
        annotations = try HelperRequest.map(root, "annotations")
        if let list = root["validAttachments"] {
            guard let elements = list.elements else {
                throw CNIError(.requestRefused, "validAttachments is not a list")
            }
            var attachments: [NetworkConfiguration.Attachment] = []
            for element in elements {
                attachments.append(
                    NetworkConfiguration.Attachment(
                        containerID: try HelperRequest.text(element, "containerID"),
                        interfaceName: try HelperRequest.text(element, "ifname")))
            }
            validAttachments = attachments
        }
        switch root["timeoutMilliseconds"] {
        case nil: break
        case .integer(let value)? where (1...300_000).contains(value): timeoutMilliseconds = value
        default: throw CNIError(.requestRefused, "timeoutMilliseconds must be a number from 1 to 300000")
        }
        switch command {
        case .add, .del, .check:
            guard HelperRequest.isIdentifier(containerID) else {
                throw CNIError(.requestRefused, "containerID is not a container ID")
            }
            let bytes = Array(interfaceName.utf8)
            guard (1...15).contains(bytes.count), interfaceName != ".", interfaceName != "..",
                !bytes.contains(where: { $0 <= 32 || $0 == 47 || $0 == 58 })
            else { throw CNIError(.requestRefused, "ifname is not an interface name") }
            if command == .add && addresses.isEmpty {
                throw CNIError(.requestRefused, "addresses is empty")
            }
            guard addresses.count <= 64 else { throw CNIError(.requestRefused, "addresses has more than 64 elements") }
        default: break
        }
    }

    /// What is safe as a part of a file name: letters, digits, `_`, `.`, `-`, not starting with a dot.
    public static func isIdentifier(_ text: String) -> Bool {
        let bytes = Array(text.utf8)
        guard (1...255).contains(bytes.count), bytes[0] != 46 else { return false }
        return bytes.allSatisfy {
            (48...57).contains($0) || (65...90).contains($0) || (97...122).contains($0) || $0 == 95 || $0 == 46
                || $0 == 45
        }
    }

    /// How many lists and objects of a JSON text are in each other at most.
    private static func depth(_ bytes: [UInt8]) -> Int {
        var depth = 0
        var deepest = 0
        var isInString = false
        var isEscaped = false
        for byte in bytes {
            if isEscaped {
                isEscaped = false
            } else if isInString {
                isEscaped = byte == 0x5C
                isInString = byte != 0x22
            } else if byte == 0x22 {
                isInString = true
            } else if byte == 0x5B || byte == 0x7B {
                depth += 1
                deepest = max(deepest, depth)
            } else if byte == 0x5D || byte == 0x7D {
                depth -= 1
            }
        }
        return deepest
    }

    private static func text(_ root: JSON, _ key: String) throws(CNIError) -> String {
        switch root[key] {
        case nil: return ""
        case .string(let value)?: return value
        default: throw CNIError(.requestRefused, "\(key) is not a string")
        }
    }

    private static func map(_ root: JSON, _ key: String) throws(CNIError) -> [(String, String)] {
        guard let value = root[key] else { return [] }
        guard let members = value.members else { throw CNIError(.requestRefused, "\(key) is not a map") }
        var pairs: [(String, String)] = []
        for member in members {
            guard let text = member.value.string else {
                throw CNIError(.requestRefused, "\(key) has a value that is not a string: \(member.key)")
            }
            pairs.append((member.key, text))
        }
        return pairs
    }
}

#if !hasFeature(Embedded)
    import CNI
    import Jansson
#endif

/// The helper's answer: the routes it put into the pod, or an error for the runtime.
public enum HelperResponse: Sendable {
    case done(routes: [CNIResult.AddedRoute])
    case failed(CNIError)

    /// The whole answer as one message, whatever its size.
    public var json: JSON {
        switch self {
        case .done(let routes): .make(("routes", .array(routes.map(HelperResponse.json))))
        case .failed(let error):
            .make(
                ("code", .integer(error.code)), ("msg", .string(error.message)), ("details", .string(error.details)))
        }
    }

    private static func json(_ route: CNIResult.AddedRoute) -> JSON {
        .make(
            ("dst", .string(route.destination)), ("gw", .string(route.gateway)), ("mtu", .integer(route.mtu)))
    }

    // MARK: messages

    /// The most bytes of each of several messages. A socket takes a message of more than 128 KiB with raised buffers only.
    static let partSize = 64 * 1024

    /// The messages to send, in this order. It is one message if the answer has at most `HelperRequest.maximumSize`
    /// bytes. Otherwise there are several, and all but the last have `"more": true`. If one of them cannot be sent, the
    /// answer did not arrive.
    ///
    /// The plugin of the previous release reads the first message only. So each message but the last is also an error
    /// in the old format (`code`, `msg`, `details`), which says that the answer is too long for that plugin.
    public var messages: [[UInt8]] {
        let whole = json.bytes()
        if whole.count <= HelperRequest.maximumSize { return [whole] }
        switch self {
        case .failed(let error):
            let shortened = CNIError(
                code: error.code, HelperResponse.beginning(of: error.message),
                details: HelperResponse.beginning(of: error.details))
            return [HelperResponse.failed(shortened).json.bytes()]
        case .done(let routes):
            var parts: [[JSON]] = [[]]
            // What is around the routes of a part has some hundred bytes.
            var size = 1024
            for route in routes {
                let value = HelperResponse.json(route)
                let bytes = value.bytes().count + 1
                if size + bytes > HelperResponse.partSize {
                    parts.append([])
                    size = 1024
                }
                parts[parts.count - 1].append(value)
                size += bytes
            }
            return parts.indices.map { index in
                let part = JSON.array(parts[index])
                if index == parts.count - 1 { return JSON.make(("routes", part)).bytes() }
                return JSON.make(
                    ("more", .bool(true)), ("routes", part),
                    ("code", .integer(CNIError.Code.requestRefused.rawValue)),
                    (
                        "msg",
                        .string(
                            "the response of culvertd has \(routes.count) routes, which is more than this plugin can read"
                        )
                    ),
                    ("details", .string("install culvert and culvertd of the same release"))
                ).bytes()
            }
        }
    }

    /// At most 8 KiB of a text: two of those have at most 96 KiB as JSON, where a character may be six.
    private static func beginning(of text: String) -> String {
        let bytes = Array(text.utf8)
        if bytes.count <= 8 * 1024 { return text }
        var end = 8 * 1024
        // Not in the middle of a character.
        while end > 0 && bytes[end] & 0xC0 == 0x80 { end -= 1 }
        return String(decoding: bytes[0..<end], as: UTF8.self) + "…"
    }

    /// - Throws: error 11 where the answer makes no sense.
    public init(message bytes: [UInt8]) throws(CNIError) {
        guard let root = try? JSON.parse(bytes) else {
            throw CNIError(.tryAgainLater, "the response of culvertd is not JSON")
        }
        if let code = root["code"]?.integer {
            self = .failed(
                CNIError(code: code, root["msg"]?.string ?? "", details: root["details"]?.string ?? ""))
            return
        }
        self = .done(routes: HelperResponse.routes(of: root))
    }

    static func routes(of root: JSON) -> [CNIResult.AddedRoute] {
        var routes: [CNIResult.AddedRoute] = []
        for route in root["routes"]?.elements ?? [] {
            routes.append(
                CNIResult.AddedRoute(
                    destination: route["dst"]?.string ?? "", gateway: route["gw"]?.string ?? "",
                    mtu: route["mtu"]?.integer ?? 0))
        }
        return routes
    }
}

/// An answer as its messages arrive.
public struct HelperAnswer: Sendable {
    /// The most bytes of all messages of one answer.
    static let maximumSize = 16 * 1024 * 1024

    private var routes: [CNIResult.AddedRoute] = []
    private var size = 0
    public init() {}

    /// - Returns: the whole answer, or nil where there is more to come.
    /// - Throws: error 11 where the answer makes no sense, or has no end.
    public mutating func take(_ message: [UInt8]) throws(CNIError) -> HelperResponse? {
        size += message.count
        guard size <= HelperAnswer.maximumSize else {
            throw CNIError(.tryAgainLater, "the response of culvertd has more than \(HelperAnswer.maximumSize) bytes")
        }
        if let root = try? JSON.parse(message), root["more"]?.bool == true {
            routes += HelperResponse.routes(of: root)
            return nil
        }
        let last = try HelperResponse(message: message)
        guard case .done(let rest) = last else { return last }
        return .done(routes: routes + rest)
    }
}

import CJansson

/// A JSON value (RFC 8259) that keeps the order of an object's members, so that what passes through Culvert
/// comes out as it went in. Parsing and writing are libjansson's.
public indirect enum JSON: Equatable, Sendable {
    case null
    case bool(Bool)
    case integer(Int64)
    case real(Double)
    case string(String)
    case array([JSON])
    case object([Member])

    /// One member of an object.
    public struct Member: Equatable, Sendable {
        public var key: String
        public var value: JSON
        public init(_ key: String, _ value: JSON) {
            self.key = key
            self.value = value
        }
    }

    /// Why a text is not JSON.
    public struct ParseError: Error, Equatable, Sendable {
        /// What libjansson says, e.g. "'}' expected near end of file".
        public let message: String
        /// 1-based; 0 or less when unknown.
        public let line: Int
        public let column: Int
        public var description: String { "\(message) (line \(line), column \(column))" }
    }

    /// Parses one JSON object or array that fills `bytes` completely. Duplicate keys are refused.
    public static func parse(_ bytes: [UInt8]) throws(ParseError) -> JSON {
        var error = json_error_t()
        let root = bytes.withUnsafeBufferPointer { buffer in
            buffer.withMemoryRebound(to: CChar.self) { characters in
                json_loadb(characters.baseAddress, characters.count, Int(JSON_REJECT_DUPLICATES), &error)
            }
        }
        guard let root else {
            let text = withUnsafeBytes(of: &error.text) { raw in
                String(decoding: raw.prefix { $0 != 0 }, as: UTF8.self)
            }
            throw ParseError(message: text, line: Int(error.line), column: Int(error.column))
        }
        defer { json_decref(root) }
        return JSON(node: root)
    }

    private init(node: UnsafeMutablePointer<json_t>) {
        switch node.pointee.type {
        case JSON_OBJECT:
            var members: [Member] = []
            members.reserveCapacity(json_object_size(node))
            var iterator = json_object_iter(node)
            while let here = iterator {
                if let key = json_object_iter_key(here), let value = json_object_iter_value(here) {
                    members.append(Member(String(cString: key), JSON(node: value)))
                }
                iterator = json_object_iter_next(node, here)
            }
            self = .object(members)
        case JSON_ARRAY:
            var elements: [JSON] = []
            let count = json_array_size(node)
            elements.reserveCapacity(count)
            for index in 0..<count {
                if let element = json_array_get(node, index) { elements.append(JSON(node: element)) }
            }
            self = .array(elements)
        case JSON_STRING:
            self = .string(json_string_value(node).map { String(cString: $0) } ?? "")
        case JSON_INTEGER: self = .integer(Int64(json_integer_value(node)))
        case JSON_REAL: self = .real(json_real_value(node))
        case JSON_TRUE: self = .bool(true)
        case JSON_FALSE: self = .bool(false)
        default: self = .null
        }
    }

    /// A new reference to this value as libjansson's own type.
    private func node() -> UnsafeMutablePointer<json_t>? {
        switch self {
        case .null: return json_null()
        case .bool(let value): return value ? json_true() : json_false()
        case .integer(let value): return json_integer(json_int_t(value))
        case .real(let value): return json_real(value)
        case .string(let value):
            var text = value
            return text.withUTF8 { utf8 in
                utf8.withMemoryRebound(to: CChar.self) { json_stringn($0.baseAddress ?? emptyText, $0.count) }
            }
        case .array(let elements):
            let array = json_array()
            for element in elements { json_array_append_new(array, element.node()) }
            return array
        case .object(let members):
            let object = json_object()
            for member in members { json_object_set_new(object, member.key, member.value.node()) }
            return object
        }
    }

    /// The JSON text. `indent` 0 is the compact form, else the number of spaces a level.
    public func text(indent: Int = 0) -> String {
        guard let root = node() else { return "null" }
        defer { json_decref(root) }
        let style = indent == 0 ? Int(JSON_COMPACT) : indent & 0x1F
        guard let characters = json_dumps(root, style | Int(JSON_ENCODE_ANY)) else { return "null" }
        defer { free(characters) }
        return String(cString: characters)
    }

    /// The compact JSON text as UTF-8 bytes.
    public func bytes() -> [UInt8] { [UInt8](text().utf8) }

    // MARK: reading

    /// The member `key` of an object, or nil.
    public subscript(_ key: String) -> JSON? {
        guard case .object(let members) = self else { return nil }
        for member in members where member.key == key { return member.value }
        return nil
    }
    public var members: [Member]? { if case .object(let members) = self { members } else { nil } }
    public var elements: [JSON]? { if case .array(let elements) = self { elements } else { nil } }
    public var string: String? { if case .string(let value) = self { value } else { nil } }
    /// Of a number of either kind.
    public var double: Double? {
        switch self {
        case .real(let value): value
        case .integer(let value): Double(value)
        default: nil
        }
    }
    public var integer: Int64? { if case .integer(let value) = self { value } else { nil } }
    public var bool: Bool? { if case .bool(let value) = self { value } else { nil } }
    public var isNull: Bool { if case .null = self { true } else { false } }

    /// The object with `key` set to `value`: in its old place, or at the end.
    public func setting(_ key: String, to value: JSON) -> JSON {
        guard case .object(var members) = self else { return .object([Member(key, value)]) }
        for index in members.indices where members[index].key == key {
            members[index].value = value
            return .object(members)
        }
        members.append(Member(key, value))
        return .object(members)
    }

    // MARK: writing

    /// An object of the members that have a value.
    public static func make(_ members: (String, JSON?)...) -> JSON {
        var present: [Member] = []
        for (key, value) in members {
            if let value { present.append(Member(key, value)) }
        }
        return .object(present)
    }
    /// An object of strings, sorted by key.
    public static func strings(_ pairs: [(String, String)]) -> JSON {
        .object(pairs.map { Member($0.0, .string($0.1)) })
    }
}

nonisolated(unsafe) private let emptyText = UnsafePointer<CChar>(UnsafeMutablePointer<CChar>.allocate(capacity: 1))

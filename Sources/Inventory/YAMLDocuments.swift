import CYAML
import Jansson

/// YAML (and JSON, which is a part of it) as JSON values, by libyaml. Plain scalars are of the types that YAML 1.1 gives them,
/// but for numbers to the base 60 and dates, which Kubernetes' own YAML does not have either.
public enum YAMLDocuments {
    public struct Failure: Error, Equatable {
        /// 1-based.
        public let document: Int
        public let message: String
    }

    /// Values per byte of text, above which the text is an alias bomb.
    static let maximumExpansion = 10
    /// Maps and lists within each other. Reading them is a recursion.
    static let maximumDepth = 500

    /// Every document of the text, empty ones left out; with the error that ended the reading, if one did.
    public static func parse(_ text: String) throws(Failure) -> [(number: Int, value: JSON)] {
        let reader = YAMLReader(text)
        var documents: [(Int, JSON)] = []
        var number = 0
        do {
            while let value = try reader.nextDocument() {
                number += 1
                if !value.isNull { documents.append((number, value)) }
            }
        } catch {
            throw Failure(document: number + 1, message: error.message)
        }
        return documents
    }
}

/// One pass over a text. Messages never have a word of the text: it may be a kubeconfig, or have a preshared key in it.
private final class YAMLReader {
    struct Problem: Error { let message: String }

    /// A value that is read, with what a map's key and an alias need of it.
    struct Composed {
        let value: JSON
        /// The text of a scalar.
        let text: String?
        /// Values in it, itself included.
        let size: Int
        let line: Int
    }

    private var parser = yaml_parser_t()
    private let bytes: UnsafeMutableBufferPointer<UInt8>
    private let text: String
    private var event = yaml_event_t()
    private var anchors: [String: Composed] = [:]
    private var budget: Int
    private var depth = 0

    init(_ text: String) {
        self.text = text
        bytes = .allocate(capacity: text.utf8.count)
        _ = bytes.initialize(from: text.utf8)
        budget = text.utf8.count * YAMLDocuments.maximumExpansion + 1000
        yaml_parser_initialize(&parser)
        yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING)
        yaml_parser_set_input_string(&parser, bytes.baseAddress, bytes.count)
    }
    deinit {
        yaml_event_delete(&event)
        yaml_parser_delete(&parser)
        bytes.deallocate()
    }

    /// nil at the end of the text.
    func nextDocument() throws(Problem) -> JSON? {
        repeat {
            try next()
            if event.type == YAML_STREAM_END_EVENT { return nil }
        } while event.type != YAML_DOCUMENT_START_EVENT
        anchors = [:]
        try next()
        let value = try compose().value
        try next()
        return value
    }

    private func next() throws(Problem) {
        yaml_event_delete(&event)
        guard yaml_parser_parse(&parser, &event) == 1 else { throw problem() }
    }

    private var line: Int { event.start_mark.line + 1 }

    /// The value that begins with the current event.
    private func compose() throws(Problem) -> Composed {
        let line = line
        switch event.type {
        case YAML_ALIAS_EVENT:
            guard let target = anchors[string(event.data.alias.anchor) ?? ""] else {
                throw Problem(message: "is not YAML: " + place(event.start_mark) + "found undefined alias")
            }
            try spend(target.size)
            return Composed(value: target.value, text: target.text, size: target.size, line: line)
        case YAML_SEQUENCE_START_EVENT:
            let anchor = string(event.data.sequence_start.anchor)
            var elements: [JSON] = []
            var size = 1
            try descend()
            try next()
            while event.type != YAML_SEQUENCE_END_EVENT {
                let element = try compose()
                elements.append(element.value)
                size += element.size
                try next()
            }
            depth -= 1
            return remember(Composed(value: .array(elements), text: nil, size: size, line: line), anchor)
        case YAML_MAPPING_START_EVENT:
            let anchor = string(event.data.mapping_start.anchor)
            var members: [JSON.Member] = []
            var lines: [String: Int] = [:]
            var size = 1
            try descend()
            try next()
            while event.type != YAML_MAPPING_END_EVENT {
                let key = try compose()
                guard let name = key.text else { throw Problem(message: "a key is not a string") }
                if let first = lines.updateValue(key.line, forKey: name) {
                    throw Problem(message: "is not YAML: the map in line \(first) has a key twice")
                }
                try next()
                let value = try compose()
                members.append(JSON.Member(name, value.value))
                size += value.size
                try next()
            }
            depth -= 1
            return remember(Composed(value: .object(members), text: nil, size: size, line: line), anchor)
        default:
            try spend(1)
            let scalar = event.data.scalar
            let text = String(decoding: UnsafeBufferPointer(start: scalar.value, count: scalar.length), as: UTF8.self)
            let isText = scalar.style != YAML_PLAIN_SCALAR_STYLE || string(scalar.tag) == YAML_STR_TAG
            return remember(
                Composed(value: isText ? .string(text) : PlainScalar.value(text), text: text, size: 1, line: line),
                string(scalar.anchor))
        }
    }

    private func remember(_ value: Composed, _ anchor: String?) -> Composed {
        if let anchor { anchors[anchor] = value }
        return value
    }

    private func descend() throws(Problem) {
        try spend(1)
        depth += 1
        guard depth <= YAMLDocuments.maximumDepth else {
            throw Problem(message: "has more than \(YAMLDocuments.maximumDepth) maps and lists within each other")
        }
    }

    private func spend(_ values: Int) throws(Problem) {
        budget -= values
        guard budget > 0 else {
            throw Problem(
                message:
                    "its aliases expand to more than \(YAMLDocuments.maximumExpansion) values for each byte of the file"
            )
        }
    }

    private func string(_ text: UnsafeMutablePointer<yaml_char_t>?) -> String? { text.map { String(cString: $0) } }

    private func place(_ mark: yaml_mark_t) -> String { "line \(mark.line + 1), column \(mark.column + 1): " }

    /// Where and what is wrong.
    private func problem() -> Problem {
        let said = parser.problem.map { String(cString: $0) } ?? ""
        switch parser.error {
        case YAML_READER_ERROR:
            let offset = text.utf8.index(
                text.utf8.startIndex, offsetBy: parser.problem_offset, limitedBy: text.utf8.endIndex)
            let character = offset.map { "character \(text.unicodeScalars.distance(from: text.startIndex, to: $0)): " }
            return Problem(message: "is not YAML: " + (character ?? "") + said)
        case YAML_SCANNER_ERROR, YAML_PARSER_ERROR:
            let context = parser.context.map { " (\(String(cString: $0)), line \(parser.context_mark.line + 1))" }
            return Problem(message: "is not YAML: " + place(parser.problem_mark) + said + (context ?? ""))
        default: return Problem(message: "is not YAML")
        }
    }
}

/// What a scalar without quotes is.
private enum PlainScalar {
    static func value(_ text: String) -> JSON {
        switch text {
        case "", "~", "null", "Null", "NULL": return .null
        case ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF": return .real(.infinity)
        case "-.inf", "-.Inf", "-.INF": return .real(-.infinity)
        case ".nan", ".NaN", ".NAN": return .real(.nan)
        default: break
        }
        switch text.lowercased() {
        case "true", "yes", "on": return .bool(true)
        case "false", "no", "off": return .bool(false)
        default: break
        }
        // Not every number has a digit for Swift, such as "infinity".
        guard text.utf8.contains(where: { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
            return .string(text)
        }
        let digits = text.filter { $0 != "_" }
        if let number = integer(digits) { return .integer(number) }
        if let number = Double(digits) { return .real(number) }
        return .string(text)
    }

    private static func integer(_ text: String) -> Int64? {
        if text == "0" { return 0 }
        let hasSign = text.hasPrefix("-") || text.hasPrefix("+")
        let rest = hasSign ? text.dropFirst() : text[...]
        for (prefix, radix) in [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)] where rest.hasPrefix(prefix) {
            return Int64((text.hasPrefix("-") ? "-" : "") + rest.dropFirst(prefix.count), radix: radix)
        }
        return Int64(text)
    }
}

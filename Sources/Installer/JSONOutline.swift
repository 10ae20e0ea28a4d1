import Jansson

/// Where the values of a JSON text (RFC 8259) stand, so that a text can be changed in one place and keep every other byte:
/// its white space, the order of its members, how its numbers are written.
///
/// libjansson reads values and forgets where they stood; so the places are found here, and a text that is not JSON has none.
struct JSONOutline {
    /// One value and its place.
    struct Value {
        /// Of the value's own bytes, without white space around them.
        let range: Range<Int>
        let kind: Kind
    }
    indirect enum Kind {
        case object([Member])
        case array([Value])
        case string(String)
        case bool(Bool)
        /// A number or null.
        case other
    }
    struct Member {
        let key: String
        let value: Value
    }

    /// What is not JSON, and at which byte (from 0).
    struct Failure: Error, Equatable {
        let offset: Int
        let message: String
    }

    /// Objects and arrays inside each other, above which a text is refused: the reader calls itself for each level.
    static let maximumDepth = 100

    /// The value that the whole text is.
    static func read(_ text: [UInt8]) throws(Failure) -> Value {
        var reader = JSONOutline(text: text)
        reader.skipWhiteSpace()
        let value = try reader.value(depth: 0)
        reader.skipWhiteSpace()
        guard reader.place == text.count else { throw reader.failure("there is text after the value") }
        return value
    }

    private let text: [UInt8]
    private var place = 0
    private init(text: [UInt8]) { self.text = text }

    private var next: UInt8? { place < text.count ? text[place] : nil }
    private func failure(_ message: String) -> Failure { Failure(offset: place, message: message) }

    private mutating func skipWhiteSpace() {
        while let byte = next, byte == 0x20 || byte == 0x09 || byte == 0x0A || byte == 0x0D { place += 1 }
    }
    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard next == UInt8(ascii: character) else { return false }
        place += 1
        return true
    }

    private mutating func value(depth: Int) throws(Failure) -> Value {
        guard depth < JSONOutline.maximumDepth else { throw failure("nested too deeply") }
        let start = place
        let kind: Kind
        switch next {
        case UInt8(ascii: "{")?: kind = .object(try members(depth: depth))
        case UInt8(ascii: "[")?: kind = .array(try elements(depth: depth))
        case UInt8(ascii: "\"")?: kind = .string(try string())
        case UInt8(ascii: "t")?:
            try word("true")
            kind = .bool(true)
        case UInt8(ascii: "f")?:
            try word("false")
            kind = .bool(false)
        case UInt8(ascii: "n")?:
            try word("null")
            kind = .other
        case nil: throw failure("the text ends too early")
        default:
            try number()
            kind = .other
        }
        return Value(range: start..<place, kind: kind)
    }

    private mutating func members(depth: Int) throws(Failure) -> [Member] {
        place += 1
        skipWhiteSpace()
        if take("}") { return [] }
        var members: [Member] = []
        while true {
            skipWhiteSpace()
            guard next == UInt8(ascii: "\"") else { throw failure("a member's name is missing") }
            let key = try string()
            skipWhiteSpace()
            guard take(":") else { throw failure("a colon is missing") }
            skipWhiteSpace()
            members.append(Member(key: key, value: try value(depth: depth + 1)))
            skipWhiteSpace()
            if take("}") { return members }
            guard take(",") else { throw failure("a comma or } is missing") }
        }
    }

    private mutating func elements(depth: Int) throws(Failure) -> [Value] {
        place += 1
        skipWhiteSpace()
        if take("]") { return [] }
        var elements: [Value] = []
        while true {
            skipWhiteSpace()
            elements.append(try value(depth: depth + 1))
            skipWhiteSpace()
            if take("]") { return elements }
            guard take(",") else { throw failure("a comma or ] is missing") }
        }
    }

    private mutating func string() throws(Failure) -> String {
        let start = place
        place += 1
        while true {
            switch next {
            case nil: throw failure("a string has no end")
            case UInt8(ascii: "\"")?:
                place += 1
                // What escapes mean, and whether the bytes are UTF-8, is libjansson's to say.
                let list = [UInt8(ascii: "[")] + text[start..<place] + [UInt8(ascii: "]")]
                guard let parsed = try? JSON.parse(list), case .array(let values) = parsed,
                    let decoded = values.first?.string
                else { throw failure("a string is not valid") }
                return decoded
            case UInt8(ascii: "\\")?: place += 2
            case .some: place += 1
            }
        }
    }

    private mutating func word(_ word: StaticString) throws(Failure) {
        let bytes = Array("\(word)".utf8)
        guard text[place...].starts(with: bytes) else { throw failure("this is not a JSON value") }
        place += bytes.count
    }

    private mutating func number() throws(Failure) {
        _ = take("-")
        if !take("0") { try digits() }
        if take(".") { try digits() }
        if next == UInt8(ascii: "e") || next == UInt8(ascii: "E") {
            place += 1
            if !take("+") { _ = take("-") }
            try digits()
        }
    }
    private mutating func digits() throws(Failure) {
        let start = place
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { place += 1 }
        if place == start { throw failure("this is not a JSON value") }
    }
}

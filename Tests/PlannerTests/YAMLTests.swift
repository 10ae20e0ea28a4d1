import Inventory
import Jansson
import Testing

/// What YAML means, and how it is written.
struct YAMLTests {
    @Test(arguments: [
        ("~", JSON.null), ("", .null), ("NULL", .null), ("'~'", .string("~")), ("nUll", .string("nUll")),
        ("yes", .bool(true)), ("Off", .bool(false)), ("\"yes\"", .string("yes")), ("!!str yes", .string("yes")),
        ("0", .integer(0)), ("-7", .integer(-7)), ("+7", .integer(7)), ("010", .integer(8)), ("0x1F", .integer(31)),
        ("-0x10", .integer(-16)), ("0b101", .integer(5)), ("0o17", .integer(15)), ("1_000", .integer(1000)),
        ("08", .real(8)), ("1.5", .real(1.5)), ("-1e3", .real(-1000)), ("99999999999999999999", .real(1e20)),
        (".inf", .real(.infinity)), ("-.INF", .real(-.infinity)),
        // Of Kubernetes' own YAML, and of names.
        ("inf", .string("inf")), ("nan", .string("nan")), ("infinity", .string("infinity")),
        ("12abc", .string("12abc")), ("1.2.3", .string("1.2.3")), ("10:20", .string("10:20")),
        ("2026-01-01", .string("2026-01-01")), ("é ü", .string("é ü")),
        ("|\n  a\n  b\n", .string("a\nb\n")), ("[a, {b: 1}]", .array([.string("a"), .make(("b", .integer(1)))])),
    ]) func aScalarIsWhatItsTextSays(_ text: String, _ value: JSON) throws {
        #expect(try YAMLDocuments.parse("a: \(text)").first?.value["a"] == value)
    }

    @Test(arguments: [
        ("a: &x [1]\nb: *x\n*x : 2", "a key is not a string"), ("b: *x", "line 1, column 4: found undefined alias"),
        ("a: &x [*x]", "found undefined alias"), ("a: &x 1\n---\nb: *x", "found undefined alias"),
        ("a: 1\nb: 2\na: 3", "the map in line 1 has a key twice"), ("1: a\n'1': b", "has a key twice"),
        ("a: \"\u{1}", "control characters are not allowed"), ("a: [", "line 2, column 1"),
    ]) func whatIsWrongIsSaid(_ text: String, _ message: String) {
        let error = #expect(throws: YAMLDocuments.Failure.self) { try YAMLDocuments.parse(text) }
        #expect(error?.message.contains(message) == true, "\(error?.message ?? "")")
    }

    @Test func documentsAreCountedAndEmptyOnesLeftOut() throws {
        let documents = try YAMLDocuments.parse(
            "---\n---\na: &x b\n*x : c\n...\n# nothing\n---\n- *x\n".replacing("- *x", with: "- d"))
        #expect(documents.map(\.number) == [2, 3])
        #expect(documents.map { $0.value.text() } == [#"{"a":"b","b":"c"}"#, #"["d"]"#])
        #expect(try YAMLDocuments.parse("").isEmpty)
    }

    /// A list in a list in a list, each of them ten times the one before.
    @Test func aliasesThatExpandWithoutEndAreRefused() {
        let bomb = (1...9).map {
            "a\($0): &a\($0) [\(Array(repeating: "*a\($0 - 1)", count: 10).joined(separator: ","))]\n"
        }
        let error = #expect(throws: YAMLDocuments.Failure.self) {
            try YAMLDocuments.parse("a0: &a0 x\n" + bomb.joined())
        }
        #expect(error?.message.contains("aliases expand to more than") == true, "\(error?.message ?? "")")
    }

    @Test func whatIsWrittenIsReadAsTheSame() throws {
        let value = JSON.make(
            ("text", .string("yes")),
            ("lines", .string("a\n\tb\\ \"c\" é\u{1F600} " + String(repeating: "word ", count: 40))),
            ("empty", .string("")), ("none", .null), ("flag", .bool(false)), ("number", .integer(-7)),
            ("part", .real(0.5)), ("list", .array([])), ("map", .object([])), ("yes", .array([.string("~"), .null])),
            ("a: b", .array([.array([.integer(1)]), .make(("c", .make(("d", .string("#")))))])))
        let text = YAMLText.render(value)
        // A key is written without quotes where it may be; "yes" as a key is the text all the same.
        #expect(try YAMLDocuments.parse(text).first?.value == value, "\(text)")
        #expect(
            YAMLText.render(.make(("a", .make(("b", .array([.string("c"), .integer(1)]))))))
                == "a:\n  b:\n  - \"c\"\n  - 1\n")
    }
}

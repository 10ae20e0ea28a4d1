import Jansson
import TestSupport
import Testing

@testable import Installer

/// What is changed in a network's configuration file, and what is not.
@Suite struct ConfigurationListFileTests {
    static let entry = PluginEntry(socket: "/run/culvert/cni.sock")
    static func list(_ text: String, _ name: String = "05-cilium.conflist") throws -> ConfigurationListFile {
        try ConfigurationListFile(Array(text.utf8), fileName: name)
    }
    static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

    static let texts = [
        // As Cilium writes it, with the white space of its template.
        "\n{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cilium\",\n  \"plugins\": [\n    {\n       \"type\": \"cilium-cni\",\n       \"enable-debug\": false,\n       \"log-file\": \"/x.log\"\n    }\n  ]\n}",
        // One line; numbers that no 64-bit type holds, written in more than one way.
        #"{"name":"n","plugins":[{"type":"a","x":1.50E+1,"y":123456789012345678901234567890,"z":-0}]}"#,
        // Tabs, unknown keys, a member twice, escapes, brackets in strings, other plugins.
        "{\t\"plugins\"\t:\t[\t{\"type\":\"a\",\"s\":\"]}\\\"\\u00e9é\"}\t,\n\n{\"type\":\"b\"}\t]\t,\"name\":\"a.b-c_1\",\"x\":{\"y\":[[],{}]},\"x\":2}\n\n",
        "{\"name\":\"n\",\"plugins\":[\r\n  {\"type\":\"a\"}\r\n],\"loadOnlyInlinedPlugins\":true}",
    ]

    @Test(arguments: texts)
    func anEntryGoesInAndOutWithoutAnotherByteChanged(_ text: String) throws {
        let before = try Self.list(text)
        let chained = before.adding(Self.entry)
        let after = try Self.list(Self.text(chained))
        #expect(after.markedEntries == 1 && after.calls == 1 && after.hasOnce(Self.entry))
        #expect(after.network == before.network)
        #expect(after.withoutMarkedEntries() == Array(text.utf8))
        // Nothing but an insertion: what stands before it and behind it is the text from before.
        let prefix = zip(chained, before.text).prefix { $0 == $1 }.count
        #expect(chained.suffix(before.text.count - prefix) == before.text[prefix...])
        #expect(Self.text(chained).contains("\"io.kubernetes.cri.pod-annotations\":true"))
    }

    @Test func ourEntryGoesWhereverSomebodyHasMovedIt() throws {
        let ours = Self.text(Self.entry.text)
        for (list, rest) in [
            (#"[\#(ours), {"type":"a"}]"#, #"[{"type":"a"}]"#),
            (#"[{"type":"a"},\#(ours), {"type":"b"}]"#, #"[{"type":"a"}, {"type":"b"}]"#),
            (
                #"[\#(ours),\#(ours), {"type":"a"} , \#(ours),{"type":"b"},\#(ours)  ]"#,
                #"[{"type":"a"},{"type":"b"}  ]"#
            ),
        ] {
            let file = try Self.list(#"{"name":"n","plugins":\#(list)}"#)
            #expect(Self.text(file.withoutMarkedEntries()) == #"{"name":"n","plugins":\#(rest)}"#)
        }
        // Rewritten by a program that sorts keys, it is still ours and still right.
        let sorted = try Self.list(
            #"{"name":"n","plugins":[{"type":"a"},{"whenHelperUnavailable":"refuse","type":"culvert","socket":"/run/culvert/cni.sock","capabilities":{"io.kubernetes.cri.pod-annotations":true},"installedBy":"culvertd install"}]}"#
        )
        #expect(sorted.markedEntries == 1)
    }

    @Test func anEntryThatAnAdministratorWroteIsNotOurs() throws {
        let file = try Self.list(#"{"name":"n","plugins":[{"type":"a"},{"type":"culvert","socket":"/x"}]}"#)
        #expect(file.calls == 1 && file.markedEntries == 0 && file.foreignEntries == 1)
        #expect(file.withoutMarkedEntries() == file.text)
        #expect(!file.handsAnnotationsOver)
        #expect(
            try Self.list(#"{"name":"n","plugins":[{"type":"a","installedBy":"culvertd install"}]}"#).markedEntries == 0
        )
    }

    @Test func aSinglePluginBecomesAList() throws {
        let file = try Self.list(#"{"cniVersion":"0.4.0","name":"br","type":"bridge","mtu":1e3}"#, "10-br.conf")
        #expect(!file.isList && !file.takesDropIns)
        let list = try Self.list(Self.text(file.adding(Self.entry)))
        #expect(list.calls == 1 && list.network == "br")
        #expect(Self.text(list.text).contains(#"{"cniVersion":"0.4.0","name":"br","type":"bridge","mtu":1e3}"#))
        #expect(try JSON.parse(list.text)["cniVersion"] == .string("0.4.0"))
    }

    @Test func whatARuntimeCannotUseIsNoConfiguration() {
        for text in [
            "", "{", "[]", "{}", "null", #"{"name":"n"}"#, #"{"name":"n","plugins":[]}"#, #"{"name":"n","plugins":{}}"#,
            #"{"name":"n","plugins":[{}]}"#, #"{"name":"n","plugins":[1]}"#, #"{"name":"","plugins":[{"type":"a"}]}"#,
            #"{"name":"../etc","plugins":[{"type":"a"}]}"#, #"{"name":".x","plugins":[{"type":"a"}]}"#,
            #"{"name":"a/b","plugins":[{"type":"a"}]}"#, #"{"name":1,"plugins":[{"type":"a"}]}"#,
            #"{"name":"n","plugins":[{"type":"a"}]} x"#, #"{"name":"n","plugins":[{"type":"a"},]}"#,
            #"{"name":"n","plugins":[{"type":"a"}],}"#, #"{"name":"n","plugins":[{"type":"a","x":01}]}"#,
            #"{"name":"n","plugins":[{"type":"a","x":+1}]}"#, #"{"name":"n","plugins":[{"type":"a","x":"\q"}]}"#,
            "{\"name\":\"n\",\"plugins\":[{\"type\":\"a\",\"x\":\"\u{1}\"}]}", "\u{FEFF}" + Self.texts[1],
            String(repeating: "[", count: 100_000),
            #"{"name":"n","plugins":["# + String(repeating: #"{"type":"#, count: 5000),
        ] {
            #expect(throws: ConfigurationListFile.Failure.self, "\(text.prefix(60))") { try Self.list(text) }
        }
        #expect(throws: ConfigurationListFile.Failure.self) {
            try ConfigurationListFile([0x22, 0xFF, 0x22], fileName: "a.conflist")
        }
        // A .conf file with a list has no type, which is what a runtime says of it too.
        #expect(throws: ConfigurationListFile.Failure.self) { try Self.list(Self.texts[0], "05-cilium.conf") }
    }

    /// Random JSON: the outline agrees with libjansson on what is JSON, and every value stands where it says.
    @Test func theOutlineAgreesWithLibjansson() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SeededGenerator(seed: seed)
        func value(_ depth: Int) -> String {
            let space = [" ", "", "\n", "\t "].randomElement(using: &random) ?? ""
            switch Int.random(in: 0...(depth > 3 ? 5 : 8), using: &random) {
            case 0: return "null" + space
            case 1: return space + "true"
            case 2: return "\(Int.random(in: -99...99, using: &random))"
            case 3:
                return "\(Int.random(in: 0...9, using: &random)).5e-\(Int.random(in: 0...9, using: &random))" + space
            case 4: return "\"\\n\\u20ac\u{1F600}x\(Int.random(in: 0...9, using: &random))\""
            case 5: return "\"\""
            case 6:
                return "["
                    + (0..<Int.random(in: 0...3, using: &random)).map { _ in value(depth + 1) }.joined(separator: ",")
                    + "]"
            default:
                return "{" + space
                    + (0..<Int.random(in: 0...3, using: &random)).map { "\"k\($0)\":" + value(depth + 1) }
                    .joined(separator: ",") + "}"
            }
        }
        for round in 0..<400 {
            var text = Array("[\(value(0))]".utf8)
            // Half of them broken in one byte.
            if round % 2 == 1, !text.isEmpty {
                text[Int.random(in: 0..<text.count, using: &random)] =
                    Array("{}[],:\"\\ 0e-.tx".utf8).randomElement(using: &random) ?? 0
            }
            let outline = try? JSONOutline.read(text)
            let parsed = try? JSON.parse(text)
            // libjansson takes nothing but arrays and objects, and no key twice.
            if let parsed {
                #expect(outline != nil, "seed \(seed): \(Self.text(text))")
                if let outline { #expect(Self.agrees(outline, parsed, text), "seed \(seed): \(Self.text(text))") }
            } else if let outline, case .array = outline.kind {
                #expect(Self.hasTwice(outline), "seed \(seed): \(Self.text(text)) is no JSON")
            }
        }
    }
    static func hasTwice(_ value: JSONOutline.Value) -> Bool {
        switch value.kind {
        case .object(let members):
            Set(members.map(\.key)).count < members.count || members.contains { hasTwice($0.value) }
        case .array(let elements): elements.contains(where: hasTwice)
        default: false
        }
    }
    static func agrees(_ value: JSONOutline.Value, _ parsed: JSON, _ text: [UInt8]) -> Bool {
        switch (value.kind, parsed) {
        case (.object(let members), .object(let others)):
            members.count == others.count
                && zip(members, others).allSatisfy { $0.key == $1.key && agrees($0.value, $1.value, text) }
        case (.array(let elements), .array(let others)):
            elements.count == others.count && zip(elements, others).allSatisfy { agrees($0, $1, text) }
        default:
            (try? JSON.parse([UInt8(ascii: "[")] + text[value.range] + [UInt8(ascii: "]")])) == .array([parsed])
        }
    }
}

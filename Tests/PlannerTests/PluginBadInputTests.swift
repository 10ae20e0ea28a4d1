import CNI
import Jansson
import PluginVerbs
import TestSupport
import Testing

/// What a runtime may get wrong, with the exact CNI code for each. No helper runs here: calls that pass all checks end
/// in error 11.
struct PluginBadInputTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let name: String
        var environment: [String: String] = [
            "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/proc/self/ns/net", "CNI_IFNAME": "eth0",
        ]
        var stdin = Case.valid
        let code: Int64
        let text: String
        var testDescription: String { name }

        static let result =
            #"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.1.5/24","interface":0}]}"#
        static let valid = configuration()
        static func configuration(_ more: String = "", version: String = "1.0.0", result: String = result) -> String {
            #"{"cniVersion":"\#(version)","name":"net","type":"culvert","socket":"/nowhere/cni.sock","prevResult":\#(result)\#(more.isEmpty ? "" : ",")\#(more)}"#
        }

        static func env(_ name: String, _ changes: [String: String?], _ code: Int64, _ text: String) -> Case {
            var test = Case(name: name, code: code, text: text)
            for (key, value) in changes { test.environment[key] = value }
            return test
        }
        static func input(_ name: String, _ stdin: String, _ code: Int64, _ text: String, verb: String = "ADD") -> Case
        {
            var test = Case(name: name, stdin: stdin, code: code, text: text)
            test.environment["CNI_COMMAND"] = verb
            test.environment["CNI_PATH"] = "/opt/cni/bin"
            return test
        }
    }

    static let cases: [Case] = [
        .env("no command", ["CNI_COMMAND": nil], 4, "CNI_COMMAND"),
        .env("unknown command", ["CNI_COMMAND": "PLUG"], 4, "PLUG"),
        .env("lower-case command", ["CNI_COMMAND": "add"], 4, "add"),
        .env("ADD without container", ["CNI_CONTAINERID": nil], 4, "CNI_CONTAINERID"),
        .env("ADD without namespace", ["CNI_NETNS": nil], 4, "CNI_NETNS"),
        .env("ADD with empty namespace", ["CNI_NETNS": ""], 4, "CNI_NETNS"),
        .env("ADD without interface", ["CNI_IFNAME": nil], 4, "CNI_IFNAME"),
        .env(
            "ADD without anything", ["CNI_CONTAINERID": nil, "CNI_NETNS": nil, "CNI_IFNAME": nil], 4,
            "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        .env("CHECK without namespace", ["CNI_COMMAND": "CHECK", "CNI_NETNS": nil], 4, "CNI_NETNS"),
        .env("DEL without container", ["CNI_COMMAND": "DEL", "CNI_CONTAINERID": nil], 4, "CNI_CONTAINERID"),
        .env("DEL without interface", ["CNI_COMMAND": "DEL", "CNI_IFNAME": nil], 4, "CNI_IFNAME"),
        .env("GC without path", ["CNI_COMMAND": "GC"], 4, "CNI_PATH"),
        .env("container with a slash", ["CNI_CONTAINERID": "a/b"], 4, "CNI_CONTAINERID"),
        .env("container with a leading dot", ["CNI_CONTAINERID": "..x"], 4, "CNI_CONTAINERID"),
        .env("container too long", ["CNI_CONTAINERID": String(repeating: "x", count: 256)], 4, "255"),
        .env("interface too long", ["CNI_IFNAME": "abcdefghijklmnop"], 4, "15"),
        .env("interface with a slash", ["CNI_IFNAME": "a/b"], 4, "CNI_IFNAME"),
        .env("interface with a colon", ["CNI_IFNAME": "a:b"], 4, "CNI_IFNAME"),
        .env("interface is a dot", ["CNI_IFNAME": "."], 4, "CNI_IFNAME"),
        .env("interface is two dots", ["CNI_IFNAME": ".."], 4, "CNI_IFNAME"),
        .env("interface with a space", ["CNI_IFNAME": "a b"], 4, "CNI_IFNAME"),
        .env("arguments without equals", ["CNI_ARGS": "x"], 4, "KEY=VALUE"),
        .env("unknown argument", ["CNI_ARGS": "X=1"], 4, "IgnoreUnknown"),
        .env("IgnoreUnknown is no boolean", ["CNI_ARGS": "IgnoreUnknown=maybe"], 4, "IgnoreUnknown"),
        .env("label without colon", ["CNI_ARGS": "CULVERT_LABELS=app"], 4, "key:value"),
        .env("label without key", ["CNI_ARGS": "CULVERT_LABELS=:x"], 4, "key:value"),
        .env("namespace vanished", ["CNI_NETNS": "/run/netns/gone"], 4, "CNI_NETNS"),
        .env("namespace is the host's", [:], 4, "host's own"),
        .env("namespace is a file", ["CNI_NETNS": "/etc/passwd"], 4, "CNI_NETNS"),
        .env("CHECK of the host's namespace", ["CNI_COMMAND": "CHECK"], 4, "host's own"),
        .input("empty stdin", "", 6, "JSON"),
        .input("garbage", "hello", 6, "JSON"),
        .input("truncated", #"{"cniVersion":"#, 6, "JSON"),
        .input("a list", "[]", 6, "object"),
        .input("two objects", "{}{}", 6, "JSON"),
        .input("duplicate key", #"{"name":"a","name":"b"}"#, 6, "JSON"),
        .input("a NUL", "{\"name\":\"a\\u0000b\"}", 6, "JSON"),
        .input("bad UTF-8 escape", #"{"name":"\ud800"}"#, 6, "JSON"),
        .input("no version", #"{"name":"net"}"#, 1, "0.1.0"),
        .input("old version", #"{"cniVersion":"0.2.0","name":"net"}"#, 1, "0.2.0"),
        .input("future version", #"{"cniVersion":"2.0.0","name":"net"}"#, 1, "2.0.0"),
        .input("version is a number", #"{"cniVersion":1,"name":"net"}"#, 7, "cniVersion"),
        .input("no name", #"{"cniVersion":"1.0.0"}"#, 7, "name"),
        .input("bad name", #"{"cniVersion":"1.0.0","name":"a b"}"#, 7, "name"),
        .input("name is a list", #"{"cniVersion":"1.0.0","name":[]}"#, 7, "name"),
        .input("relative socket", #"{"cniVersion":"1.0.0","name":"n","socket":"x"}"#, 7, "socket"),
        .input(
            "socket too long", #"{"cniVersion":"1.0.0","name":"n","socket":"/\#(String(repeating: "x", count: 120))"}"#,
            7,
            "107"),
        .input("timeout zero", Case.configuration(#""timeoutSeconds":0"#), 7, "timeoutSeconds"),
        .input("timeout huge", Case.configuration(#""timeoutSeconds":100000"#), 7, "timeoutSeconds"),
        .input("timeout text", Case.configuration(#""timeoutSeconds":"10""#), 7, "timeoutSeconds"),
        .input("unknown mode", Case.configuration(#""whenHelperUnavailable":"maybe""#), 7, "whenHelperUnavailable"),
        .input("default policy is a number", Case.configuration(#""defaultPolicy":1"#), 7, "defaultPolicy"),
        .input("no prevResult", #"{"cniVersion":"1.0.0","name":"net"}"#, 7, "chained"),
        .input("prevResult null", #"{"cniVersion":"1.0.0","name":"net","prevResult":null}"#, 7, "chained"),
        .input("prevResult is text", #"{"cniVersion":"1.0.0","name":"net","prevResult":"x"}"#, 7, "prevResult"),
        .input("no address", Case.configuration(result: #"{"ips":[]}"#), 7, "no address"),
        .input("ips is an object", Case.configuration(result: #"{"ips":{}}"#), 7, "ips"),
        .input("ip without address", Case.configuration(result: #"{"ips":[{}]}"#), 7, "address"),
        .input(
            "interface out of range", Case.configuration(result: #"{"ips":[{"address":"10.1.1.5/24","interface":3}]}"#),
            7,
            "interface 3"),
        .input(
            "interface negative", Case.configuration(result: #"{"ips":[{"address":"10.1.1.5/24","interface":-1}]}"#), 7,
            "interface -1"),
        .input(
            "interface is text", Case.configuration(result: #"{"ips":[{"address":"10.1.1.5/24","interface":"0"}]}"#), 7,
            "not a number"),
        .input(
            "address is the host's",
            Case.configuration(
                result: #"{"interfaces":[{"name":"veth0"}],"ips":[{"address":"10.1.1.5/24","interface":0}]}"#), 7,
            "no address"),
        .input(
            "address of another interface",
            Case.configuration(
                result:
                    #"{"interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.1.1.5/24","interface":0}]}"#
            ), 7, "no address"),
        .input("labels are a map of numbers", Case.configuration(#""args":{"cni":{"labels":{"a":1}}}"#), 7, "labels"),
        .input("labels are a text", Case.configuration(#""args":{"cni":{"labels":"a"}}"#), 7, "labels"),
        .input("label without value", Case.configuration(#""args":{"cni":{"labels":[{"key":"a"}]}}"#), 7, "labels"),
        .input(
            "annotations are a list",
            Case.configuration(#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":[]}"#), 7, "annotations"),
        .input(
            "annotation is a number",
            Case.configuration(#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"culvert.dev/x":1}}"#), 7,
            "culvert.dev/x"),
        .input("CHECK in 0.3.1", Case.configuration(version: "0.3.1"), 1, "CHECK", verb: "CHECK"),
        .input("CHECK without prevResult", #"{"cniVersion":"1.0.0","name":"net"}"#, 7, "prevResult", verb: "CHECK"),
        .input("GC in 1.0.0", Case.configuration(), 1, "GC", verb: "GC"),
        .input("STATUS in 1.0.0", Case.configuration(), 1, "STATUS", verb: "STATUS"),
        .input(
            "GC with a bad list", Case.configuration(#""cni.dev/valid-attachments":"x""#, version: "1.1.0"), 7,
            "valid-attachments", verb: "GC"),
        .input(
            "GC with a bad element", Case.configuration(#""cni.dev/valid-attachments":[{}]"#, version: "1.1.0"), 7,
            "containerID", verb: "GC"),
        .input(
            "GC without helper", Case.configuration(#""cni.dev/valid-attachments":null"#, version: "1.1.0"), 11,
            "/nowhere/cni.sock", verb: "GC"),
        .input("STATUS without helper", Case.configuration(version: "1.1.0"), 50, "/nowhere/cni.sock", verb: "STATUS"),
        .input("VERSION with garbage", "hello", 6, "JSON", verb: "VERSION"),
    ]

    static func run(_ environment: [String: String], _ stdin: String) -> Plugin.Outcome {
        Plugin.run(variable: { environment[$0] }, stdin: { _ throws(CNIError) in [UInt8](stdin.utf8) })
    }

    @Test(arguments: cases) func everyWrongInputHasItsCode(_ test: Case) throws {
        let outcome = Self.run(test.environment, test.stdin)
        #expect(outcome.exitCode == 1)
        let error = try JSON.parse([UInt8](outcome.output.utf8))
        #expect(error["code"]?.integer == test.code)
        let words = (error["msg"]?.string ?? "") + (error["details"]?.string ?? "")
        #expect(words.contains(test.text), "\(words)")
        #expect(CNIVersion(error["cniVersion"]?.string ?? "") != nil)
    }

    @Test func thereAreSixtyCases() { #expect(Self.cases.count >= 60) }

    @Test func codeThreeDoesNotExist() { #expect(CNIError.Code(rawValue: 3) == nil) }

    @Test func versionAnswersWithAndWithoutStdin() throws {
        for stdin in ["", #"{"cniVersion":"0.4.0"}"#] {
            let outcome = Self.run(["CNI_COMMAND": "VERSION"], stdin)
            #expect(outcome.exitCode == 0)
            let answer = try JSON.parse([UInt8](outcome.output.utf8))
            #expect(answer["cniVersion"]?.string == (stdin.isEmpty ? "1.1.0" : "0.4.0"))
            #expect(
                answer["supportedVersions"]?.elements?.compactMap(\.string) == [
                    "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
                ])
        }
    }

    @Test func quirksOfRuntimesAreTaken() throws {
        // A DEL with an empty CNI_NETNS, no prevResult, capabilities and dns on stdin, and nobody there: done.
        let outcome = Self.run(
            ["CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_NETNS": "", "CNI_IFNAME": "eth0", "CNI_ARGS": ""],
            #"{"cniVersion":"0.3.1","name":"net","socket":"/nowhere/cni.sock","capabilities":{"x":true},"dns":{}}"#)
        #expect(outcome.exitCode == 0)
        #expect(outcome.output == "")
    }

    @Test func labelsAreAListOrAMap() throws {
        for labels in [#"[{"key":"app","value":"shop"},{"key":"b","value":""}]"#, #"{"app":"shop","b":""}"#] {
            let stdin = Case.configuration(#""args":{"cni":{"labels":\#(labels)}}"#)
            let read = try NetworkConfiguration(stdin: [UInt8](stdin.utf8), command: .add).labels
            #expect(read.map(\.0) == ["app", "b"] && read.map(\.1) == ["shop", ""])
        }
    }

    /// The ADD was refused for it; and with a DEL that is refused too the pod could never be deleted.
    @Test(arguments: [
        "", #""cniVersion":"9.0.0","#, #""cniVersion":1,"#, #""name":"a b","#, #""name":[],"#,
        #""timeoutSeconds":"x","#,
        #""timeoutSeconds":100000,"#, #""whenHelperUnavailable":"maybe","#, #""defaultPolicy":1,"#,
        #""args":{"cni":{"labels":{"a":1}}},"#, #""args":7,"#, #""runtimeConfig":[],"#, #""prevResult":"x","#,
        #""cni.dev/valid-attachments":"x","#,
    ])
    func aDELIsNeverRefusedForItsConfiguration(_ wrong: String) {
        let outcome = Self.run(
            ["CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_ARGS": "x"],
            "{\(wrong)\"socket\":\"/nowhere/cni.sock\"}")
        #expect(outcome.exitCode == 0 && outcome.output == "", "\(outcome.output)")
    }

    @Test func aSocketThatIsNoneCountsAsTheDefaultForADEL() throws {
        for socket in ["1", #""relative""#, "\"/\(String(repeating: "x", count: 120))\""] {
            let read = try NetworkConfiguration(stdin: [UInt8]("{\"socket\":\(socket)}".utf8), command: .del)
            #expect(read.socket == NetworkConfiguration.defaultSocket && read.timeoutSeconds == 10)
        }
        let read = try NetworkConfiguration(
            stdin: [UInt8](#"{"cniVersion":"0.4.0","name":"net","socket":"/x/s","timeoutSeconds":7}"#.utf8),
            command: .del)
        #expect(read.socket == "/x/s" && read.timeoutSeconds == 7 && read.name == "net" && read.version == .version040)
    }

    @Test func aPreviousResultGoesThroughComplete() throws {
        let result = try JSON.parse(
            [UInt8](#"{"cniVersion":"1.1.0","strange":[1,2.5,null,{"deep":"ü"}],"routes":[{"dst":"0.0.0.0/0"}]}"#.utf8))
        #expect(CNIResult.adding([], to: result, version: .version110) == result)
        let route = CNIResult.AddedRoute(destination: "0.0.0.0/1", gateway: "10.1.1.1", mtu: 1420)
        let new = CNIResult.adding([route], to: result, version: .version110)
        #expect(new["routes"]?.elements?.last?["mtu"]?.integer == 1420)
        #expect(new["strange"] == result["strange"])
        let old = CNIResult.adding([route], to: result, version: .version100)
        #expect(old["routes"]?.elements?.last?["mtu"] == nil)
        #expect(old["cniVersion"]?.string == "1.0.0")
    }
}

import CLinux
import Foundation
import HelperProtocol
import Jansson
import TestSupport
import Testing

/// `cni.sock` against clients that mean no good, or are broken.
@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root; install/test.sh runs it"))
struct HostileClientTests {
    /// Sends one message and reads the answer; nil where the helper hung up without one.
    func ask(_ path: String, _ bytes: [UInt8], descriptor: Int32 = -1) -> JSON? {
        let socket = culvert_seqpacket_connect(path)
        guard socket >= 0 else { return nil }
        defer { close(socket) }
        guard culvert_send_message(socket, bytes, bytes.count, descriptor, 0) == 0 else { return nil }
        var entry = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, 10_000) > 0 else { return nil }
        var buffer = [UInt8](repeating: 0, count: 1 << 18)
        let count = recv(socket, &buffer, buffer.count, 0)
        return count > 0 ? try? JSON.parse(Array(buffer[0..<count])) : nil
    }

    static func request(_ changes: [(String, JSON?)] = []) -> [UInt8] {
        var members: [JSON.Member] = [
            .init("protocol", .integer(1)), .init("command", .string("ADD")), .init("network", .string("n")),
            .init("containerID", .string("c")), .init("ifname", .string("eth0")),
            .init("addresses", .array([.string("10.244.1.9/32")])),
        ]
        for (key, value) in changes {
            members.removeAll { $0.key == key }
            if let value { members.append(.init(key, value)) }
        }
        return JSON.object(members).bytes()
    }

    static let cases: [(name: String, bytes: [UInt8], words: String)] = [
        ("garbage", [UInt8]("hello".utf8), "not JSON"),
        ("NULs", [UInt8](repeating: 0, count: 100), "not JSON"),
        ("a list", [UInt8]("[]".utf8), "not a JSON object"),
        ("nothing in it", [UInt8]("{}".utf8), "protocol"),
        ("another protocol", request([("protocol", .integer(2))]), "same release"),
        ("no command", request([("command", nil)]), "command"),
        ("unknown command", request([("command", .string("VERSION"))]), "command"),
        ("no container", request([("containerID", nil)]), "containerID"),
        ("container with a path", request([("containerID", .string("../../etc/passwd"))]), "containerID"),
        ("container is a number", request([("containerID", .integer(3))]), "containerID"),
        ("interface with a slash", request([("ifname", .string("../x"))]), "ifname"),
        ("interface too long", request([("ifname", .string("abcdefghijklmnop"))]), "ifname"),
        ("addresses are text", request([("addresses", .string("10.0.0.1"))]), "addresses"),
        ("no addresses", request([("addresses", .array([]))]), "addresses"),
        ("labels are a list", request([("labels", .array([]))]), "labels"),
        ("label is a number", request([("labels", .object([.init("a", .integer(1))]))]), "labels"),
        ("time-out is negative", request([("timeoutMilliseconds", .integer(-1))]), "timeoutMilliseconds"),
        ("valid attachments are text", request([("validAttachments", .string("x"))]), "validAttachments"),
        ("ADD without a descriptor", request(), "netlink socket"),
        ("more than 128 KiB", [UInt8](repeating: 32, count: 131_073), "131072"),
    ]

    @Test func everyWrongRequestIsRefusedByNameAndNothingLeaks() throws {
        let lab = try Lab("z")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        try lab.start("n1")
        let path = "\(lab.directory)/n1/cni.sock"
        func descriptors() -> Int {
            (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(lab.pid("n1"))/fd").count) ?? 0
        }
        let before = descriptors()
        for test in Self.cases {
            let answer = ask(path, test.bytes)
            #expect(answer?["code"]?.integer == 103, "\(test.name): \(String(describing: answer))")
            let words = (answer?["msg"]?.string ?? "") + (answer?["details"]?.string ?? "")
            #expect(words.contains(test.words), "\(test.name): \(words)")
        }
        // Descriptors that are not a pod's netlink socket.
        let file = open("/etc/passwd", O_RDONLY)
        let unixSocket = culvert_seqpacket_connect(path)
        defer { for descriptor in [file, unixSocket] { close(descriptor) } }
        for (descriptor, words) in [(file, "NETLINK_ROUTE"), (unixSocket, "NETLINK_ROUTE")] {
            let answer = ask(path, Self.request(), descriptor: descriptor)
            #expect(answer?["code"]?.integer == 103)
            #expect(answer?["msg"]?.string?.contains(words) == true, "\(String(describing: answer))")
        }
        let deletion = ask(path, Self.request([("command", .string("DEL"))]), descriptor: file)
        #expect(deletion?["msg"]?.string?.contains("with a descriptor") == true)
        // A netlink socket of the helper's own namespace, and two descriptors at once.
        let python = """
            import array, json, socket, sys
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.connect(sys.argv[1])
            fds = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) for _ in range(int(sys.argv[2]))]
            s.sendmsg([sys.argv[3].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno() for f in fds]))])
            print(s.recv(65536).decode())
            """
        let text = String(decoding: Self.request(), as: UTF8.self)
        let own = lab.run(in: "n1", "python3 -c '\(python)' \(path) 1 '\(text)'")
        #expect(own.output.contains("own network namespace"), "\(own.output) \(own.errors)")
        let two = lab.run(in: "n1", "python3 -c '\(python)' \(path) 2 '\(text)'")
        #expect(two.output.contains("more than one descriptor"), "\(two.output) \(two.errors)")
        // Nobody but root.
        let stranger = Shell.run(
            "setpriv --reuid 65533 --regid 65533 --clear-groups python3 -c '\(python)' \(path) 1 '\(text)'")
        #expect(stranger.errors.contains("Permission denied"))
        // A client that says nothing keeps nobody else waiting, and is hung up on.
        let silent = (0..<10).map { _ in culvert_seqpacket_connect(path) }
        try lab.pod("a", on: "n1", last: 10, labels: "app:shop")
        for descriptor in silent {
            var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            #expect(poll(&entry, 1, 10_000) > 0)
            close(descriptor)
        }
        #expect(lab.plugin("n1", "DEL", "a").status == 0)
        #expect(lab.eventually { descriptors() <= before }, "\(descriptors()), before \(before)")
        #expect(lab.api("n1", "/v1/attachments")?.elements?.count == 0)
    }

    @Test func aClientThatHangsUpBeforeTheAnswerIsUndone() throws {
        let lab = try Lab("u")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        try lab.start("n1")
        try lab.pod("a", on: "n1", last: 10, labels: "app:shop")
        #expect(lab.plugin("n1", "DEL", "a").status == 0)
        let python = """
            import array, os, socket, sys
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.connect(sys.argv[1])
            fd = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            s.sendmsg([sys.argv[2].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd.fileno()]))])
            os._exit(0)
            """
        let request = String(
            decoding: Self.request([
                ("containerID", .string("gone")), ("addresses", .array([.string("10.244.1.10/32")])),
                ("labels", .object([.init("app", .string("shop"))])),
            ]), as: UTF8.self)
        let result = lab.run(in: "a", "python3 -c '\(python)' \(lab.directory)/n1/cni.sock '\(request)'")
        #expect(result.status == 0, "\(result.errors)")
        #expect(
            lab.eventually {
                // Whether the helper has noticed before or after it has served the ADD.
                lab.log("n1").contains("closed the connection before its ADD was served")
                    || lab.log("n1").contains("the ADD was undone")
            })
        #expect(lab.eventually { lab.api("n1", "/v1/attachments")?.elements?.count == 0 })
        #expect(lab.ctl("n1", "diff").output == "[]\n")
    }

    /// An ADD connects before it has its request. Others are served meanwhile, and one that was held up asks once more.
    @Test func aConnectionThatIsSilentHoldsNobodyUp() throws {
        let lab = try Lab("hs")
        try lab.start("n1")
        let path = "\(lab.directory)/n1/cni.sock"
        func isAnswered(_ connection: Int32) throws -> Bool {
            let answer = try HelperConnection.ask(
                HelperRequest(.status), socket: path, connection: connection,
                deadline: culvert_monotonic_milliseconds() + 10_000)
            if case .done = answer { return true }
            return false
        }
        let silent = (0..<40).map { _ in HelperConnection.begin(path) }
        #expect(silent.allSatisfy { $0 >= 0 })
        for _ in 0..<20 { #expect(try isAnswered(-1)) }
        // Now the helper has closed them: it waits two seconds for a request.
        usleep(2_500_000)
        for connection in silent { #expect(try isAnswered(connection)) }
        // And where a helper has started anew meanwhile.
        let early = HelperConnection.begin(path)
        lab.kill("n1")
        try lab.start("n1")
        #expect(try isAnswered(early))
    }

    @Test func garbageCollectionTouchesOnlyItsOwnNetwork() throws {
        let lab = try Lab("g")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        try lab.start("n1")
        for (name, last) in [("a", 10), ("b", 11)] { try lab.pod(name, on: "n1", last: last, labels: "app:shop") }
        let path = "\(lab.directory)/n1/cni.sock"
        func collect(_ network: String, _ valid: JSON?) -> [String] {
            let answer = ask(
                path,
                JSON.make(
                    ("protocol", .integer(1)), ("command", .string("GC")), ("network", .string(network)),
                    ("validAttachments", valid)
                ).bytes())
            #expect(answer?["code"] == nil)
            return (lab.api("n1", "/v1/attachments")?.elements ?? []).compactMap { $0["containerID"]?.string }
        }
        let (a, b) = ("\(lab.prefix)-a", "\(lab.prefix)-b")
        #expect(collect("other", .array([])) == [a, b])
        #expect(collect("cilium", nil) == [a, b])
        #expect(collect("cilium", .array([.make(("containerID", .string(b)), ("ifname", .string("eth0")))])) == [b])
        #expect(collect("cilium", .array([])) == [])
        #expect(lab.ctl("n1", "diff").output == "[]\n")
    }

    @Test func whatIsInTheWayIsNamed() throws {
        let lab = try Lab("y")
        Shell.run(
            "mkdir -p \(lab.directory)/n1 && echo x > \(lab.directory)/n1/cni.sock && echo x > \(lab.directory)/n1/api.sock"
        )
        let result = lab.lab("helper n1")
        #expect(result.status != 0)
        #expect(lab.log("n1").contains("api.sock exists and is not a socket"))
        Shell.run("rm \(lab.directory)/n1/api.sock")
        #expect(lab.lab("helper n1").status != 0)
        #expect(lab.log("n1").contains("cni.sock cannot be listened on: a file that is not a socket exists there"))
        Shell.run(
            "rm \(lab.directory)/n1/cni.sock; echo 'encapsulation: {protocol: pigeon}' > \(lab.directory)/culvertd.yaml"
        )
        #expect(lab.lab("helper n1").status != 0)
        #expect(
            lab.log("n1").contains("encapsulation.protocol \"pigeon\" is none of ipip, fou, vxlan"), "\(lab.log("n1"))")
        let plain = Shell.run(
            "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all \(Shell.binaries)/culvertd run --run-dir \(lab.directory)/n1"
        )
        #expect(plain.status == 1)
        #expect(plain.errors.contains("CAP_NET_ADMIN is missing"))
    }
}

import CLinux
import CNI
import Foundation
import HelperProtocol
import Jansson
import PluginVerbs
import Synchronization
import TestSupport
import Testing

/// Messages between plugin and helper.
@Suite struct HelperMessageTests {
    /// The helper reads a request on a thread of 512 KiB stack (`culvert_start_thread`).
    @Test func aRequestThatIsNestedAsDeepAsPossibleIsRefused() async {
        for depth in [33, 100, 2000, 2047, 2048, 60_000] {
            let text =
                "{\"labels\":" + String(repeating: "[", count: depth) + String(repeating: "]", count: depth) + "}"
            let isRefused = await withCheckedContinuation { continuation in
                let thread = Thread {
                    do throws(CNIError) {
                        _ = try HelperRequest(message: Array(text.utf8))
                        continuation.resume(returning: false)
                    } catch { continuation.resume(returning: error.code == CNIError.Code.requestRefused.rawValue) }
                }
                thread.stackSize = 512 * 1024
                thread.start()
            }
            #expect(isRefused, "\(depth)")
        }
    }

    @Test func bracketsInATextAreNoNesting() throws {
        var request = HelperRequest(.add)
        request.containerID = "c"
        request.interfaceName = "eth0"
        request.addresses = ["10.244.1.9/32"]
        request.labels = [("a", String(repeating: "[{\"\\", count: 100))]
        let read = try HelperRequest(message: request.json.bytes())
        #expect(read.labels.first?.1 == request.labels.first?.1)
    }

    /// A helper that keeps what it is asked, and answers the same to everybody.
    final class StubHelper: Sendable {
        let path = "/tmp/\(Shell.prefix)-\(UUID().uuidString.prefix(8)).sock"
        private let listener: Int32
        private let requests = Mutex<[[UInt8]]>([])
        /// Whether every message of the last answer was taken.
        private let isDelivered = Mutex<Bool?>(nil)

        init(_ answer: HelperResponse) throws {
            listener = culvert_seqpacket_listen(path, 16, 0o600)
            try #require(listener >= 0)
            let thread = Thread { [self] in
                while true {
                    let connection = culvert_accept(listener)
                    if connection < 0 { return }
                    // As culvertd does, with the kernel's own buffers.
                    _ = culvert_send_timeout(connection, 2000)
                    var buffer = [UInt8](repeating: 0, count: HelperRequest.maximumSize + 1)
                    var descriptor: Int32 = -1
                    let count = culvert_receive_message(connection, &buffer, buffer.count, &descriptor)
                    if count > 0 {
                        requests.withLock { $0.append(Array(buffer[0..<count])) }
                        let sent = answer.messages.allSatisfy {
                            culvert_send_message(connection, $0, $0.count, -1, 0) == 0
                        }
                        isDelivered.withLock { $0 = sent }
                    }
                    close(connection)
                }
            }
            thread.start()
        }
        /// Ends it, and returns what it was asked.
        func stop() -> [[UInt8]] {
            shutdown(listener, Int32(SHUT_RDWR))
            unlink(path)
            return requests.withLock { $0 }
        }
        var wasDelivered: Bool? { isDelivered.withLock { $0 } }
    }

    static func routes(_ count: Int) -> [CNIResult.AddedRoute] {
        (0..<count).map {
            .init(destination: "10.\($0 >> 16 & 255).\($0 >> 8 & 255).\($0 & 255)/32", gateway: "10.244.1.1", mtu: 1420)
        }
    }

    @Test(arguments: [0, 1, 2_000, 2_500, 20_000, 100_000])
    func anAnswerOfAnySizeArrivesWhole(_ count: Int) async throws {
        let routes = Self.routes(count)
        let helper = try StubHelper(.done(routes: routes))
        let path = helper.path
        let answer = try await withCheckedThrowingContinuation {
            (continuation: CheckedContinuation<HelperResponse, any Error>) in
            Thread {
                do throws(CNIError) {
                    continuation.resume(
                        returning: try HelperConnection.ask(
                            HelperRequest(.status), socket: path, deadline: culvert_monotonic_milliseconds() + 20_000))
                } catch { continuation.resume(throwing: error) }
            }.start()
        }
        guard case .done(let found) = answer else {
            Issue.record("\(answer)")
            return
        }
        #expect(found == routes)
        for _ in 0..<100 where helper.wasDelivered == nil { usleep(10_000) }
        #expect(helper.wasDelivered == true)
        _ = helper.stop()
    }

    @Test func aSmallAnswerIsOneMessageThatAnOlderPluginReads() throws {
        let response = HelperResponse.done(routes: Self.routes(1_000))
        #expect(response.messages == [response.json.bytes()])
        let failure = HelperResponse.failed(CNIError(.policyRefused, "why", details: "what to do"))
        #expect(failure.messages == [failure.json.bytes()])
        // Nothing that is said of a failure keeps it from being told.
        let long = HelperResponse.failed(
            CNIError(
                .policyRefused, String(repeating: "é", count: 100_000), details: String(repeating: "x", count: 200_000))
        )
        #expect(long.messages.count == 1 && long.messages[0].count <= HelperRequest.maximumSize)
        guard case .failed(let error) = try HelperResponse(message: long.messages[0]) else {
            Issue.record("not a failure")
            return
        }
        #expect(error.code == 100 && error.message.hasPrefix("ééé"))
    }

    /// The plugin of the release before knows one message only, and must not take a part for the whole.
    @Test func anOlderPluginRefusesAnAnswerOfSeveralMessages() throws {
        let messages = HelperResponse.done(routes: Self.routes(5_000)).messages
        #expect(messages.count > 1 && messages.allSatisfy { $0.count <= 64 * 1024 })
        let first = try JSON.parse(messages[0])
        #expect(first["more"]?.bool == true)
        #expect(first["code"]?.integer == 103 && first["details"]?.string?.contains("same release") == true)
        #expect(try JSON.parse(messages[messages.count - 1])["more"] == nil)
    }

    @Test func anAnswerThatNeverEndsIsRefused() throws {
        var answer = HelperAnswer()
        let part = HelperResponse.done(routes: Self.routes(5_000)).messages[0]
        let error = #expect(throws: CNIError.self) { for _ in 0..<1_000 where try answer.take(part) != nil {} }
        #expect(error?.code == CNIError.Code.tryAgainLater.rawValue)
    }

    /// As the plugin of the release before (06b13b5) sent them. That today's request says the same in the same words shows that
    /// the helper of the release before reads it.
    @Test(arguments: [
        #"{"protocol":1,"command":"ADD","network":"cilium","containerID":"x-web","ifname":"eth0","addresses":["10.244.1.10/32"],"namespace":"default","name":"web","uid":"u-1","labels":{},"annotations":{"culvert.dev/egress-policy":"shop"},"defaultPolicy":"bank","timeoutMilliseconds":30000}"#,
        #"{"protocol":1,"command":"DEL","network":"cilium","containerID":"x-web","ifname":"eth0","addresses":[],"namespace":"","name":"","uid":"","labels":{},"annotations":{},"defaultPolicy":"","timeoutMilliseconds":30000}"#,
    ])
    func aRequestOfTheReleaseBeforeIsReadAndWrittenInTheSameWords(_ text: String) throws {
        #expect(try HelperRequest(message: Array(text.utf8)).json.text() == text)
    }

    // MARK: what the verbs send

    static func run(_ command: String, _ helper: StubHelper, _ more: String, arguments: String = "") -> Plugin.Outcome {
        let environment = [
            "CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "", "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": arguments,
        ]
        let stdin =
            "{\"cniVersion\":\"1.1.0\",\"name\":\"net\",\"type\":\"culvert\",\"socket\":\"\(helper.path)\"\(more)}"
        return Plugin.run(variable: { environment[$0] }, stdin: { _ throws(CNIError) in [UInt8](stdin.utf8) })
    }

    /// What ADD was refused for must not keep DEL from ending it, or the pod can never be deleted.
    static let refusedAtAdd: [(name: String, more: String, arguments: String)] = [
        (
            "150 kB of annotations",
            ",\"runtimeConfig\":{\"io.kubernetes.cri.pod-annotations\":{\"culvert.dev/x\":\"\(String(repeating: "x", count: 150_000))\"}}",
            ""
        ),
        (
            "an annotation that is a number",
            ",\"runtimeConfig\":{\"io.kubernetes.cri.pod-annotations\":{\"culvert.dev/x\":1}}", ""
        ),
        ("labels that are a map", ",\"args\":{\"cni\":{\"labels\":{\"a\":\"b\"}}}", ""),
        ("a previous result that is a text", ",\"prevResult\":\"x\"", ""),
        ("a CULVERT_LABELS without colon", "", "CULVERT_LABELS=app"),
        ("an unknown argument", "", "X=1"),
        ("150 kB of labels", "", "CULVERT_LABELS=a:\(String(repeating: "x", count: 150_000))"),
    ]
    @Test(arguments: refusedAtAdd.indices, ["DEL", "GC", "STATUS"])
    func nothingOfThePodRefusesAnyVerbThatDoesNotNeedIt(_ index: Int, _ verb: String) throws {
        let (name, more, arguments) = Self.refusedAtAdd[index]
        let helper = try StubHelper(.done(routes: []))
        let outcome = Self.run(verb, helper, more + ",\"cni.dev/valid-attachments\":[]", arguments: arguments)
        let requests = helper.stop()
        #expect(outcome.exitCode == 0, "\(name): \(outcome.output.prefix(300))")
        try #require(requests.count == 1, "\(name)")
        #expect(requests[0].count < 1024)
        #expect(try HelperRequest(message: requests[0]).command.rawValue == verb)
    }

    @Test func aDeletionNamesContainerInterfaceAndNetworkAndNothingElse() throws {
        let helper = try StubHelper(.done(routes: []))
        _ = Self.run(
            "DEL", helper,
            ",\"defaultPolicy\":\"p\",\"args\":{\"cni\":{\"labels\":[{\"key\":\"a\",\"value\":\"b\"}]}},\"runtimeConfig\":{\"io.kubernetes.cri.pod-annotations\":{\"culvert.dev/x\":\"y\"}}",
            arguments: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u")
        let request = try HelperRequest(message: try #require(helper.stop().first))
        #expect(request.containerID == "c1" && request.interfaceName == "eth0" && request.network == "net")
        #expect(request.labels.isEmpty && request.annotations.isEmpty && request.defaultPolicy.isEmpty)
        #expect(request.podNamespace.isEmpty && request.podName.isEmpty && request.podUID.isEmpty)
    }
}

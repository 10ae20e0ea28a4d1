import Foundation
import TestSupport
import Testing

/// `culvertd cleanup` where the annotations of the Node cannot be taken back. (That they are taken back: BesideKiloTests.)
@Suite(.enabled(if: Lab.isPossible, "needs root and CULVERT_LAB=1"))
struct CleanupTests {
    /// What becomes of a request to the API server.
    enum Answer: String, CaseIterable, Sendable {
        case nobodyListens, forbidden, silence

        /// What the message says of the reason.
        var reason: String {
            switch self {
            case .nobodyListens: "connect"
            case .forbidden: "403"
            case .silence: "has not answered"
            }
        }
    }

    @Test(arguments: Answer.allCases) func whatIsLeftInTheNodeIsNamedWithTheCommandThatRemovesIt(_ answer: Answer)
        throws
    {
        let api = try APIServer.withRoles("cl\(answer.rawValue.lowercased())")
        let configuration = "\(api.directory)/culvertd.yaml"
        try "inventory: {source: kubernetes, kubeconfig: \(api.kubeconfig)}\n".write(
            toFile: configuration, atomically: true, encoding: .utf8)
        let annotation = "kilo.squat.ai/key"
        api.apply([
            "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n1\",\"annotations\":{\"\(annotation)\":\"k\"}}}"
        ])
        if answer == .forbidden {
            api.fault("{\"status\":{\"code\":403,\"count\":100,\"match\":\"/nodes/n1\"}}")
        }
        let listener =
            switch answer {
            case .nobodyListens: "sleep 100"
            case .forbidden: "socat TCP-LISTEN:6443,bind=127.0.0.1,fork UNIX-CONNECT:\(api.socket)"
            case .silence: "socat TCP-LISTEN:6443,bind=127.0.0.1,fork SYSTEM:'sleep 100'"
            }
        let start = Date()
        // (In a namespace of its own: what there is of Culvert on this machine is none of this test's business.)
        let result = Shell.run(
            """
            unshare --net --pid --fork --kill-child bash -c 'ip link set lo up; \(listener.replacingOccurrences(of: "'", with: "\"")) > /dev/null 2>&1 < /dev/null & sleep 0.3
            \(Shell.binaries)/culvertd cleanup --config \(configuration) --node n1 --run-dir \(api.directory)/run'
            """)
        #expect(result.status == 1, "\(result)")
        #expect(result.output.contains("removed: 0 changes to the kernel"), "\(result)")
        #expect(!result.output.contains("the annotations"), "\(result)")
        let expected = [
            "the kernel is clean; the annotations of Node n1 cannot be removed", answer.reason,
            "run kubectl annotate node n1 ", " \(annotation)-",
        ]
        for text in expected { #expect(result.errors.contains(text), "\(result)") }
        #expect(Date().timeIntervalSince(start) < 30)
        api.fault("{\"status\":null}")
        #expect(api.get("/api/v1/nodes/n1")?["metadata"]?["annotations"]?[annotation]?.string == "k")
    }
}

import TestSupport
import Testing

/// `api.sock` as a server of HTTP. What it says is in other suites.
@Suite(.enabled(if: Lab.isPossible, "needs root; install/test.sh runs it"))
struct StatusAPITests {
    @Test func onlyKnownPathsAndGETAreAnswered() throws {
        let lab = try Lab("h")
        try lab.start("n1")
        func status(_ arguments: String) -> String {
            lab.run(
                in: "n1",
                "curl -s -m 5 -o /dev/null -w '%{http_code}' --unix-socket \(lab.directory)/n1/api.sock \(arguments)"
            ).output
        }
        for (arguments, code) in [
            ("http://x/healthz", "200"), ("'http://x/v1/status?a=b'", "200"), ("http://x/v1/nope", "404"),
            ("http://x/", "404"), ("-X POST http://x/v1/status", "405"), ("-X DELETE http://x/healthz", "405"),
            // The answer to HEAD has no body, or what follows on the connection would be misread.
            ("--head http://x/healthz http://x/readyz -o /dev/null", "200200"),
        ] {
            #expect(status(arguments) == code, "\(arguments)")
        }
        let head = lab.run(
            in: "n1",
            "bash -c 'printf \"HEAD /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n\" | socat -t 5 - UNIX-CONNECT:\(lab.directory)/n1/api.sock'"
        ).output
        #expect(head.hasPrefix("HTTP/1.1 200") && head.hasSuffix("\r\n\r\n"), "\(head)")
    }
}

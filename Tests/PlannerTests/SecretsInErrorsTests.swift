import Model
import Testing

@testable import Inventory

/// What is wrong with a file is said without a word of the file: it may be a kubeconfig, or have a preshared key in it.
struct SecretsInErrorsTests {
    static let secret = "c3VwZXItc2VjcmV0LXRva2VuLW9mLTMyLWJ5dGVzISE"
    static let broken = [
        "a: \(secret)\n b: c", "\(secret): [", "token: \"\(secret)", "- \(secret)\na: b", "token: \(secret): x",
        "a: {\(secret)", "token: '\(secret)\n--- x", "token: @\(secret)", "\t\(secret): x", "a: *\(secret)",
        "a: !<\(secret) x", "%\(secret)\n---\na: b", "&\(secret) &\(secret) a: b", "\(secret): a\n\(secret): b",
        "token: \"\\q\(secret)\"", "token: \(secret)\u{1}", "a: b\n...\n\(secret): [", "? [\(secret)]\n: x",
        "presharedKey: \(secret)\n  publicKey: x: y",
    ]

    @Test(arguments: broken) func aYAMLErrorNeverShowsTheText(_ text: String) {
        let error = #expect(throws: YAMLDocuments.Failure.self) { try YAMLDocuments.parse(text) }
        guard let error else { return }
        #expect(!error.message.contains(String(Self.secret.prefix(8))), "\(error.message)")
        #expect(!error.message.isEmpty)
        if case .failure(let problems) = Manifests.parse(text, file: "f") {
            #expect(problems.list.allSatisfy { !$0.description.contains(String(Self.secret.prefix(8))) })
        }
    }

    @Test func theErrorSaysWhereAndWhat() {
        let error = #expect(throws: YAMLDocuments.Failure.self) { try YAMLDocuments.parse("a: b\nc: d: e\n") }
        #expect(error?.message.contains("line 2, column 5") == true, "\(error?.message ?? "")")
        #expect(error?.message.contains("mapping values are not allowed") == true, "\(error?.message ?? "")")
    }

    @Test func aPeersPresharedKeyIsNotShownWhateverIsWrongWithIt() {
        let text = """
            apiVersion: kilo.squat.ai/v1alpha1
            kind: Peer
            metadata: {name: p}
            spec: {publicKey: AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=, presharedKey: \(Self.secret)AAAA, allowedIPs: []}
            """
        guard case .failure(let problems) = Manifests.parse(text, file: "f") else {
            Issue.record("was taken")
            return
        }
        #expect(problems.list.allSatisfy { !$0.description.contains(Self.secret) }, "\(problems.list)")
    }
}

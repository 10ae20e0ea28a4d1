import Inventory
import Model
import TestSupport
import Testing

struct ManifestTests {
    static let gateway = "egressGateway: {nodeSelector: {matchLabels: {a: b}}}"
    static func policy(_ spec: String, kind: String = "CiliumEgressGatewayPolicy", version: String = "cilium.io/v2")
        -> String
    {
        "apiVersion: \(version)\nkind: \(kind)\nmetadata: {name: p}\nspec: {\(spec)}\n"
    }

    /// Manifest, document, field, a part of the message.
    static let bad: [(String, Int, String, String)] = [
        ("a: [", 1, "", "expected"),
        ("just text", 1, "", "not a Kubernetes object"),
        ("apiVersion: v1", 1, "kind", "missing"),
        ("kind: Node", 1, "apiVersion", "missing"),
        ("apiVersion: v1\nkind: Node", 1, "metadata", "missing"),
        ("apiVersion: v1\nkind: Node\nmetadata: {}", 1, "metadata.name", "missing"),
        ("apiVersion: v1\nkind: Node\nmetadata: []", 1, "metadata", "not an object"),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: [1]}", 1, "metadata.name", "not a string"),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {x: true}}", 1, "metadata.labels[\"x\"]",
            "quote it"
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {podCIDRs: [10.0.0.0/33]}", 1, "spec.podCIDRs[0]",
            "10.0.0.0/33"
        ),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {podCIDR: x}", 1, "spec.podCIDR", "x"),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 1.2.3}]}",
            1, "status.addresses[0].address", "1.2.3"
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {name: n}\nspec: {ipam: {podCIDRs: [x]}}", 1,
            "spec.ipam.podCIDRs[0]", "x"
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: 1}", 1, "spec.hostNetwork",
            "true or false"
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: x}", 1, "status.podIP", "x"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config}\ndata: {a: 1}", 1, "data[\"a\"]",
            "quote it"
        ),
        (
            "apiVersion: culvert.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {}\nspec: {}", 1, "metadata.name",
            "missing"
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Node\nmetadata: 1", 2,
            "metadata", "object"
        ),
    ]

    @Test(arguments: bad.indices) func aWrongManifestIsReportedWithDocumentAndField(_ index: Int) {
        let (text, document, field, words) = Self.bad[index]
        guard case .failure(let problems) = Manifests.parse(text, file: "f.yaml") else {
            Issue.record("accepted: \(text)")
            return
        }
        let problem = problems.list[0]
        #expect(problem.document == document)
        #expect(problem.field == field, "\(problem)")
        #expect(problem.message.contains(words), "\(problem)")
    }

    @Test func anAliasBombIsRefused() {
        var text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        for level in 1...9 {
            text +=
                "a\(level): &a\(level) [" + Array(repeating: "*a\(level - 1)", count: 10).joined(separator: ", ")
                + "]\n"
        }
        guard case .failure = Manifests.parse(text, file: "f") else {
            Issue.record("accepted")
            return
        }
    }

    @Test func jsonYAMLAndListsAreTheSame() throws {
        let yaml = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: y}}\n"
        let json = #"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a","labels":{"x":"y"}}}"#
        let list = #"{"apiVersion":"v1","kind":"List","items":[\#(json)]}"#
        let expected = try Manifests.parse(yaml, file: "f").get()
        #expect(try Manifests.parse(json, file: "f").get() == expected)
        #expect(try Manifests.parse(list, file: "f").get() == expected)
        #expect(try Manifests.parse("---\n" + yaml + "---\n---\n", file: "f").get() == expected)
    }

    @Test func aBadFileKeepsItsLastGoodContent() throws {
        let directory = "/tmp/\(Shell.prefix)-inventory"
        Shell.run("mkdir -p \(directory)")
        defer { Shell.run("rm -rf \(directory)") }
        try "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n".write(
            toFile: "\(directory)/a.yaml", atomically: true, encoding: .utf8)
        var files = FileInventory(directory: directory)
        #expect(files.read().namespaces.keys.sorted() == ["a"])
        try "apiVersion: v1\nkind: Namespace\nmetadata: {nam".write(
            toFile: "\(directory)/a.yaml", atomically: true, encoding: .utf8)
        let second = files.read()
        #expect(second.namespaces.keys.sorted() == ["a"])
        #expect(second.problems.first?.description.contains("last good content") == true)
        #expect(second.problems.first?.file == "a.yaml")
        Shell.run("rm \(directory)/a.yaml")
        #expect(files.read().namespaces.isEmpty)
    }

    /// The table that the CustomResourceDefinition's schema and rules are held against (Tests/StandIn/crd.py).
    @Test func theReaderAndTheDefinitionHaveTheSameWordOnAPolicy() throws {
        let table =
            Shell.run(
                "/usr/bin/python3 -c 'import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)' \(Shell.packageRoot)/Tests/StandIn/egresspolicies.yaml"
            ).json?.elements ?? []
        #expect(table.count > 30)
        for entry in table {
            let wanted = entry["error"]?.string ?? ""
            let spec = try #require(entry["spec"])
            let read = Manifests.read(
                .make(
                    ("apiVersion", .string("culvert.dev/v1alpha1")), ("kind", .string("EgressPolicy")),
                    ("metadata", .make(("name", .string("p")))), ("spec", spec)))
            switch read {
            case .success(let objects):
                guard case .policy(let policy)? = objects.first else {
                    Issue.record("\(spec.text()): no policy")
                    continue
                }
                let isRefused =
                    entry["refused"]?.bool ?? (!wanted.isEmpty && entry["takenFromFiles"]?.bool != true)
                #expect(policy.refusal.isEmpty != isRefused, "\(spec.text()): \(policy.refusal)")
                #expect(
                    wanted.isEmpty || !isRefused || policy.refusal.contains(wanted), "\(spec.text()): \(policy.refusal)"
                )
            case .failure(let problem): Issue.record("\(spec.text()): \(problem)")
            }
        }
    }
}

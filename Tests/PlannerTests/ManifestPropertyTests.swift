import Foundation
import Jansson
import Model
import Planner
import TestSupport
import Testing

@testable import Inventory

/// What strangers may write into a manifest: the fuzzer's corpus, one object of every kind, with some of its values
/// replaced by values that are not expected there. The structure stays, so that every reader is reached.
@Suite struct ManifestPropertyTests {
    /// Strings at the edge of every format that is parsed, numbers at the edge of every width, and wrong types.
    static let strange: [JSON] =
        [
            "", " ", "/", "//", "-", ".", ":", ",", "=", "[", "]", "[]", "[]:", "[]:1", "{}", "null", "0", "-0", "+1",
            "-1", "/24",
            "1.2.3.4/", "1.2.3.4/-1", "1.2.3.4/33", "1.2.3.4/+8", "1.2.3.4/24/24", "1.2.3.4:", "1.2.3.4:65536", "::",
            "::/129", "::1/64", "[::1]:1", "65535", "65536", "-9223372036854775808", "9223372036854775807",
            "9223372036854775808", "99999999999999999999999999", "0/0", "0.0.0.0/0", "255.255.255.255/32", "NaN", "In",
            "k8s:", "any:", "é\u{301}", "\u{1F41F}", "List", "v1/v1", "/", String(repeating: "a", count: 300),
            String(repeating: "/", count: 300), String(repeating: "A", count: 43) + "=",
        ].map { .string($0) } + [
            .integer(.min), .integer(.max), .integer(0), .integer(-1), .integer(65536), .integer(1 << 32), .real(1e308),
            .real(-0.5), .bool(true), .bool(false), .null, .array([]), .array([.null]), .array([.string("")]),
            .array([.array([])]), .array([.object([])]), .object([]), .object([.init("", .null)]),
            .object([.init("/", .string("/"))]), .object([.init("matchLabels", .array([]))]),
        ]

    /// The objects of the fuzzer's corpus.
    static func corpus() throws -> [JSON] {
        let directory = "\(Shell.packageRoot)/Tests/Fuzz/Corpus/FuzzManifests"
        return try FileManager.default.contentsOfDirectory(atPath: directory).sorted().flatMap { name in
            try YAMLDocuments.parse(String(contentsOfFile: "\(directory)/\(name)", encoding: .utf8)).map(\.value)
        }.filter { $0["kind"] != nil }
    }

    /// Values inside `value`, itself among them.
    static func count(_ value: JSON) -> Int {
        1 + (value.elements ?? []).reduce(0) { $0 + count($1) }
            + (value.members ?? []).reduce(0) { $0 + count($1.value) }
    }

    /// `value` with the one that is `position` places from it, in depth-first order, changed.
    static func replacing(_ value: JSON, at position: inout Int, by change: (JSON) -> JSON) -> JSON {
        position -= 1
        if position == -1 { return change(value) }
        if position < -1 { return value }
        if let elements = value.elements {
            return .array(elements.map { replacing($0, at: &position, by: change) })
        }
        if let members = value.members {
            return .object(members.map { .init($0.key, replacing($0.value, at: &position, by: change)) })
        }
        return value
    }

    static func mutated(_ object: JSON, _ random: inout SeededGenerator) -> JSON {
        var object = object
        for _ in 0..<Int.random(in: 1...3, using: &random) {
            // Not the object itself.
            var position = Int.random(in: 1..<max(2, count(object)), using: &random)
            let kind = Int.random(in: 0..<8, using: &random)
            let other = strange[Int.random(in: 0..<strange.count, using: &random)]
            object = replacing(object, at: &position) { value in
                switch (kind, value) {
                case (0, .array(let elements)): .array(elements + elements)
                case (1, .array(let elements)): .array(elements + [other])
                case (0, .object(let members)): .object(Array(members.dropLast()))
                case (1, .object(let members)): .object(members + [.init(other.string ?? "more", other)])
                case (2, .string(let text)): .string((other.string ?? "") + text)
                case (3, .string(let text)): .string(text + (other.string ?? ""))
                default: other
                }
            }
        }
        return object
    }

    @Test func noValueOfAManifestTraps() throws {
        let corpus = try Self.corpus()
        let kinds = Set(corpus.compactMap { $0["kind"]?.string })
        #expect(
            kinds.isSuperset(of: [
                "Node", "CiliumNode", "Pod", "Namespace", "Peer", "CiliumEgressGatewayPolicy", "EgressPolicy",
                "ConfigMap",
                "List",
            ]), "\(kinds)")
        var random = SeededGenerator(seed: 5)
        var (taken, refused) = (0, 0)
        var nodes: [String: Node] = [:]
        var peers: [MeshPeer] = []
        var mesh = MeshConfiguration()
        mesh.enabled = true
        for round in 0..<60_000 {
            let object = Self.mutated(corpus[round % corpus.count], &random)
            guard case .success(let objects) = Manifests.read(object) else {
                refused += 1
                continue
            }
            taken += 1
            // What the inventory makes of it, and what a mesh of such nodes comes to.
            let inventory = Inventory(assembling: ["f": objects])
            for node in inventory.nodes.values { nodes["\(node.name) \(round % 4)"] = node }
            peers = peers.suffix(2) + inventory.peers
            while nodes.count > 6, let first = nodes.keys.min() { nodes[first] = nil }
            if !inventory.nodes.isEmpty || !inventory.peers.isEmpty {
                mesh.granularity = round % 2 == 0 ? .location : .full
                mesh.kiloInterop = round % 3 == 0
                _ = MeshTopology(configuration: mesh, nodes: nodes, peers: peers)
                _ = MeshTopology.notReadyForKilo(nodes, clock: 1_700_000_000)
            }
            if let settings = inventory.cilium { _ = (settings.skipsRouteLookup, settings.encryptionOverhead) }
            // The inventory on disk is read as a whole: what cannot be read back would take all of it.
            if round % 8 == 0 {
                #expect(
                    try Manifests.parse(ManifestWriter.list(objects), file: "cache").get() == objects,
                    "\(object.text())")
            }
        }
        #expect(taken > 10_000 && refused > 10_000, "\(taken) taken, \(refused) refused")
    }

    @Test(arguments: ["/", "//", "/24", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/x", "what"])
    func aMalformedAddressAnnotationIsReportedAndTakesNothingElseWithIt(_ value: String) throws {
        let keys = [
            "kilo.squat.ai/force-internal-ip", "kilo.squat.ai/internal-ip", "kilo.squat.ai/cilium-internal-ip",
            "kilo.squat.ai/cni-compatibility-ip", "network.cilium.io/ipv4-cilium-host",
            "network.cilium.io/ipv4-pod-cidr",
        ]
        for key in keys {
            let text = """
                apiVersion: v1
                kind: Node
                metadata: {name: n1, annotations: {\(key): "\(value)"}}
                spec: {podCIDRs: [10.244.1.0/24]}
                status: {addresses: [{type: InternalIP, address: 10.0.0.11}]}
                ---
                apiVersion: v1
                kind: Namespace
                metadata: {name: a}
                """
            let inventory = Inventory(assembling: ["f.yaml": try Manifests.parse(text, file: "f.yaml").get()])
            #expect(inventory.namespaces["a"] != nil)
            let node = try #require(inventory.nodes["n1"])
            #expect(node.internalIPs == [IPAddress(v4: 0x0A00_000B)], "\(key)")
            #expect(node.overlayAddresses == [])
            #expect(node.podCIDRs.map(\.description) == ["10.244.1.0/24"])
            #expect(inventory.problems.count == 1, "\(key): \(inventory.problems)")
            let problem = inventory.problems.first?.description ?? ""
            #expect(
                problem.contains("Node n1") && problem.contains(key) && problem.contains("\"\(value)\""), "\(problem)")
        }
    }

    /// YAML 1.1 has numbers to the base 60 between colons, which Kubernetes has not, and which overflow.
    @Test func aTextWithColonsIsNeverANumber() throws {
        let text = Array(repeating: "1", count: 14).joined(separator: ":")
        let documents = try YAMLDocuments.parse("a: \(text)\nb: 10:20\nc: -1:30.5\nd: 60")
        let value = try #require(documents.first?.value)
        #expect(["a", "b", "c"].map { value[$0]?.string } == [text, "10:20", "-1:30.5"])
        #expect(value["d"]?.integer == 60)
    }

    @Test(arguments: [2_000, 200_000]) func aTextThatIsNestedTooDeepIsRefused(_ depth: Int) {
        let flow = String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
        let json = "{\"a\":" + flow + "}"
        let block = (0..<min(depth, 3000)).map { String(repeating: " ", count: $0) + "a:\n" }.joined()
        for text in [flow, json, "a: " + flow, block] {
            guard case .failure = Manifests.parse(text, file: "f") else {
                Issue.record("accepted: \(text.prefix(40))")
                continue
            }
        }
    }
}

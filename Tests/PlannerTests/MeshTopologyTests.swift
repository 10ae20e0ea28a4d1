import Model
import Testing

@testable import Inventory
@testable import Planner

/// Nodes as manifests, which is how users write them.
enum MeshManifests {
    static func key(_ number: Int) -> String { wireGuardKey(number).text }
    static func wireGuardKey(_ number: Int) -> WireGuardKey {
        var bytes = [UInt8](repeating: 7, count: 32)
        bytes[0] = UInt8(truncatingIfNeeded: number)
        bytes[1] = UInt8(truncatingIfNeeded: number >> 8)
        guard let key = WireGuardKey(bytes: bytes) else { preconditionFailure("32 bytes are a key") }
        return key
    }

    /// - Parameters:
    ///   - location: of the topology label; nil: none.
    ///   - more: further annotations, in YAML's flow style, without the prefix `kilo.squat.ai/`.
    static func node(
        _ number: Int, location: String?, address: String? = nil, external: String? = nil, hasKey: Bool = true,
        more: [String: String] = [:]
    ) -> String {
        var annotations = more.map { "kilo.squat.ai/\($0): '\($1)'" }
        if hasKey { annotations.append("kilo.squat.ai/key: '\(key(number))'") }
        let addresses =
            [
                address.map { "{type: InternalIP, address: \($0)}" },
                external.map { "{type: ExternalIP, address: \($0)}" },
            ]
            .compactMap { $0 }.joined(separator: ", ")
        return """
            ---
            apiVersion: v1
            kind: Node
            metadata:
              name: n\(number)
              labels: {\(location.map { "topology.kubernetes.io/region: \($0)" } ?? "")}
              annotations: {\(annotations.joined(separator: ", "))}
            spec: {podCIDRs: [10.244.\(number).0/24]}
            status: {addresses: [\(addresses)]}
            ---
            apiVersion: cilium.io/v2
            kind: CiliumNode
            metadata: {name: n\(number)}
            spec: {addresses: [{type: CiliumInternalIP, ip: 10.244.\(number).1}]}

            """
    }

    static func inventory(_ text: String) throws -> Inventory {
        switch Manifests.parse(text, file: "mesh.yaml") {
        case .success(let objects): return Inventory(assembling: ["mesh.yaml": objects])
        case .failure(let problems): throw Unreadable(problems: problems.list)
        }
    }
    struct Unreadable: Error { let problems: [InventoryProblem] }

    static func plan(
        _ node: String, _ inventory: Inventory, overlay: Configuration.Overlay = .cilium,
        _ change: (inout Configuration) -> Void = { _ in }
    ) -> Plan {
        var configuration = Configuration()
        configuration.mesh.enabled = true
        configuration.overlay = overlay
        change(&configuration)
        return Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: node), inventory: inventory, attachments: [])
    }

    /// Two locations of two nodes, of which n1 and n3 have public addresses.
    static let twoByTwo =
        node(1, location: "a", address: "10.1.0.11", external: "198.51.100.1")
        + node(2, location: "a", address: "10.1.0.12")
        + node(3, location: "b", address: "10.2.0.13", external: "198.51.100.3")
        + node(4, location: "b", address: "10.2.0.14")
}

@Suite struct MeshTopologyTests {
    typealias M = MeshManifests

    func topology(_ text: String, _ change: (inout MeshConfiguration) -> Void = { _ in }) throws -> MeshTopology {
        var configuration = MeshConfiguration()
        change(&configuration)
        let inventory = try M.inventory(text)
        return MeshTopology(configuration: configuration, nodes: inventory.nodes, peers: inventory.peers)
    }
    func summary(_ topology: MeshTopology) -> [String] {
        topology.segments.map { segment in
            "\(segment.key) \(segment.nodes.map(\.name).joined(separator: ",")) by \(segment.gateway.name) \(segment.wireGuardAddress)"
        }
    }

    // MARK: Kilo's documented topologies

    @Test func logicalGroupsHaveOneGatewayEach() throws {
        #expect(
            summary(try topology(M.twoByTwo)) == [
                "location:a n1,n2 by n1 10.4.0.1", "location:b n3,n4 by n3 10.4.0.2",
            ])
    }

    @Test func inAFullMeshEveryNodeIsOnItsOwn() throws {
        #expect(
            summary(try topology(M.twoByTwo) { $0.granularity = .full }) == [
                "node:n1 n1 by n1 10.4.0.1", "node:n2 n2 by n2 10.4.0.2", "node:n3 n3 by n3 10.4.0.3",
                "node:n4 n4 by n4 10.4.0.4",
            ])
    }

    @Test func granularityCanBeMixed() throws {
        let text = M.twoByTwo + M.node(5, location: "b", address: "10.2.0.15", more: ["granularity": "full"])
        #expect(
            summary(try topology(text)) == [
                "location:a n1,n2 by n1 10.4.0.1", "location:b n3,n4 by n3 10.4.0.2", "node:n5 n5 by n5 10.4.0.3",
            ])
    }

    @Test(arguments: [["force-internal-ip": ""], ["force-internal-ip": "-"], ["internal-ip": ""], [:]])
    func aNodeWithoutAPrivateAddressIsALocationOfItsOwn(_ annotations: [String: String]) throws {
        let node = M.node(
            5, location: "b", address: annotations.isEmpty ? nil : "10.2.0.15", external: "198.51.100.5",
            more: annotations)
        #expect(summary(try topology(M.twoByTwo + node)).last == "node:n5 n5 by n5 10.4.0.3")
    }

    @Test func theAnnotationGoesBeforeTheLabelAndNoLocationIsOneToo() throws {
        let text =
            M.node(1, location: "a", address: "10.1.0.11", more: ["location": "c"])
            + M.node(2, location: nil, address: "10.1.0.12") + M.node(3, location: nil, address: "10.1.0.13")
        #expect(
            summary(try topology(text)) == ["location: n2,n3 by n2 10.4.0.1", "location:c n1 by n1 10.4.0.2"])
    }

    // MARK: gateways

    struct Choice: CustomTestStringConvertible, Sendable {
        let what: String
        /// Of three nodes: has it a public address, wants it to be gateway, has it a key.
        let nodes: [(isPublic: Bool, wants: Bool, hasKey: Bool)]
        let gateway: String?
        var testDescription: String { what }
    }
    static let choices = [
        Choice(what: "the first by name", nodes: [(false, false, true), (false, false, true)], gateway: "n1"),
        Choice(what: "a public one", nodes: [(false, false, true), (true, false, true)], gateway: "n2"),
        Choice(what: "a volunteer", nodes: [(false, false, true), (false, true, true)], gateway: "n2"),
        Choice(
            what: "a volunteer before a public one", nodes: [(true, false, true), (false, true, true)], gateway: "n2"),
        Choice(
            what: "a public volunteer before a volunteer",
            nodes: [(false, true, true), (true, true, true), (true, false, true)], gateway: "n2"),
        Choice(what: "one that has a key", nodes: [(true, true, false), (false, false, true)], gateway: "n2"),
        Choice(what: "nobody without a key", nodes: [(true, true, false), (false, false, false)], gateway: nil),
    ]
    @Test(arguments: choices) func theGatewayIs(_ choice: Choice) throws {
        let text = choice.nodes.enumerated().map { index, node in
            M.node(
                index + 1, location: "a", address: "10.1.0.1\(index)",
                external: node.isPublic ? "198.51.100.\(index)" : nil, hasKey: node.hasKey,
                more: node.wants ? ["leader": ""] : [:])
        }.joined()
        #expect(try topology(text).segments.first?.gateway.name == choice.gateway)
    }

    // MARK: overlaps

    @Test func allowedLocationIPsThatOverlapAreReportedAndHaveOneOwner() throws {
        let text =
            M.node(
                1, location: "a", address: "10.1.0.11", more: ["allowed-location-ips": "192.168.1.0/24,172.20.0.0/16"])
            + M.node(2, location: "b", address: "10.2.0.12", more: ["allowed-location-ips": "192.168.0.0/16"])
            + M.node(
                3, location: "c", address: "10.3.0.13", more: ["allowed-location-ips": "10.244.1.0/25, 10.5.0.0/24"])
            + "---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: p}\nspec: {publicKey: '\(M.key(99))', allowedIPs: [10.5.0.1/32]}\n"
        let mesh = try topology(text)
        #expect(
            mesh.segments.map { $0.allowedLocationIPs.map(\.description) } == [
                ["172.20.0.0/16"], ["192.168.0.0/16"], [],
            ])
        #expect(mesh.problems.count == 3)
        #expect(mesh.problems.allSatisfy { $0.contains("overlaps with") })
    }

    @Test func anAllowedLocationIPOutsideOfWhatTheConfigurationAllowsIsLeftOut() throws {
        let text =
            M.node(1, location: "a", address: "10.1.0.11", more: ["allowed-location-ips": "192.168.1.0/24,8.8.8.8/32"])
            + M.node(2, location: "b", address: "10.2.0.12", more: ["allowed-location-ips": "0.0.0.0/0"])
        let mesh = try topology(text) {
            $0.allowedLocationCIDRs = ["192.168.0.0/16", "172.16.0.0/12"].map { IPNetwork($0)! }
        }
        #expect(mesh.segments.map { $0.allowedLocationIPs.map(\.description) } == [["192.168.1.0/24"], []])
        #expect(
            mesh.problems == [
                "allowed-location-ips: 8.8.8.8/32 of node n1 is outside mesh.allowedLocationCIDRs (192.168.0.0/16, 172.16.0.0/12), and is left out",
                "allowed-location-ips: 0.0.0.0/0 of node n2 is outside mesh.allowedLocationCIDRs (192.168.0.0/16, 172.16.0.0/12), and is left out",
            ])
        #expect(try topology(text).problems.filter { $0.contains("outside") } == [])
    }

    // MARK: Kilo's signs of life

    /// Signs of life of n1, n2, …, and who is left out.
    static let signs: [(seen: [String], clock: Int64, leftOut: Set<String>)] = [
        (["1700000000", "1700000010", "1700000029"], 1_700_000_029, []),
        (["1700000000", "1700000070", "1700000075"], 1_700_000_075, ["n1"]),
        // By this node's clock, to the second.
        (["1700000000", "1700000050", "1700000051"], 1_700_000_059, []),
        (["1700000000", "1700000050", "1700000051"], 1_700_000_060, ["n1"]),
        // This node's clock is behind, or far ahead.
        (["1700000000", "1700000050", "1700000051"], 0, []),
        (["1700000000", "1700000070", "1700000075"], 0, []),
        (["1700000000", "1700000030", "1700000031"], 1_800_000_000, []),
        // Two clocks are ahead, and this node's is right.
        (["1700000000", "1700000100", "1700000110"], 1_700_000_012, []),
        // No newer sign of life arrives: the server does not answer.
        (["1700000000", "1700000010", "1700000029"], 1_700_000_600, []),
        // One clock is ahead: by two minutes, by a day, by all there is.
        (["1700000000", "1700000010", "1700000130"], 1_700_000_012, []),
        (["1700000000", "1700000010", "1700086400", "1699999000"], 1_700_000_012, ["n4"]),
        (["1700000000", "1700000010", "9223372036854775807", "-9223372036854775808"], 1_700_000_012, ["n4"]),
        (["-9223372036854775808", "9223372036854775807", "9223372036854775807"], 1_700_000_012, ["n1"]),
        (["-9223372036854775808", "-9223372036854775808"], 1_700_000_012, []),
        // Of two nobody can tell whether one is gone or the other's clock is ahead.
        (["1700000000", "1700000300"], 1_700_000_300, []),
        (["1700000000"], 1_700_000_300, []),
        // Who never said anything was never there.
        (["1700000000", "", "1700000001"], 1_700_000_001, ["n2"]), (["", ""], 1_700_000_000, []),
    ]
    @Test(arguments: signs.indices) func whoeverIsSilentForAMinuteIsGoneAndNobodyElse(_ index: Int) throws {
        let (seen, clock, leftOut) = Self.signs[index]
        let text = seen.enumerated().map { index, value in
            M.node(
                index + 1, location: "a", address: "10.1.0.1\(index)",
                more: ["endpoint": "198.51.100.\(index):51820", "last-seen": value])
        }.joined()
        let nodes = try M.inventory(text).nodes
        #expect(MeshTopology.notReadyForKilo(nodes, clock: clock) == leftOut)
        // Right after an outage the silence of those counts that were left out before.
        #expect(MeshTopology.notReadyForKilo(nodes, clock: clock, silenceCountsOf: []) == [])
        #expect(
            MeshTopology.notReadyForKilo(nodes, clock: clock, silenceCountsOf: ["n1"]) == leftOut.intersection(["n1"]))
    }

    @Test func aNodeWithoutAKeyIsLeftOutWhetherItsSilenceCountsOrNot() throws {
        var nodes = try M.inventory(M.node(1, location: "a", address: "10.1.0.11", more: ["last-seen": "1700000000"]))
            .nodes
        nodes["n1"]?.mesh.key = nil
        #expect(MeshTopology.notReadyForKilo(nodes, clock: 1_700_000_000, silenceCountsOf: []) == ["n1"])
    }

    @Test func peersThatClaimOneAddressAreSortedOutByName() throws {
        func peer(_ name: String, _ number: Int, _ addresses: String) -> String {
            "---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: \(name)}\nspec: {publicKey: '\(M.key(number))', allowedIPs: [\(addresses)], persistentKeepalive: 10, endpoint: {dnsOrIP: {dns: vpn.example.org}, port: 51820}}\n"
        }
        let mesh = try topology(
            M.twoByTwo + peer("z", 90, "10.5.0.1/32, 10.5.0.2/32") + peer("b", 91, "10.5.0.1/32")
                + peer("n", 1, "10.5.0.9/32"))
        #expect(mesh.peers.map(\.name) == ["b", "z"])
        #expect(mesh.peers.map { $0.allowedIPs.map(\.description) } == [["10.5.0.1/32"], ["10.5.0.2/32"]])
        #expect(mesh.peers.first?.endpoint?.description == "vpn.example.org:51820")
        #expect(mesh.problems.contains("peer z: 10.5.0.1/32 belongs to peer b already"))
        #expect(mesh.problems.contains("peer n has the public key of node n1, and is left out"))
    }

    @Test func aSubnetThatIsTooSmallIsReported() throws {
        let mesh = try topology(M.twoByTwo) {
            $0.granularity = .full
            $0.subnet = IPNetwork("10.4.0.0/30") ?? $0.subnet
        }
        #expect(mesh.segments.count == 3)
        #expect(mesh.problems == ["mesh.subnet 10.4.0.0/30 has no address left for node:n4: choose a larger one"])
    }

    // MARK: annotations

    /// annotation, value, part of the report; nil: none.
    static let annotations: [(key: String, value: String, report: String?)] = [
        ("key", "", nil), ("key", "short", "is not a WireGuard key"),
        ("key", String(repeating: "A", count: 44), "is not"),
        ("endpoint", "", nil), ("endpoint", "host", "is not ADDRESS:PORT"), ("endpoint", "1.2.3.4:0", "is not"),
        ("endpoint", "1.2.3.4:70000", "is not"), ("endpoint", "[1.2.3.4]:1", "is not"),
        ("endpoint", "-x.org:1", "is not"),
        ("endpoint", "1.2.3:5", "is not"), ("endpoint", "gw.example.org:51820", nil),
        ("endpoint", "[2001:db8::1]:1", nil),
        ("force-endpoint", "::1:5", "is not"), ("persistent-keepalive", "", nil),
        ("persistent-keepalive", "-1", "is not a number of seconds"), ("persistent-keepalive", "65536", "is not"),
        ("persistent-keepalive", "25s", "is not"), ("granularity", "region", "is not location or full"),
        ("granularity", "", nil), ("allowed-location-ips", "", nil), ("allowed-location-ips", ",,", nil),
        ("allowed-location-ips", "192.168.0.0/33", "is not a network"),
        ("allowed-location-ips", "a,192.168.0.0/24", "\"a\""),
        ("discovered-endpoints", "", nil), ("discovered-endpoints", "null", nil),
        ("discovered-endpoints", "{", "is not a JSON"),
        ("discovered-endpoints", "[]", "is not a JSON"),
        ("discovered-endpoints", #"{"x":{"IP":"1.2.3.4","Port":5}}"#, "is malformed"),
        ("discovered-endpoints", #"{"\#(MeshManifests.key(3))":{"IP":"1.2.3.4"}}"#, "is malformed"),
        ("discovered-endpoints", #"{"\#(MeshManifests.key(3))":null}"#, "is malformed"),
        ("discovered-endpoints", #"{"\#(MeshManifests.key(3))":{"IP":"1.2.3.4","Port":5,"Zone":""}}"#, nil),
        ("last-seen", "yesterday", "is not a Unix time"), ("last-seen", "1700000000", nil), ("leader", "", nil),
        ("location", "", nil),
    ]
    @Test(arguments: annotations.indices)
    func anAnnotationIsUnderstoodOrReported(_ index: Int) throws {
        let (key, value, report) = Self.annotations[index]
        let inventory = try M.inventory(
            M.node(1, location: "a", address: "10.1.0.11", hasKey: key != "key", more: [key: value])
                + M.node(2, location: "b", address: "10.2.0.12"))
        if let report {
            #expect(inventory.problems.count == 1)
            #expect("\(inventory.problems)".contains(report), "\(inventory.problems)")
            #expect("\(inventory.problems)".contains("kilo.squat.ai/\(key)"))
        } else {
            #expect(inventory.problems == [])
        }
        // Whatever it says, both nodes get a plan.
        for node in ["n1", "n2"] { _ = M.plan(node, inventory) }
    }

    @Test func theForcedAddressCountsWithItsLength() throws {
        let inventory = try M.inventory(
            M.node(
                1, location: "a", address: "10.1.0.11",
                more: ["force-internal-ip": "10.9.0.1/24", "internal-ip": "10.8.0.1/24"])
                + M.node(2, location: "a", address: "10.1.0.12", more: ["internal-ip": "10.8.0.2/24"]))
        #expect(inventory.nodes["n1"]?.mesh.privateAddress?.description == "10.9.0.1/24")
        #expect(inventory.nodes["n2"]?.mesh.privateAddress?.description == "10.8.0.2/24")
    }
}

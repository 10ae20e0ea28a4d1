import Model
import TestSupport
import Testing

@testable import Inventory
@testable import Planner

/// Annotations of one node must not cost every helper more than they cost their writer.
struct AnnotationCostTests {
    @Test(arguments: 0..<20 as Range<UInt64>) func theTrieFindsWhatLookingAtAllFinds(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        func network() -> IPNetwork {
            let isV4 = Int.random(in: 0..<4, using: &random) > 0
            // Few bits, so that they overlap.
            return isV4
                ? IPNetwork(
                    IPAddress(
                        v4: UInt32.random(in: 0..<64, using: &random) << 26 | UInt32.random(in: 0..<4, using: &random)),
                    prefixLength: [0, 3, 4, 6, 31, 32].randomElement(using: &random) ?? 0)
                : IPNetwork(
                    IPNetwork(
                        "fd0\(Int.random(in: 0...3, using: &random)):\(Int.random(in: 0...2, using: &random))::\(Int.random(in: 0...2, using: &random))"
                    )!
                    .address, prefixLength: [0, 14, 16, 32, 64, 127, 128].randomElement(using: &random) ?? 0)
        }
        var trie = NetworkTrie()
        var all: [(network: IPNetwork, number: Int)] = []
        for _ in 0..<60 {
            let asked = network()
            let expected = all.filter { $0.network.overlaps(asked) }.map(\.number).min()
            #expect(trie.first(overlapping: asked) == expected, "\(asked) in \(all)")
            let new = (network: network(), number: Int.random(in: 0..<1000, using: &random))
            trie.insert(new.network, new.number)
            all.append(new)
        }
    }

    @Test func networksOfThousandsOfNodesAreComparedInAMoment() {
        var nodes: [String: Node] = [:]
        for number in 0..<300 {
            var node = TestCluster.node(1)
            node.name = "n\(number)"
            node.internalIPs = [IPAddress(v4: 0x0A00_0000 + UInt32(number))]
            node.podCIDRs = [IPNetwork(IPAddress(v4: 0x0B00_0000 + UInt32(number) << 8), prefixLength: 24)]
            node.mesh.key = MeshManifests.wireGuardKey(number)
            node.mesh.location = "l\(number)"
            node.mesh.allowedLocationIPs = (0..<256).map {
                IPNetwork(host: IPAddress(v4: 0xC000_0000 + UInt32(number) << 8 + UInt32($0)))
            }
            nodes[node.name] = node
        }
        let clock = ContinuousClock()
        var topology: MeshTopology?
        let spent = clock.measure { topology = MeshTopology(configuration: .init(), nodes: nodes, peers: []) }
        #expect(topology?.segments.allSatisfy { $0.allowedLocationIPs.count == 256 } == true)
        // Each compared with each other: three thousand million comparisons.
        #expect(spent < .seconds(20), "\(spent)")
    }

    func read(_ annotations: [String: String]) -> (MeshAnnotations, [InventoryProblem]) {
        var node = TestCluster.node(1)
        for (key, value) in annotations { node.annotations["kilo.squat.ai/" + key] = value }
        return MeshAnnotationReader.read(node)
    }

    @Test func aNodeMayNameOnlySoManyNetworksAndTheProblemSaysWhatIsLeftOut() throws {
        let texts = (0..<1000).map { "192.0.\($0 / 256).\($0 % 256)/32" }
        let (mesh, problems) = read(["allowed-location-ips": texts.joined(separator: ",")])
        #expect(mesh.allowedLocationIPs.count == 256)
        #expect(mesh.allowedLocationIPs.last == IPNetwork("192.0.0.255/32"))
        #expect(problems.count == 1)
        #expect(problems.first?.description.contains("Node n1") == true, "\(problems)")
        #expect(problems.first?.message.contains("more than 256 networks; those behind 192.0.0.255/32") == true)
    }

    @Test func aQuarterOfAMegabyteOfNonsenseIsAFewProblems() {
        let nonsense = (0..<20_000).map { "no\($0)" }
        let entries = (0..<5000).map { "\"k\($0)\":{}" }.joined(separator: ",")
        let (mesh, problems) = read([
            "allowed-location-ips": nonsense.joined(separator: ","), "discovered-endpoints": "{\(entries)}",
            "granularity": String(repeating: "x", count: 100_000),
        ])
        #expect(mesh.allowedLocationIPs.isEmpty && mesh.discoveredEndpoints.isEmpty)
        #expect(problems.count == MeshAnnotationReader.mostProblems + 1)
        #expect(
            problems.last?.message.contains("24993 more malformed values") == true, "\(problems.last?.message ?? "")")
        #expect(problems.allSatisfy { $0.description.utf8.count < 400 })
    }
}

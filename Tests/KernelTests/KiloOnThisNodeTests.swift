import Model
import Testing

@testable import Agent

/// Whether a Kilo runs on this node too, judged by the own Node's key and last-seen.
@Suite struct KiloOnThisNodeTests {
    static let start: Int64 = 1_700_000_000
    static func key(_ first: UInt8) -> WireGuardKey {
        guard let key = WireGuardKey(bytes: [first] + [UInt8](repeating: 7, count: 31)) else {
            preconditionFailure("32 bytes are a key")
        }
        return key
    }
    static let own = key(1)
    static let kilos = key(2)

    /// What the API says, one look after the other: seconds since the helper's start, key, last-seen, and what follows.
    struct Story: CustomTestStringConvertible, Sendable {
        let testDescription: String
        let looks: [(at: Int64, key: WireGuardKey?, seen: Int64?, verdict: KiloOnThisNode.Verdict)]
    }
    static let stories = [
        Story(testDescription: "a first start", looks: [(0, nil, nil, .absent), (30, own, 30, .absent)]),
        Story(testDescription: "our own key stands", looks: [(0, own, -10, .absent)]),
        Story(
            testDescription: "Kilo has ended without cleaning up, a while ago",
            looks: [(0, kilos, -35, .absent), (10, kilos, -35, .absent)]),
        Story(
            testDescription: "Kilo has ended just now",
            looks: [
                (0, kilos, -10, .undecided(age: 10)), (24, kilos, -10, .undecided(age: 34)), (25, kilos, -10, .absent),
            ]),
        Story(
            testDescription: "Kilo runs, and ends",
            looks: [
                (0, kilos, -10, .undecided(age: 10)), (21, kilos, 20, .running), (51, kilos, 50, .running),
                (114, kilos, 50, .running), (115, kilos, 50, .absent),
            ]),
        Story(
            testDescription: "Kilo starts beside us, and our key comes back for a moment",
            looks: [
                (0, own, -10, .absent), (40, kilos, 39, .running), (41, own, 41, .running), (120, own, 120, .absent),
            ]),
        Story(testDescription: "a person has written a key", looks: [(30, kilos, 7, .absent)]),
        Story(testDescription: "a time to come is no sign of life", looks: [(0, kilos, 3600, .absent)]),
        Story(
            testDescription: "all that a number may be", looks: [(0, kilos, .min, .absent), (1, kilos, .max, .absent)]),
        Story(testDescription: "Kilo has cleaned up", looks: [(0, nil, nil, .absent), (1, kilos, nil, .absent)]),
    ]

    @Test(arguments: stories) func aKiloIsThereForAsLongAsItSaysSo(_ story: Story) {
        var kilo = KiloOnThisNode(start: Self.start)
        for look in story.looks {
            let seen = look.seen.map { Self.start.addingReportingOverflow($0) }
            let verdict = kilo.judge(
                key: look.key, lastSeen: seen.map { $0.overflow ? look.seen ?? 0 : $0.partialValue }, own: Self.own,
                written: Self.start + 7, now: Self.start + look.at)
            #expect(verdict == look.verdict, "at \(look.at)")
        }
    }

    // MARK: what is published

    func published(_ part: PublishedNode.MeshPart) -> [String: String] {
        var configuration = Configuration()
        configuration.mesh.enabled = true
        configuration.mesh.kiloInterop = true
        var facts = LocalFacts(nodeName: "n1", overlayAddress: IPAddress("10.244.1.1"))
        facts.publicKey = Self.own
        var node = Node(name: "n1")
        node.internalIPs = [IPAddress(v4: 0x0A00_000B)]
        return PublishedNode(
            facts: facts, configuration: configuration, node: node, lastSeen: Self.start, mesh: part
        ).annotations
    }

    @Test func aKeyThatIsHeldBackIsNotSaidAndNoSignOfLifeEither() {
        let all = published(.all)
        #expect(all["kilo.squat.ai/key"] == Self.own.text)
        #expect(all["kilo.squat.ai/last-seen"] == "1700000000")
        let held = published(.withoutKey)
        #expect(Set(all.keys).subtracting(held.keys) == ["kilo.squat.ai/key", "kilo.squat.ai/last-seen"])
    }

    @Test func besideAKiloOnlyWhatKiloDoesNotSayIsSaid() {
        #expect(Set(published(.nothing).keys) == ["kilo.squat.ai/cilium-internal-ip"])
        // Whoever cleans up knows all names.
        #expect(Set(published(.all).keys).subtracting(PublishedAnnotations.names) == [])
    }
}

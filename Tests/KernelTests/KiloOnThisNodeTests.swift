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
        let looks: [Look]
    }
    struct Look: Sendable {
        let at: Int64
        let key: WireGuardKey?
        let seen: Int64?
        let verdict: KiloOnThisNode.Verdict
        /// Since when signs of life arrive, seconds since the helper's start.
        let heardSince: Int64?
        /// `isHeard`: signs of life arrive, and did all the time.
        init(
            _ at: Int64, _ key: WireGuardKey?, _ seen: Int64?, _ verdict: KiloOnThisNode.Verdict, isHeard: Bool = true,
            since: Int64? = nil
        ) {
            (self.at, self.key, self.seen, self.verdict) = (at, key, seen, verdict)
            heardSince = since ?? (isHeard ? -start : nil)
        }
    }
    static let stories = [
        Story(testDescription: "a first start", looks: [.init(0, nil, nil, .absent), .init(30, own, 30, .absent)]),
        Story(testDescription: "our own key stands", looks: [.init(0, own, -10, .absent)]),
        Story(
            testDescription: "Kilo has ended without cleaning up, a while ago",
            looks: [.init(0, kilos, -35, .absent), .init(10, kilos, -35, .absent)]),
        Story(
            testDescription: "Kilo has ended just now",
            looks: [
                .init(0, kilos, -10, .undecided(age: 10)), .init(24, kilos, -10, .undecided(age: 34)),
                .init(25, kilos, -10, .absent),
            ]),
        Story(
            testDescription: "Kilo runs, and ends",
            looks: [
                .init(0, kilos, -10, .undecided(age: 10)), .init(21, kilos, 20, .running),
                .init(51, kilos, 50, .running),
                .init(114, kilos, 50, .running), .init(115, kilos, 50, .absent),
            ]),
        Story(
            testDescription: "Kilo starts beside us, and our key comes back for a moment",
            looks: [
                .init(0, own, -10, .absent), .init(40, kilos, 39, .running), .init(41, own, 41, .running),
                .init(120, own, 120, .absent),
            ]),
        Story(testDescription: "a person has written a key", looks: [.init(30, kilos, 7, .absent)]),
        Story(testDescription: "a time to come is no sign of life", looks: [.init(0, kilos, 3600, .absent)]),
        Story(
            testDescription: "all that a number may be",
            looks: [.init(0, kilos, .min, .absent), .init(1, kilos, .max, .absent)]),
        Story(
            testDescription: "Kilo has cleaned up", looks: [.init(0, nil, nil, .absent), .init(1, kilos, nil, .absent)]),
        Story(
            testDescription: "Kilo runs, and the API server is away for two minutes and then tells late",
            looks: [
                .init(0, kilos, -10, .undecided(age: 10)), .init(21, kilos, 20, .running),
                .init(30, kilos, 20, .running, isHeard: false), .init(140, kilos, 20, .running, isHeard: false),
                .init(150, kilos, 20, .running, since: 145), .init(209, kilos, 20, .running, since: 145),
                .init(210, kilos, 20, .absent, since: 145),
            ]),
        Story(
            testDescription: "it is not decided yet when the API server goes away",
            looks: [
                .init(0, kilos, -10, .undecided(age: 10)), .init(60, kilos, -10, .undecided(age: 10), isHeard: false),
                .init(70, kilos, -10, .undecided(age: 5), since: 65), .init(80, kilos, 75, .running, since: 65),
            ]),
        Story(
            testDescription: "the helper starts from the disk, which does not say when Kilo was last there",
            looks: [
                .init(0, kilos, nil, .undecided(age: 0), isHeard: false),
                .init(90, kilos, nil, .undecided(age: 0), isHeard: false),
                .init(100, kilos, nil, .undecided(age: 4), since: 96), .init(110, kilos, 105, .running, since: 96),
            ]),
        Story(
            testDescription: "a Kilo that is gone does not come back by an outage",
            looks: [
                .init(0, kilos, -40, .absent), .init(30, kilos, -40, .absent, isHeard: false),
                .init(60, kilos, -40, .absent, since: 55), .init(90, kilos, -40, .absent, since: 55),
            ]),
    ]

    @Test(arguments: stories) func aKiloIsThereForAsLongAsItSaysSo(_ story: Story) {
        var kilo = KiloOnThisNode(start: Self.start)
        for look in story.looks {
            let seen = look.seen.map { Self.start.addingReportingOverflow($0) }
            let verdict = kilo.judge(
                key: look.key, lastSeen: seen.map { $0.overflow ? look.seen ?? 0 : $0.partialValue }, own: Self.own,
                written: Self.start + 7, heardSince: look.heardSince.map { Self.start + $0 }, now: Self.start + look.at)
            #expect(verdict == look.verdict, "at \(look.at)")
        }
    }

    @Test func silenceCountsOnlyWhileSignsOfLifeArrive() {
        var signs = SignsOfLife()
        #expect(!signs.have(lasted: 60, at: 1000))
        signs.note(isFollowed: true, now: 1000)
        // What the first list says is believed: of a break nothing is known.
        #expect(signs.since == 0 && signs.have(lasted: 60, at: 1000))
        signs.note(isFollowed: false, now: 1100)
        #expect(signs.since == nil && !signs.have(lasted: 60, at: 1300))
        signs.note(isFollowed: true, now: 1400)
        signs.note(isFollowed: true, now: 1410)
        #expect(!signs.have(lasted: 60, at: 1459) && signs.have(lasted: 60, at: 1460))
        // A start from the disk is a break.
        var other = SignsOfLife()
        other.note(isFollowed: false, now: 0)
        other.note(isFollowed: true, now: 10)
        #expect(other.since == 10)
    }

    // MARK: what is published

    func published(_ part: PublishedNode.MeshPart, standing: [String: String] = [:]) -> [String: String] {
        var configuration = Configuration()
        configuration.mesh.enabled = true
        configuration.mesh.kiloInterop = true
        var facts = LocalFacts(nodeName: "n1", overlayAddress: IPAddress("10.244.1.1"))
        facts.publicKey = Self.own
        var node = Node(name: "n1")
        node.annotations = standing
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
        // What stands and is the same goes on being named, but for what says whose the node is: server-side apply takes out
        // what its only manager names no more, and a Kilo that found it unchanged has not written it.
        var standing = published(.all)
        standing["kilo.squat.ai/internal-ip"] = "192.168.0.7/24"
        #expect(
            Set(published(.nothing, standing: standing).keys)
                == Set(standing.keys).subtracting(["key", "last-seen", "internal-ip"].map { "kilo.squat.ai/\($0)" }))
        // Whoever cleans up knows all names.
        #expect(Set(published(.all).keys).subtracting(PublishedAnnotations.names) == [])
    }
}

import Inventory
import Jansson
import TestSupport
import Testing

@testable import Kubernetes

/// What the status of a policy comes to, where many nodes know a part of it. Without a server: what one node writes, all see.
struct PolicyStatusTests {
    /// Nodes that write as soon as they have something to write, one after the other.
    struct Cluster {
        var nodes: [String: PolicyStatusAgreement] = [:]
        var status: PolicyStatus?
        var writes = 0
        let clock: any Clock<Duration>

        init(_ names: [String], clock: any Clock<Duration> = ContinuousClock()) {
            self.clock = clock
            for name in names { nodes[name] = PolicyStatusAgreement(clock: clock) }
        }

        /// Until nobody has anything to write.
        mutating func settle(count: Int? = nil) {
            for _ in 0..<20 {
                var isQuiet = true
                for name in nodes.keys.sorted() {
                    guard let wanted = nodes[name]?.wanted(count: nil, now: "t\(writes)") else { continue }
                    isQuiet = false
                    writes += 1
                    status = wanted
                    nodes[name]?.wrote(wanted)
                    for other in nodes.keys { nodes[other]?.see(wanted) }
                }
                if isQuiet { return }
            }
            Issue.record("the nodes contradict each other for ever")
        }
    }

    static func user(_ active: [String], up: [String], down: [String] = [], reason: String = "") -> PolicyReport {
        PolicyReport(
            name: "e", activeGateways: active, reason: reason, standing: .user, candidates: ["g1", "g2"], up: up,
            down: down)
    }
    static func candidate(_ name: String) -> PolicyReport {
        PolicyReport(name: "e", activeGateways: [name], reason: "", candidates: ["g1", "g2"])
    }

    @Test func afterAFailOverOneNodeSaysWhichGatewayIsActive() {
        var cluster = Cluster(["a", "b", "c"])
        for name in ["a", "b", "c"] { cluster.nodes[name]?.take(Self.user(["g1"], up: ["g1", "g2"])) }
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g1"] && cluster.status?.candidates == "2 of 2")
        #expect(cluster.writes == 1 && cluster.status?.since == "t0")
        for name in ["a", "b", "c"] { cluster.nodes[name]?.take(Self.user(["g2"], up: ["g2"], down: ["g1"])) }
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g2"] && cluster.status?.candidates == "1 of 2")
        #expect(cluster.writes == 2 && cluster.status?.since == "t1")
        // The other is back, and takes nothing back: the count is another one, since when it is active is not.
        for name in ["a", "b", "c"] { cluster.nodes[name]?.take(Self.user(["g2"], up: ["g1", "g2"])) }
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g2"] && cluster.status?.candidates == "2 of 2")
        #expect(cluster.writes == 3 && cluster.status?.since == "t1")
        // It takes back what it had: the pods have left the one in between, which is up.
        for name in ["a", "b", "c"] { cluster.nodes[name]?.take(Self.user(["g1"], up: ["g1", "g2"])) }
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g1"] && cluster.writes == 4)
    }

    @Test func whenAllAreDownTheReasonIsStated() {
        var cluster = Cluster(["a", "g1", "g2"])
        cluster.nodes["a"]?.take(Self.user(["g1"], up: ["g1", "g2"]))
        for name in ["g1", "g2"] { cluster.nodes[name]?.take(Self.candidate(name)) }
        cluster.settle()
        let down = "all its gateways are down: g1, g2"
        cluster.nodes["a"]?.take(Self.user([], up: [], down: ["g1", "g2"], reason: down))
        // Candidates whose helpers live would say that they are there. Users go first; a candidate waits for ten minutes.
        let wanted = cluster.nodes["a"]?.wanted(count: nil, now: "t")
        #expect(wanted?.activeGateways == [] && wanted?.reason == down && wanted?.candidates == "0 of 2")
        if let wanted { for name in ["a", "g1", "g2"] { cluster.nodes[name]?.see(wanted) } }
        #expect(cluster.nodes["g1"]?.isDownForUsers == true)
        cluster.nodes["a"]?.take(Self.user(["g2"], up: ["g2"], down: ["g1"]))
        let back = cluster.nodes["a"]?.wanted(count: nil, now: "t")
        #expect(back?.activeGateways == ["g2"] && back?.reason == "" && back?.candidates == "1 of 2")
    }

    /// The preferred gateway is dead, so it is for others to say so.
    @Test func whereThePreferredGatewayIsDeadAnotherNodeTakesItsTurn() {
        var ranks = ReportingRank(clock: ContinuousClock())
        var wanted = PolicyStatus()
        wanted.activeGateways = ["g2"]
        func wait(_ report: PolicyReport, down: Bool = false) -> Double {
            switch ranks.whenToWrite(wanted, report, seen: nil, isDownForUsers: down) {
            case .now: 0
            case .after(let wait): (wait / .seconds(1)).rounded()
            }
        }
        func report(_ standing: PolicyReport.Standing, rank: Int) -> PolicyReport {
            PolicyReport(name: "e", activeGateways: ["g2"], reason: "", standing: standing, rank: rank)
        }
        #expect(wait(report(.candidate, rank: 0)) == 0)
        #expect(wait(report(.candidate, rank: 1)) == 10)
        #expect(wait(report(.user, rank: 0)) == 1)
        #expect(wait(report(.user, rank: 100)) == 3)
        #expect(wait(report(.user, rank: 100_000)) == 61)
        #expect(wait(report(.candidate, rank: 0), down: true) == 600)
    }

    /// A gateway that some nodes reach and others do not: both say what they see, and then rest.
    @Test func nodesThatSeeDifferentThingsComeToRest() {
        let clock = ScaledClock(factor: 6000)
        var cluster = Cluster(["a", "b", "c", "d"], clock: clock)
        for name in ["a", "b", "c", "d"] { cluster.nodes[name]?.take(Self.user(["g1"], up: ["g1", "g2"])) }
        cluster.settle()
        for name in ["a", "c"] { cluster.nodes[name]?.take(Self.user(["g2"], up: ["g2"], down: ["g1"])) }
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g1", "g2"] && cluster.status?.candidates == "2 of 2")
        #expect(cluster.writes <= 5, "\(cluster.writes)")
        // Then the others lose it too, and nobody holds it any more.
        for name in ["b", "d"] { cluster.nodes[name]?.take(Self.user(["g2"], up: ["g2"], down: ["g1"])) }
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g2"] && cluster.status?.candidates == "1 of 2")
    }

    /// Pods in two places, each with its own gateway (`locality`, `spread`): the status names both, without a quarrel.
    @Test func nodesWithDifferentGatewaysNameThemTogether() {
        var cluster = Cluster(["a", "b"])
        cluster.nodes["a"]?.take(Self.user(["g1"], up: ["g1", "g2"]))
        cluster.nodes["b"]?.take(Self.user(["g2"], up: ["g1", "g2"]))
        cluster.settle()
        #expect(cluster.status?.activeGateways == ["g1", "g2"] && cluster.writes == 2)
    }

    @Test(arguments: 0..<100 as Range<UInt64>) func whateverTheNodesSeeTheyComeToRest(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var cluster = Cluster((1...5).map { "n\($0)" })
        for _ in 0..<12 {
            for name in cluster.nodes.keys.sorted() where Bool.random(using: &random) {
                let up = ["g1", "g2"].filter { _ in Bool.random(using: &random) }
                let active = up.randomElement(using: &random).map { [$0] } ?? []
                cluster.nodes[name]?.take(
                    Self.user(
                        active, up: up, down: ["g1", "g2"].filter { !up.contains($0) },
                        reason: active.isEmpty ? "down" : ""))
            }
            cluster.settle()
            // What any pod uses is named.
            let used = Set(cluster.nodes.values.flatMap { $0.report?.activeGateways ?? [] })
            #expect(cluster.status == nil || used.isSubset(of: cluster.status?.activeGateways ?? []))
        }
    }

    /// A watch that is late shows what was before: that is nobody's contradiction.
    @Test func anOlderStatusIsNoContradiction() {
        var node = PolicyStatusAgreement(clock: ContinuousClock())
        func none() -> PolicyReport { PolicyReport(name: "e", activeGateways: [], reason: "none fits") }
        node.take(none())
        let first = node.wanted(count: nil, now: "t0")!
        node.wrote(first)
        node.see(first)
        // It gets a gateway, and loses it, while the watch still shows what was before.
        node.take(Self.candidate("g1"))
        let second = node.wanted(count: nil, now: "t1")!
        node.wrote(second)
        node.take(none())
        node.see(first)
        node.see(second)
        #expect(node.wanted(count: nil, now: "t2")?.activeGateways == [])
    }

    /// Another node has counted the pods right after this node's write: the number stays when this node writes again.
    @Test func aNumberOfPodsThatCameWithTheOwnStatusIsCarriedOn() {
        var node = PolicyStatusAgreement(clock: ContinuousClock())
        node.take(Self.candidate("g1"))
        let first = node.wanted(count: nil, now: "t0")!
        node.wrote(first)
        var counted = first
        counted.selectedPods = 1
        node.see(counted)
        node.take(PolicyReport(name: "e", activeGateways: [], reason: "none fits"))
        #expect(node.wanted(count: nil, now: "t1")?.selectedPods == 1)
    }

    static func condition(_ type: String, of status: PolicyStatus?) -> JSON? {
        status?.json(isOld: false)["conditions"]?.elements?.first { $0["type"]?.string == type }
    }

    @Test func conditionsSayWhyAndOfWhichSpec() {
        var node = PolicyStatusAgreement(clock: ContinuousClock())
        func take(_ report: PolicyReport, at time: String) -> PolicyStatus? {
            node.take(report)
            let status = node.wanted(count: nil, now: time)
            if let status { node.wrote(status) }
            return status
        }
        func conditions(_ status: PolicyStatus?) -> [String] {
            ["Accepted", "Ready"].map { type in
                let condition = Self.condition(type, of: status)
                return ["status", "reason", "message", "lastTransitionTime"].map { condition?[$0]?.string ?? "?" }
                    .joined(separator: "|") + "|\(condition?["observedGeneration"]?.integer ?? -1)"
            }
        }
        let refused = PolicyReport(
            name: "e", activeGateways: [], reason: "spec.mystery is not known", isRefused: true, generation: 1)
        #expect(
            conditions(take(refused, at: "t1")) == [
                "False|Refused|spec.mystery is not known|t1|1", "False|Refused|spec.mystery is not known|t1|1",
            ])
        let none = PolicyReport(name: "e", activeGateways: [], reason: "no node has zone=z9", generation: 2)
        #expect(
            conditions(take(none, at: "t2")) == ["True|Valid||t2|2", "False|NoGateway|no node has zone=z9|t1|2"],
            "not ready since before")
        let active = PolicyReport(name: "e", activeGateways: ["n2"], reason: "", candidates: ["n2"], generation: 2)
        #expect(
            conditions(take(active, at: "t3")) == [
                "True|Valid||t2|2", "True|GatewayActive|egress leaves by n2|t3|2",
            ])
        // The same again of a newer spec.
        let newer = PolicyReport(name: "e", activeGateways: ["n2"], reason: "", candidates: ["n2"], generation: 3)
        #expect(take(newer, at: "t4")?.observedGeneration == 3)
        #expect(Self.condition("Ready", of: node.seen)?["lastTransitionTime"]?.string == "t3")
        #expect(take(newer, at: "t5") == nil)
        let down = PolicyReport(
            name: "e", activeGateways: [], reason: "all its gateways are down: n2", standing: .user,
            candidates: ["n2"], down: ["n2"], generation: 3)
        #expect(conditions(take(down, at: "t6"))[1] == "False|GatewaysDown|all its gateways are down: n2|t6|3")
    }

    /// Its inventory is behind: what it would say is of a spec that is over.
    @Test func aNodeThatHasNotSeenTheNewSpecSaysNothing() {
        var node = PolicyStatusAgreement(clock: ContinuousClock())
        var status = PolicyStatus()
        status.activeGateways = ["g1"]
        status.observedGeneration = 2
        node.take(PolicyReport(name: "e", activeGateways: [], reason: "none fits", generation: 1))
        node.see(status)
        let behind = node.wanted(count: nil, now: "t")
        #expect(behind == nil)
        node.take(PolicyReport(name: "e", activeGateways: [], reason: "none fits", generation: 2))
        let there = node.wanted(count: nil, now: "t")
        #expect(there?.reason == "none fits")
    }

    /// A new spec with the same outcome is told by one node, not by all at once.
    @Test func ofANewSpecNodesTellInTurn() {
        var ranks = ReportingRank(clock: ContinuousClock())
        var (seen, wanted) = (PolicyStatus(), PolicyStatus())
        (seen.activeGateways, seen.observedGeneration) = (["g1"], 1)
        (wanted.activeGateways, wanted.observedGeneration) = (["g1"], 2)
        let report = PolicyReport(name: "e", activeGateways: ["g1"], reason: "", standing: .user, rank: 50)
        var time = ranks.whenToWrite(wanted, report, seen: seen, isDownForUsers: false)
        #expect(time != .now)
        wanted.observedGeneration = 1
        wanted.selectedPods = 7
        time = ranks.whenToWrite(wanted, report, seen: seen, isDownForUsers: false)
        #expect(time == .now, "only a number")
    }

    /// A name that somebody has written into the status is not a gateway that some node uses.
    @Test func whatSomebodyElseHasWrittenIsNobodysWord() {
        var node = PolicyStatusAgreement(clock: ContinuousClock())
        node.take(Self.user(["g1"], up: ["g1", "g2"]))
        let own = node.wanted(count: nil, now: "t1")!
        node.wrote(own)
        node.see(own)
        var theirs = own
        (theirs.activeGateways, theirs.candidates) = (["g2"], "9 of 9")
        node.see(theirs, isForeign: true)
        let repaired = node.wanted(count: nil, now: "t2")
        #expect(repaired?.activeGateways == ["g1"] && repaired?.candidates == "2 of 2")
        node.see(theirs, isForeign: false)
        let believed = node.wanted(count: nil, now: "t2")
        #expect(believed?.activeGateways == ["g1", "g2"], "of a helper it is believed")
        // Nor is it written again and again against somebody who insists.
        var ranks = ReportingRank(clock: ContinuousClock())
        ranks.wrote(own, of: "e")
        let report = Self.user(["g1"], up: ["g1", "g2"])
        guard let repaired,
            case .after(let wait) = ranks.whenToWrite(
                repaired, report, seen: theirs, isDownForUsers: false, isForeign: true)
        else {
            Issue.record("it is written at once")
            return
        }
        #expect(wait > .seconds(50))
    }

    @Test func countingCostsTheServerLittle() {
        func seconds(_ policies: Int, _ nodes: Int, _ milliseconds: Int) -> Double {
            CountingPace.interval(policies: policies, nodes: nodes, took: .milliseconds(milliseconds)) / .seconds(1)
        }
        #expect(seconds(3, 20, 10) == 15)
        #expect(seconds(1, 5000, 100) == 50, "a list that takes long")
        #expect(seconds(10, 5000, 10) == 50, "many who are told")
        #expect(seconds(500, 5000, 10) == 600)
        #expect(seconds(1, 5000, 100_000) == 600)
    }

    @Test func aStatusIsReadAsItWasWritten() {
        var status = PolicyStatus()
        status.activeGateways = ["g2", "g1"]
        status.upGateways = ["g1"]
        status.candidates = "1 of 2"
        status.since = "2026-11-27T00:00:00Z"
        status.selectedPods = 3
        status.observedGeneration = 4
        status.acceptedSince = "2026-11-27T00:00:01Z"
        status.readySince = "2026-11-27T00:00:02Z"
        #expect(PolicyStatus(status.json(isOld: false)) == status)
        #expect(PolicyStatus(status.json(isOld: true)) == status.ofOldDefinition)
        #expect(PolicyStatus(nil) == nil && PolicyStatus(.make()) == nil)
    }
}

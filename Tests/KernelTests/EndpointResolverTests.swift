import Foundation
import Model
import Synchronization
import Testing

@testable import Agent

struct EndpointResolverTests {
    /// A resolver whose server never answers for some names, until it is let go of.
    final class Names: Sendable {
        let asked = Mutex<[String: Int]>([:])
        let running = Mutex((now: 0, most: 0))
        let isStalled = Mutex(true)
        /// How a name begins that is not answered.
        let stalls = Mutex("slow")
        func resolve(_ name: String) -> IPAddress? {
            asked.withLock { $0[name, default: 0] += 1 }
            running.withLock { $0 = ($0.now + 1, max($0.most, $0.now + 1)) }
            defer { running.withLock { $0.now -= 1 } }
            while name.hasPrefix(stalls.withLock { $0 }), isStalled.withLock({ $0 }) { usleep(10_000) }
            return name.hasPrefix("none") ? nil : IPAddress(v4: UInt32(truncatingIfNeeded: name.utf8.count))
        }
    }

    func answers(_ resolver: EndpointResolver, count: Int) async -> [String: IPAddress] {
        var all: [String: IPAddress] = [:]
        for _ in 0..<200 {
            all.merge(resolver.takeAnswers()) { _, new in new }
            if all.count >= count { break }
            try? await Task.sleep(for: .milliseconds(10))
        }
        return all
    }

    @Test func aNameWhoseServerDoesNotAnswerHoldsUpNoOtherName() async {
        let names = Names()
        let resolver = EndpointResolver { names.resolve($0) }
        let start = ContinuousClock.now
        resolver.ask(["slow.example", "a.example", "none.example", "bb.example"])
        #expect(ContinuousClock.now - start < .seconds(1), "asking waits for nobody")
        #expect(await answers(resolver, count: 2) == ["a.example": IPAddress(v4: 9), "bb.example": IPAddress(v4: 10)])
        // In the next round the slow one is still being asked for.
        resolver.ask(["slow.example", "a.example"])
        #expect(await answers(resolver, count: 1) == ["a.example": IPAddress(v4: 9)])
        #expect(names.asked.withLock { $0["slow.example"] } == 1)
        names.isStalled.withLock { $0 = false }
        #expect(await answers(resolver, count: 1) == ["slow.example": IPAddress(v4: 12)])
    }

    /// Names that are not answered, more than there are threads, round after round.
    @Test func manyDeadNamesHoldUpNoOtherNameFromTheSecondRoundOn() async {
        let names = Names()
        let resolver = EndpointResolver { names.resolve($0) }
        let dead = Set((0..<20).map { "none\($0).example" })
        resolver.ask(dead)
        for _ in 0..<200 where names.asked.withLock({ $0.count }) < 20 { try? await Task.sleep(for: .milliseconds(10)) }
        for _ in 0..<200 where names.running.withLock({ $0.now }) > 0 { try? await Task.sleep(for: .milliseconds(10)) }
        // Now nobody says at once that there is none.
        names.stalls.withLock { $0 = "none" }
        resolver.ask(dead.union(["a.example"]))
        #expect(await answers(resolver, count: 1) == ["a.example": IPAddress(v4: 9)])
        resolver.ask(["bb.example"])
        #expect(await answers(resolver, count: 1) == ["bb.example": IPAddress(v4: 10)])
        names.isStalled.withLock { $0 = false }
    }

    @Test func onlySoManyAreAskedForAtTheSameTimeAndAllInTheEnd() async {
        let names = Names()
        let resolver = EndpointResolver { names.resolve($0) }
        resolver.ask(Set((0..<20).map { "slow\($0).example" }))
        for _ in 0..<500 where names.running.withLock({ $0.now }) < EndpointResolver.most {
            try? await Task.sleep(for: .milliseconds(10))
        }
        try? await Task.sleep(for: .milliseconds(100))
        #expect(names.running.withLock { $0.now } == EndpointResolver.most)
        names.isStalled.withLock { $0 = false }
        #expect(await answers(resolver, count: 20).count == 20)
        #expect(names.running.withLock { $0.most } == EndpointResolver.most)
    }
}

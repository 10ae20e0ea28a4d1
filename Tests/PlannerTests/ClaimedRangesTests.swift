import Model
import TestSupport
import Testing

@testable import Planner

struct ClaimedRangesTests {
    /// Every address by itself: the longest prefix that holds it says what it is.
    @Test(arguments: 0..<300 as Range<UInt64>) func everyAddressIsClaimedByItsLongestPrefix(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var verdicts: [IPNetwork: EgressPolicyRoutes.Verdict] = [:]
        let base: UInt32 = seed % 2 == 0 ? 0 : 0xFFFF_FF00
        for _ in 0..<Int.random(in: 0...12, using: &random) {
            let network = IPNetwork(
                IPAddress(v4: base + UInt32.random(in: 0...255, using: &random)),
                prefixLength: Int.random(in: 24...32, using: &random))
            verdicts[network] = Bool.random(using: &random) ? .claimed(0) : .thrown
        }
        let ranges = EgressPolicyRoutes.claimedRanges(
            verdicts.sorted { $0.key < $1.key }.map { .init(prefix: $0.key, verdict: $0.value) })
        for number in 0...255 as ClosedRange<UInt32> {
            let address = IPAddress(v4: base + number)
            let longest = verdicts.filter { $0.key.contains(address) }.max { $0.key.prefixLength < $1.key.prefixLength }
            #expect(ranges.contains { $0.contains(address.v4Value) } == (longest?.value == .claimed(0)))
        }
        #expect(ranges == IPRanges.merge(ranges))
    }
}

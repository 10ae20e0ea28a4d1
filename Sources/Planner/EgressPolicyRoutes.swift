import Model

/// The routes of one policy table: the merged destinations of a pod's policies.
enum EgressPolicyRoutes {
    /// What happens to an address.
    enum Verdict: Equatable, Sendable {
        /// Goes by the next hop of the policy at this index.
        case claimed(Int)
        case thrown
    }

    struct Entry: Equatable, Sendable {
        let prefix: IPNetwork
        let verdict: Verdict
    }

    /// Every prefix that the table holds, with its verdict, in order.
    ///
    /// An exclusion takes away from its own policy only; of the policies that are left the longest destination wins,
    /// and of equal ones the first policy that is not held. For a prefix X of the union of all destinations and exclusions,
    /// what covers any address that has X as its longest match is what covers X; so a verdict per prefix is exact.
    ///
    /// - Parameters:
    ///   - policies: in order of name.
    ///   - kept: what always stays on its normal path: disjoint, in order, of this family.
    static func verdicts(policies: [AssignedPolicy], kept: [IPNetwork], family: IPAddress.Family) -> [Entry] {
        let destinations = policies.map { $0.destinations.filter { $0.family == family } }
        let exclusions = policies.map { $0.exclusions.filter { $0.family == family } }
        if destinations.allSatisfy(\.isEmpty) { return [] }
        let kept = DisjointNetworks(networks: kept)
        // A held policy must not cut a pod off from the gateway of a good one.
        let order = policies.indices.filter { !policies[$0].isHeld } + policies.indices.filter { policies[$0].isHeld }
        var prefixes: Set<IPNetwork> = []
        for list in destinations + exclusions { prefixes.formUnion(list) }
        var entries: [Entry] = []
        var claims: [IPNetwork] = []
        for prefix in prefixes where !kept.contain(prefix) {
            var best: (length: Int, policy: Int)?
            for index in order where !exclusions[index].contains(where: { $0.contains(prefix) }) {
                let longest = destinations[index].filter { $0.contains(prefix) }.map(\.prefixLength).max()
                if let longest, longest > best?.length ?? -1 { best = (longest, index) }
            }
            if let best {
                entries.append(Entry(prefix: prefix, verdict: .claimed(best.policy)))
                claims.append(prefix)
            } else {
                entries.append(Entry(prefix: prefix, verdict: .thrown))
            }
        }
        // A throw is only needed where the table would otherwise have an answer.
        let outermostClaims = outermost(claims)
        let claimed = DisjointNetworks(networks: outermostClaims)
        entries.removeAll { $0.verdict == .thrown && !claimed.contain($0.prefix) }
        for claim in outermostClaims {
            for network in kept.within(claim) { entries.append(Entry(prefix: network, verdict: .thrown)) }
        }
        return entries.sorted { $0.prefix < $1.prefix }
    }

    /// The networks that no other of them contains, sorted. All are of one family.
    static func outermost(_ networks: [IPNetwork]) -> [IPNetwork] {
        var result: [IPNetwork] = []
        result.reserveCapacity(networks.count)
        // Sorted by address and then length, a network comes right after what contains it, or is the same.
        for network in inOrder(networks) {
            if let last = result.last, last.contains(network) { continue }
            result.append(network)
        }
        return result
    }

    /// By address and length. Every address of every node may be among them, and numbers are quicker to sort.
    private static func inOrder(_ networks: [IPNetwork]) -> [IPNetwork] {
        guard networks.allSatisfy({ $0.family == .v4 }) else { return networks.sorted() }
        return networks.map { UInt64($0.address.v4Value) << 8 | UInt64($0.prefixLength) }.sorted().map {
            IPNetwork(IPAddress(v4: UInt32($0 >> 8)), prefixLength: Int($0 & 0xFF))
        }
    }

    /// The IPv4 ranges that the verdicts claim, disjoint and not adjacent, in order.
    static func claimedRanges(_ verdicts: [Entry]) -> [ClosedRange<UInt32>] {
        // Sorted by address, then length: a later prefix lies inside an earlier one or behind it. What is open is a stack.
        var ranges: [ClosedRange<UInt32>] = []
        var open: [(last: UInt64, isClaimed: Bool)] = []
        var position: UInt64 = 0
        /// The result of the innermost open prefix up to that address.
        func paint(upTo end: UInt64) {
            guard let innermost = open.last, position < end else { return }
            if innermost.isClaimed { ranges.append(UInt32(position)...UInt32(end - 1)) }
        }
        func close(before first: UInt64) {
            while let innermost = open.last, innermost.last < first {
                paint(upTo: innermost.last + 1)
                position = max(position, innermost.last + 1)
                open.removeLast()
            }
        }
        for entry in verdicts where entry.prefix.family == .v4 {
            let (prefix, verdict) = (entry.prefix, entry.verdict)
            let first = UInt64(prefix.address.v4Value)
            close(before: first)
            paint(upTo: first)
            position = first
            if case .claimed = verdict {
                open.append((UInt64(prefix.lastV4), true))
            } else {
                open.append((UInt64(prefix.lastV4), false))
            }
        }
        close(before: .max)
        return IPRanges.merge(ranges)
    }
}

/// Ranges of IPv4 addresses in host order.
enum IPRanges {
    static func of(_ networks: [IPNetwork]) -> [ClosedRange<UInt32>] {
        merge(networks.filter { $0.family == .v4 }.map { $0.address.v4Value...$0.lastV4 })
    }

    /// The fewest networks that are exactly this range.
    static func networks(_ range: ClosedRange<UInt32>) -> [IPNetwork] {
        var result: [IPNetwork] = []
        var first = UInt64(range.lowerBound)
        while first <= UInt64(range.upperBound) {
            var bits = min(32, first == 0 ? 32 : first.trailingZeroBitCount)
            while first + (1 << UInt64(bits)) - 1 > UInt64(range.upperBound) { bits -= 1 }
            result.append(IPNetwork(IPAddress(v4: UInt32(first)), prefixLength: 32 - bits))
            first += 1 << UInt64(bits)
        }
        return result
    }

    /// Disjoint and not adjacent, in order: interval sets of the kernel refuse anything else.
    static func merge(_ ranges: [ClosedRange<UInt32>]) -> [ClosedRange<UInt32>] {
        var result: [ClosedRange<UInt32>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = result.last, UInt64(range.lowerBound) <= UInt64(last.upperBound) + 1 {
                result[result.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
            } else {
                result.append(range)
            }
        }
        return result
    }
}

import Model

/// The routes of one policy table: the merged destinations of a pod's policies.
enum EgressPolicyRoutes {
    /// What happens to an address.
    enum Verdict: Equatable {
        /// Goes by the next hop of the policy at this index.
        case claimed(Int)
        case thrown
    }

    /// Every prefix that the table holds, with its verdict.
    ///
    /// An exclusion takes away from its own policy only; of the policies that are left the longest destination wins,
    /// and of equal ones the first policy. For a prefix X of the union of all destinations and exclusions, what
    /// covers any address that has X as its longest match is what covers X; so a verdict per prefix is exact.
    ///
    /// - Parameters:
    ///   - policies: in order of name.
    ///   - kept: what always stays on its normal path.
    static func verdicts(
        policies: [EgressPolicy], kept: [IPNetwork], family: IPAddress.Family
    ) -> [(prefix: IPNetwork, verdict: Verdict)] {
        let destinations = policies.map { $0.destinations.filter { $0.family == family } }
        let exclusions = policies.map { $0.exclusions.filter { $0.family == family } }
        let kept = outermost(kept.filter { $0.family == family })
        var prefixes: Set<IPNetwork> = []
        for list in destinations + exclusions { prefixes.formUnion(list) }
        var verdicts: [(IPNetwork, Verdict)] = []
        var claims: [IPNetwork] = []
        for prefix in prefixes where !kept.contains(where: { $0.contains(prefix) }) {
            var best: (length: Int, policy: Int)?
            for index in policies.indices where !exclusions[index].contains(where: { $0.contains(prefix) }) {
                let longest = destinations[index].filter { $0.contains(prefix) }.map(\.prefixLength).max()
                if let longest, longest > best?.length ?? -1 { best = (longest, index) }
            }
            if let best {
                verdicts.append((prefix, .claimed(best.policy)))
                claims.append(prefix)
            } else {
                verdicts.append((prefix, .thrown))
            }
        }
        // A throw is only needed where the table would otherwise have an answer.
        verdicts.removeAll { entry in
            entry.1 == .thrown && !claims.contains { $0.contains(entry.0) }
        }
        for network in kept where claims.contains(where: { $0.contains(network) }) {
            verdicts.append((network, .thrown))
        }
        return verdicts.sorted { $0.0 < $1.0 }
    }

    /// The networks that no other of them contains, sorted.
    static func outermost(_ networks: [IPNetwork]) -> [IPNetwork] {
        var result: [IPNetwork] = []
        // Sorted by address and then length, a network comes right after what contains it.
        for network in Set(networks).sorted() {
            if let last = result.last, last.contains(network) { continue }
            result.append(network)
        }
        return result
    }

    /// The IPv4 ranges that the verdicts claim, disjoint and not adjacent, in order.
    static func claimedRanges(_ verdicts: [(prefix: IPNetwork, verdict: Verdict)]) -> [ClosedRange<UInt32>] {
        // Sorted by address, then length: a later prefix lies inside an earlier one or behind it. Paint them in order.
        var segments: [(first: UInt64, last: UInt64, claimed: Bool)] = []
        for (prefix, verdict) in verdicts where prefix.family == .v4 {
            let first = UInt64(prefix.address.v4Value)
            let last = UInt64(prefix.lastV4)
            var claimed = false
            if case .claimed = verdict { claimed = true }
            if let index = segments.lastIndex(where: { $0.first <= first && $0.last >= last }) {
                let outer = segments[index]
                var parts: [(UInt64, UInt64, Bool)] = []
                if outer.first < first { parts.append((outer.first, first - 1, outer.claimed)) }
                parts.append((first, last, claimed))
                if outer.last > last { parts.append((last + 1, outer.last, outer.claimed)) }
                segments.replaceSubrange(index...index, with: parts.map { (first: $0.0, last: $0.1, claimed: $0.2) })
            } else {
                segments.append((first, last, claimed))
            }
        }
        return IPRanges.merge(
            segments.filter(\.claimed).map { UInt32($0.first)...UInt32($0.last) })
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

import Model

/// Whether packets can leave this node as a gateway at all: a gateway without a way out is none (its echoes are dropped).
///
/// "No way" is only said where it is certain. A destination has a way by the main table where a route contains it, or where a
/// route with a next hop lies inside it (a router may have many such, and no default). A route to the network that this node
/// itself is in does not count for the second: nodes have one to each other, whatever becomes of the default route.
enum WayOut {
    /// - Parameters:
    ///   - destinations: of each policy that has this way out; one that is reached is enough. None: not known.
    ///   - interface: where packets leave by a table of that interface's own; nil: by the main table.
    /// - Returns: why there is none; nil where there is one, or where it cannot be known.
    static func problem(
        to destinations: [[IPNetwork]], by interface: LocalFacts.Interface?, facts: LocalFacts
    ) -> String? {
        guard facts.isLive else { return nil }
        // Nearly always there is a default route, and nothing else has to be looked at.
        if let interface {
            if interface.hasDefaultRoute { return nil }
        } else {
            guard let ways = facts.ways, !ways.contains(LocalFacts.Way(.everythingV4, isForwarded: true)) else {
                return nil
            }
        }
        let wanted = Set(destinations.joined().filter { $0.family == .v4 }).sorted()
        guard let first = wanted.first, !wanted.contains(where: { isReached($0, by: interface, facts: facts) }) else {
            return nil
        }
        let what = wanted.count == 1 ? "\(first)" : "\(first) or any other destination"
        return interface.map { "no route to \(what) by \($0.name)" } ?? "no route to \(what) in the main table"
    }

    /// No network that nodes have to themselves is wider: what is, such as the halves of a VPN's default route, leads out.
    private static let widestOwn = 8

    private static func isReached(
        _ wanted: IPNetwork, by interface: LocalFacts.Interface?, facts: LocalFacts
    ) -> Bool {
        if let interface { return interface.addresses.contains { $0.contains(wanted) } }
        let own = facts.interfaces.flatMap(\.hostAddresses)
        return (facts.ways ?? []).contains { way in
            way.network.contains(wanted)
                || (way.isForwarded && wanted.contains(way.network)
                    && (way.network.prefixLength < widestOwn || !own.contains { way.network.contains($0) }))
        }
    }
}

/// Networks, each with a number, as a tree of their bits: whether one of many networks overlaps with another network is found
/// in as many steps as an address has bits, however many there are.
public struct NetworkTrie: Sendable {
    private struct Node {
        /// Places of the two halves; 0: there is none.
        var zero: Int32 = 0
        var one: Int32 = 0
        /// The lowest number of this very network.
        var own = Int.max
        /// The lowest number of this network and all inside it.
        var lowest = Int.max
    }
    /// The roots of both families come first.
    private var nodes = [Node(), Node()]

    public init() {}

    private static func bit(_ address: IPAddress, _ place: Int) -> Bool {
        let fromBelow = address.family.bits - 1 - place
        return fromBelow >= 64
            ? address.high >> UInt64(fromBelow - 64) & 1 == 1 : address.low >> UInt64(fromBelow) & 1 == 1
    }

    /// - Parameter number: not negative.
    public mutating func insert(_ network: IPNetwork, _ number: Int) {
        var place = network.family == .v4 ? 0 : 1
        nodes[place].lowest = min(nodes[place].lowest, number)
        for depth in 0..<network.prefixLength {
            let isOne = NetworkTrie.bit(network.address, depth)
            var next = Int(isOne ? nodes[place].one : nodes[place].zero)
            if next == 0 {
                next = nodes.count
                nodes.append(Node())
                if isOne { nodes[place].one = Int32(next) } else { nodes[place].zero = Int32(next) }
            }
            place = next
            nodes[place].lowest = min(nodes[place].lowest, number)
        }
        nodes[place].own = min(nodes[place].own, number)
    }

    /// The lowest number of a network that holds this one or lies inside it; nil: there is none.
    public func first(overlapping network: IPNetwork) -> Int? {
        var place = network.family == .v4 ? 0 : 1
        var found = Int.max
        for depth in 0..<network.prefixLength {
            found = min(found, nodes[place].own)
            let next = NetworkTrie.bit(network.address, depth) ? nodes[place].one : nodes[place].zero
            if next == 0 { return found == .max ? nil : found }
            place = Int(next)
        }
        found = min(found, nodes[place].lowest)
        return found == .max ? nil : found
    }
}

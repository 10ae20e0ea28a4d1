/// Waiting times that grow, with a ceiling, and are never the same on two nodes.
public struct Backoff: Sendable {
    /// Seconds.
    public private(set) var next: Double
    private let first: Double
    private let ceiling: Double

    public init(first: Double = 0.2, ceiling: Double = 30) {
        self.first = first
        self.ceiling = ceiling
        next = first
    }

    public mutating func reset() { next = first }

    /// How long to wait now: half to all of the time whose turn it is, and never less than the server asks for.
    public mutating func wait(atLeast asked: Double? = nil) -> Duration {
        // A server may send any text as a number: NaN too.
        let asked = asked.map { $0 > 0 ? min($0, 300) : 0 } ?? 0
        let seconds = max(next * Double.random(in: 0.5...1), asked)
        next = min(next * 2, ceiling)
        return .milliseconds(Int64(seconds * 1000))
    }
}

/// A clock whose time passes faster than the world's by a factor: minutes of waiting take seconds.
public struct ScaledClock: Clock {
    public struct Instant: InstantProtocol {
        let offset: Duration
        public func advanced(by duration: Duration) -> Instant { Instant(offset: offset + duration) }
        public func duration(to other: Instant) -> Duration { other.offset - offset }
        public static func < (a: Instant, b: Instant) -> Bool { a.offset < b.offset }
    }
    private let start = ContinuousClock.now
    public let factor: Double

    public init(factor: Double) { self.factor = factor }
    public var now: Instant { Instant(offset: (ContinuousClock.now - start) * factor) }
    public var minimumResolution: Duration { .milliseconds(1) }
    public func sleep(until deadline: Instant, tolerance: Duration?) async throws {
        try await Task.sleep(for: now.duration(to: deadline) / factor)
    }
}

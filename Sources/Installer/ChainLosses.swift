/// How long the installer tolerates a program that takes Culvert out of the chain: a number of times, with growing
/// pauses. Pure: times are seconds of any clock that does not go back.
public struct ChainLosses: Equatable, Sendable {
    /// The pause after the second loss; each further one doubles it.
    public static let firstPause = 0.1
    public static let longestPause = 30.0
    /// A chain that stood so long was not fought over: the count begins anew.
    public static let calm = 60.0

    /// The number of consecutive losses that are tolerated.
    public let most: Int
    public private(set) var count = 0
    private var chainedSince: Double?
    private var notBefore = -Double.infinity

    /// With 10, a program that never stops is tolerated for almost a minute.
    public init(most: Int = 10) { self.most = most }

    public var isExhausted: Bool { count > most }
    /// Seconds until the next change may be made.
    public func pause(at now: Double) -> Double { max(0, notBefore - now) }

    /// Seconds that the chain has been right without a break.
    public func standing(at now: Double) -> Double { chainedSince.map { now - $0 } ?? 0 }

    /// The chain was seen to be right.
    public mutating func seenChained(at now: Double) { if chainedSince == nil { chainedSince = now } }

    /// The chain was seen without Culvert after it had been right: the first one is answered at once, as Cilium rewrites
    /// its file once at every start.
    public mutating func seenLost(at now: Double) {
        guard let since = chainedSince else { return }
        if now - since >= ChainLosses.calm { count = 0 }
        chainedSince = nil
        count += 1
        guard count > 1 else { return }
        var pause = ChainLosses.firstPause
        for _ in 2..<max(count, 2) { pause = min(pause * 2, ChainLosses.longestPause) }
        notBefore = now + pause
    }
}

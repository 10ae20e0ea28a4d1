import Model

/// Whether a Kilo runs on this node too. Both publish the same annotations of one Node: each would overwrite the other's key,
/// and whoever goes by the key that is not in force is cut off.
///
/// Kilo writes its key and `last-seen` together, when it starts and every 30 seconds, by this node's own clock. So a key that is
/// not ours is Kilo's, and its age says whether Kilo is still there.
struct KiloOnThisNode {
    enum Verdict: Equatable {
        /// There is none, or it has ended.
        case absent
        /// It was there before this helper started, and its next sign of life is not due yet. Seconds since the last one.
        case undecided(age: Int64)
        /// It has written since this helper started.
        case running
    }

    /// Seconds without a word after which a Kilo that was there before is taken for gone: a check-in period and some.
    static let patience: Int64 = 35
    /// The same of one that has written since, which may be held up.
    static let lifetime: Int64 = 65

    /// When this helper started, seconds since 1970.
    let start: Int64
    /// The last sign of life that it has given since; 0: none.
    private var lastSign: Int64 = 0

    init(start: Int64) { self.start = start }

    /// Takes what the API says of the own Node. A Kilo that has been seen at work is there until it is silent for a while, even
    /// where our key stands: it will not stand for long.
    ///
    /// - Parameters:
    ///   - key: of the own Node.
    ///   - lastSeen: the same.
    ///   - own: this helper's key.
    ///   - written: the `last-seen` that this helper says now; nil: it says none.
    ///   - now: seconds since 1970.
    mutating func judge(
        key: WireGuardKey?, lastSeen: Int64?, own: WireGuardKey, written: Int64?, now: Int64
    ) -> Verdict {
        // (A time to come is nobody's sign of life.)
        let sign = key != nil && key != own && lastSeen != written ? lastSeen.flatMap { $0 <= now ? $0 : nil } : nil
        if let sign, sign > start { lastSign = max(lastSign, sign) }
        if lastSign > 0 && now - lastSign < Self.lifetime { return .running }
        guard let sign, sign <= start else { return .absent }
        let (age, isTooMuch) = now.subtractingReportingOverflow(sign)
        return !isTooMuch && age < Self.patience ? .undecided(age: age) : .absent
    }
}

import Model

/// Detects whether a Kilo runs on this node too. Both programs publish the same annotations of one Node. Each would
/// overwrite the key of the other, and nodes that use a key that is not in force are cut off.
///
/// Kilo writes its key and `last-seen` together, when it starts and every 30 seconds, by this node's own clock. So a
/// foreign key is Kilo's, and its age shows whether Kilo is still running.
struct KiloOnThisNode {
    enum Verdict: Equatable {
        /// There is none, or it has ended.
        case absent
        /// It was there before this helper started, and its next sign of life is not due yet. Seconds since the last one.
        case undecided(age: Int64)
        /// It has written since this helper started.
        case running
    }

    /// A Kilo that was seen before counts as gone after this many seconds without a sign of life: a check-in period and
    /// some more.
    static let patience: Int64 = 35
    /// The same of one that has written since, which may be held up.
    static let lifetime: Int64 = 65

    /// When this helper started, seconds since 1970.
    let start: Int64
    /// The last sign of life that it has given since; 0: none.
    private var lastSign: Int64 = 0
    /// What it came to last; nil: it was never judged.
    private var verdict: Verdict?

    init(start: Int64) { self.start = start }

    /// Takes what the API says of the own Node. A Kilo that has been seen at work is there until it is silent for a while, even
    /// where our key stands: it will not stand for long.
    ///
    /// - Parameters:
    ///   - key: of the own Node.
    ///   - lastSeen: the same.
    ///   - own: this helper's key.
    ///   - written: the `last-seen` that this helper says now; nil: it says none.
    ///   - heardSince: since when signs of life reach this helper without a break (`SignsOfLife`). Silence before then is
    ///     nobody's; while nothing is heard the verdict stays.
    ///   - now: seconds since 1970.
    mutating func judge(
        key: WireGuardKey?, lastSeen: Int64?, own: WireGuardKey, written: Int64?, heardSince: Int64?, now: Int64
    ) -> Verdict {
        let verdict = judged(
            key: key, lastSeen: lastSeen, own: own, written: written, heardSince: heardSince, now: now)
        self.verdict = verdict
        return verdict
    }

    private mutating func judged(
        key: WireGuardKey?, lastSeen: Int64?, own: WireGuardKey, written: Int64?, heardSince: Int64?, now: Int64
    ) -> Verdict {
        let isAnothers = key != nil && key != own
        // (A time in the future is not a sign of life.)
        let sign = isAnothers && lastSeen != written ? lastSeen.flatMap { $0 <= now ? $0 : nil } : nil
        if let sign, sign > start { lastSign = max(lastSign, sign) }
        guard let heardSince else {
            // The inventory of a helper that starts without the API server does not say when Kilo was last there.
            return verdict ?? (isAnothers ? .undecided(age: 0) : .absent)
        }
        // A Kilo that has ended does not come back by a break.
        let earliest = verdict == .absent ? 0 : heardSince
        if lastSign > 0 && now - max(lastSign, earliest) < Self.lifetime { return .running }
        guard isAnothers, let last = sign ?? (earliest > 0 ? earliest : nil), last <= start || sign == nil else {
            return .absent
        }
        let (age, isTooMuch) = now.subtractingReportingOverflow(max(last, earliest))
        return !isTooMuch && age < Self.patience ? .undecided(age: age) : .absent
    }
}

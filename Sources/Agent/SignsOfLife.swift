/// Since when what the nodes say of themselves reaches this helper without a break. Silence counts only from then on: while the
/// API server does not answer, nobody can check in; and when it is back, some nodes check in half a minute after others.
struct SignsOfLife {
    /// Seconds since 1970; 0: there was no break since this helper started; nil: nothing reaches it now.
    private(set) var since: Int64?
    private var hadBreak = false

    /// - Parameters:
    ///   - isFollowed: the Nodes are followed at this moment.
    ///   - now: seconds since 1970.
    mutating func note(isFollowed: Bool, now: Int64) {
        if !isFollowed {
            since = nil
            hadBreak = true
        } else if since == nil {
            since = hadBreak ? now : 0
        }
    }

    /// Signs of life have come for so long that a node whose own did not come is silent.
    ///
    /// - Parameter seconds: how often nodes say that they are there, at the least.
    func have(lasted seconds: Int64, at now: Int64) -> Bool { since.map { now - $0 >= seconds } ?? false }
}

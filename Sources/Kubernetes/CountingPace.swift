/// How often the node that reports a policy's number of selected pods counts them.
///
/// Nothing notifies it of pods on other nodes: a watch of all pods would receive every change of every pod. So it
/// counts at intervals, which are long enough to cost the API server next to nothing.
enum CountingPace {
    /// The shortest interval.
    static let shortest = Duration.seconds(15)
    static let longest = Duration.seconds(600)
    /// Of the time of one of the API server's processors that one node's counting takes: a five-hundredth at most.
    private static let share = 500
    /// Every helper is sent every status that has another number: so many a second at most.
    private static let eventsPerSecond = 1000

    /// - Parameters:
    ///   - policies: whose pods this node counts.
    ///   - nodes: of the cluster, each with a watch of the policies.
    ///   - took: how long the last round of counting took, waiting for answers included.
    static func interval(policies: Int, nodes: Int, took: Duration) -> Duration {
        let telling = Duration.seconds(policies * nodes / eventsPerSecond)
        return min(max(shortest, took * share, telling), longest)
    }
}

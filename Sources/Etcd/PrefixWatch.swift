import ClusterTransport

/// Reads everything with a prefix and follows it from there on, at one member of the etcd after the other.
struct PrefixWatch: Sendable {
    enum Change: Sendable {
        /// The whole content.
        case replaced([EtcdClient.Entry])
        case changed([EtcdClient.Event])
        /// Why the etcd cannot be followed; empty: it can.
        case problem(String)
    }

    let client: EtcdClient
    let prefix: String
    /// The longest wait after a failure, seconds.
    let ceiling: Double

    /// Until the task is cancelled.
    ///
    /// - Parameter first: is awaited before everything is read, at the same member.
    func run(
        first: @Sendable (EtcdClient, String) async throws -> Void = { _, _ in },
        _ report: @Sendable (Change) async -> Void
    ) async {
        var backoff = Backoff(ceiling: ceiling)
        var turn = 0
        var next: Int64?
        var store = ""
        while !Task.isCancelled {
            let endpoint = client.endpoints[turn % client.endpoints.count]
            var hasBegun = false
            let start = ContinuousClock.now
            do {
                if next == nil {
                    try await first(client, endpoint)
                    let read = try await client.range(endpoint, prefix: prefix)
                    if Task.isCancelled { return }
                    await report(.replaced(read.entries))
                    next = read.revision &+ 1
                    store = read.cluster
                }
                var reached = next ?? 1
                defer { next = reached }
                try await client.watch(endpoint, prefix: prefix, from: reached, cluster: store) { events, revision in
                    if !hasBegun {
                        hasBegun = true
                        await report(.problem(""))
                    }
                    if Task.isCancelled { return }
                    if !events.isEmpty { await report(.changed(events)) }
                    reached = max(reached, revision &+ 1)
                }
                // A watch that ends by itself goes on where it was, but not in a hurry.
                try await Task.sleep(for: .milliseconds(500))
                if hasBegun { backoff.reset() }
            } catch {
                // It worked for a while. A member that breaks every watch off at once is one in trouble.
                if hasBegun, ContinuousClock.now - start > .seconds(10) { backoff.reset() }
                if Task.isCancelled { return }
                if (error as? EtcdClient.Failure)?.isGone == true { next = nil }
                // The next member of the cluster may be there.
                turn += 1
                await report(.problem("\(error)"))
                let isLastOfRound = turn % client.endpoints.count == 0
                try? await Task.sleep(for: isLastOfRound ? backoff.wait() : .milliseconds(50))
            }
        }
    }
}

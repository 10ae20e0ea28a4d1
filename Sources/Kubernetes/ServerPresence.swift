import Synchronization

/// Whether the API server answers, as far as the requests of this client tell. Who waits to try again after a failure is woken
/// as soon as any request has been answered.
final class ServerPresence: Sendable {
    private struct State {
        var isAway = false
        var waiting: [UInt64: AsyncStream<Void>.Continuation] = [:]
        var next: UInt64 = 0
    }
    private let state = Mutex(State())

    /// The server has answered, whatever it said.
    func noteAnswer() {
        let woken = state.withLock { state -> [AsyncStream<Void>.Continuation] in
            guard state.isAway else { return [] }
            state.isAway = false
            return Array(state.waiting.values)
        }
        for continuation in woken { continuation.finish() }
    }

    /// A request did not get through to the server.
    func noteFailure() { state.withLock { $0.isAway = true } }

    /// Waits for so long, or until the server answers after it was away; and then a little, so that not everybody asks in the
    /// same moment.
    func wait(_ duration: Duration, _ clock: any Clock<Duration>) async {
        let (answers, continuation) = AsyncStream.makeStream(of: Void.self)
        let number = state.withLock { state in
            state.next += 1
            state.waiting[state.next] = continuation
            return state.next
        }
        let isOver = await withTaskGroup(of: Bool.self) { group in
            group.addTask {
                try? await clock.sleep(for: duration)
                return true
            }
            group.addTask {
                for await _ in answers {}
                return false
            }
            defer { group.cancelAll() }
            return await group.next() ?? true
        }
        state.withLock { $0.waiting[number] = nil }
        if !isOver { try? await clock.sleep(for: .milliseconds(Int64.random(in: 0...300))) }
    }
}

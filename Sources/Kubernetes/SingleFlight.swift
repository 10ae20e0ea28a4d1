/// Work that many ask for at the same time and that is done once. Whoever is cancelled waits no longer; when nobody waits any
/// more, the work is cancelled.
actor SingleFlight<Value: Sendable> {
    private var waiting: [Int: CheckedContinuation<Value, any Error>] = [:]
    private var lastWaiter = 0
    private var work: Task<Void, Never>?
    /// Number of the work that is under way. Results of earlier work are discarded.
    private var generation = 0

    /// What the work comes to that is under way, or that begins now.
    func value(_ body: @escaping @Sendable () async throws -> Value) async throws -> Value {
        lastWaiter += 1
        let waiter = lastWaiter
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                if Task.isCancelled { return continuation.resume(throwing: CancellationError()) }
                waiting[waiter] = continuation
                if work == nil { begin(body) }
            }
        } onCancel: {
            Task { await self.leave(waiter) }
        }
    }

    private func begin(_ body: @escaping @Sendable () async throws -> Value) {
        generation += 1
        let generation = generation
        work = Task {
            let result: Result<Value, any Error>
            do { result = .success(try await body()) } catch { result = .failure(error) }
            finish(generation, result)
        }
    }

    private func finish(_ finished: Int, _ result: Result<Value, any Error>) {
        guard finished == generation, work != nil else { return }
        work = nil
        let all = waiting.values
        waiting = [:]
        for continuation in all { continuation.resume(with: result) }
    }

    private func leave(_ waiter: Int) {
        guard let continuation = waiting.removeValue(forKey: waiter) else { return }
        continuation.resume(throwing: CancellationError())
        if waiting.isEmpty {
            work?.cancel()
            work = nil
        }
    }
}

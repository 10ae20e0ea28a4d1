import Dispatch
import Netlink
import Synchronization

/// A dedicated thread that carries out an actor's work, one piece at a time. So waiting for the kernel or a disk does
/// not block Swift's cooperative threads.
final class KernelThread: SerialExecutor, Sendable {
    private let jobs = Mutex<[UnownedJob]>([])
    private let available = DispatchSemaphore(value: 0)

    /// - Throws: where the system gives no thread.
    init(_ purpose: String) throws {
        try BlockingThread.start(purpose, stackKiB: 8192) { [self] in run() }
    }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        jobs.withLock { $0.append(job) }
        available.signal()
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

    private func run() {
        var batch: [UnownedJob] = []
        while true {
            available.wait()
            if batch.isEmpty {
                jobs.withLock { swap(&$0, &batch) }
                batch.reverse()
            }
            if let job = batch.popLast() { job.runSynchronously(on: asUnownedSerialExecutor()) }
        }
    }
}

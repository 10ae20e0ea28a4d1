import Dispatch
import Glibc
import Netlink
import Synchronization

/// A dedicated thread that carries out an actor's work, one piece at a time. So waiting for the kernel or a disk does
/// not block Swift's cooperative threads.
final class KernelThread: SerialExecutor, Sendable {
    private enum Work {
        case job(UnownedJob)
        case call(@Sendable () -> Void)
    }
    private let work = Mutex<[Work]>([])
    private let available = DispatchSemaphore(value: 0)
    /// `pthread_self()` of the thread; 0 before it runs.
    private let thread = Atomic<UInt>(0)

    /// - Throws: where the system gives no thread.
    init(_ purpose: String) throws {
        try BlockingThread.start(purpose, stackKiB: 8192) { [self] in run() }
    }

    func enqueue(_ job: consuming ExecutorJob) { enqueue(.job(UnownedJob(job))) }

    /// Calls something on this thread, after what is there to be done already. For other threads, which would otherwise begin
    /// a task on one of the cooperative pool only to come here.
    func enqueue(_ call: @escaping @Sendable () -> Void) { enqueue(.call(call)) }

    private func enqueue(_ new: Work) {
        work.withLock { $0.append(new) }
        available.signal()
    }

    /// Asked where something that is called here says that it is the actor's (`assumeIsolated`).
    func checkIsolated() { precondition(thread.load(ordering: .relaxed) == UInt(pthread_self())) }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

    private func run() {
        thread.store(UInt(pthread_self()), ordering: .relaxed)
        var batch: [Work] = []
        while true {
            available.wait()
            if batch.isEmpty {
                work.withLock { swap(&$0, &batch) }
                batch.reverse()
            }
            switch batch.popLast() {
            case .job(let job): job.runSynchronously(on: asUnownedSerialExecutor())
            case .call(let call): call()
            case nil: break
            }
        }
    }
}

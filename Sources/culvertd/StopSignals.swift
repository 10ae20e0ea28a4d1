import CLinux
import FoundationEssentials
import Synchronization

/// SIGTERM and SIGINT. A program that is the first process of a container dies of no signal that it has no handler for, so
/// each command says what they do before it does anything that may take long.
enum StopSignals {
    private static let numbers = [SIGTERM, SIGINT]
    private static let flag = Atomic<Bool>(false)
    static var isSet: Bool { flag.load(ordering: .sequentiallyConsistent) }

    /// From now on they end the wait that is under way, and set the flag.
    static func listen() {
        for number in numbers {
            signal(number) { _ in StopSignals.flag.store(true, ordering: .sequentiallyConsistent) }
        }
        unblock()
    }

    /// From now on they end this program at once, with exit code 0. For a start: what a helper has done by then is what one
    /// leaves that is killed, and the next one adopts it. A `ServiceGroup` that runs takes the signals over.
    static func endTheStart() {
        for number in numbers { signal(number) { _ in _exit(0) } }
        unblock()
    }

    /// Whoever started this program may have blocked them, which children inherit.
    private static func unblock() {
        var set = sigset_t()
        sigemptyset(&set)
        for number in numbers { sigaddset(&set, number) }
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
    }

    /// True as soon as a signal has come. poll(2) ends at a signal; a signal that comes just before is seen in time too,
    /// because no slice of the wait is longer than half a second.
    static func wait(milliseconds: Int32) -> Bool {
        var rest = milliseconds
        while rest > 0 && !isSet {
            let slice = min(rest, 500)
            _ = poll(nil, 0, slice)
            rest -= slice
        }
        return isSet
    }
}

import CLinux
import Model
import Netlink
import Synchronization

/// Looks up the DNS names of endpoints with the system's resolver. A name whose server does not answer delays no other
/// name and no other work.
final class EndpointResolver: Sendable {
    /// How many names are asked for at the same time, each by a thread: a server that does not answer keeps one for half a
    /// minute.
    static let most = 8
    /// How many of them may be names that were not answered last time: the rest is for the others.
    static let mostOfFailed = 6

    fileprivate struct State {
        var waiting: [String] = []
        var asked: Set<String> = []
        /// Those that were not answered last.
        var failed: Set<String> = []
        var answers: [String: IPAddress] = [:]
    }
    private let state = Mutex(State())
    private let resolve: @Sendable (String) -> IPAddress?
    /// Signals that `takeAnswers` has results.
    let signals: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation

    /// - Parameter resolve: asks for one name, and blocks; nil: there is no address.
    init(resolve: @escaping @Sendable (String) -> IPAddress? = EndpointResolver.address) {
        self.resolve = resolve
        (signals, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    /// Begins to look names up, and waits for nothing. A name that is being looked up is not looked up a second time.
    func ask(_ names: Set<String>) {
        let threads = state.withLock { state in
            let new = names.subtracting(state.asked).subtracting(state.waiting)
            state.waiting += new.sorted()
            state.waiting =
                state.waiting.filter { !state.failed.contains($0) } + state.waiting.filter(state.failed.contains)
            let count = min(EndpointResolver.most - state.asked.count, state.waiting.count)
            return (0..<max(0, count)).compactMap { _ in state.next() }
        }
        for name in threads { begin(name) }
    }

    /// One address of each name that was answered since: the first IPv4 address, else the first.
    func takeAnswers() -> [String: IPAddress] {
        state.withLock { state in
            defer { state.answers = [:] }
            return state.answers
        }
    }

    private func begin(_ name: String) {
        do {
            try BlockingThread.start("names of endpoints") { [self] in
                var next: String? = name
                while let name = next {
                    let address = resolve(name)
                    next = state.withLock { state in
                        state.asked.remove(name)
                        if address == nil { state.failed.insert(name) } else { state.failed.remove(name) }
                        state.answers[name] = address ?? state.answers[name]
                        return state.next()
                    }
                    if address != nil { signal.yield() }
                }
            }
        } catch {
            // The system gives no thread: the name is asked for again in the next round.
            state.withLock { _ = $0.asked.remove(name) }
        }
    }

    /// Asks the system's resolver.
    @Sendable private static func address(of name: String) -> IPAddress? {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_DGRAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(name, nil, &hints, &list) == 0 else { return nil }
        defer { freeaddrinfo(list) }
        var first: IPAddress?
        var entry = list
        while let info = entry?.pointee {
            let raw = UnsafeRawPointer(info.ai_addr)
            // RFC 3493: behind family and port, and the flow of IPv6.
            let address =
                info.ai_family == AF_INET
                ? raw.flatMap { IPAddress(bytes: Array(UnsafeRawBufferPointer(start: $0 + 4, count: 4))) }
                : info.ai_family == AF_INET6
                    ? raw.flatMap { IPAddress(bytes: Array(UnsafeRawBufferPointer(start: $0 + 8, count: 16))) } : nil
            if let address {
                if address.family == .v4 { return address }
                first = first ?? address
            }
            entry = info.ai_next
        }
        return first
    }
}

extension EndpointResolver.State {
    /// The name that a thread is to ask for now.
    fileprivate mutating func next() -> String? {
        guard let name = waiting.first else { return nil }
        if failed.contains(name), asked.intersection(failed).count >= EndpointResolver.mostOfFailed { return nil }
        waiting.removeFirst()
        asked.insert(name)
        return name
    }
}

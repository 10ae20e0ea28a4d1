import AsyncHTTPClient
import Synchronization

/// An HTTP client that is made anew when the certificates it was made of have been renewed on disk. Requests that are
/// under way keep the client that they began with.
public final class RenewableClient: Sendable {
    /// One client, which ends with the last request that holds it.
    public final class Connection: Sendable {
        public let http: HTTPClient
        init(_ http: HTTPClient) { self.http = http }
        deinit {
            let http = http
            Task { try? await http.shutdown() }
        }
    }

    private struct State {
        var security: TransportSecurity
        var connection: Connection
        var lookedAt = ContinuousClock.now
        var problem = ""
    }
    private let state: Mutex<State>
    private let make: @Sendable (TransportSecurity) throws -> HTTPClient
    private let reload: @Sendable () throws -> TransportSecurity
    private let interval: Duration

    /// - Parameters:
    ///   - adjust: what else the client is to be.
    ///   - interval: the files are looked at when a request begins so long after the last look.
    ///   - reload: reads the files again.
    /// - Throws: where something is no PEM.
    public init(
        _ security: TransportSecurity, connectSeconds: Int64, idleSeconds: Int64, interval: Duration = .seconds(60),
        adjust: @escaping @Sendable (inout HTTPClient.Configuration) -> Void = { _ in },
        reload: @escaping @Sendable () throws -> TransportSecurity
    ) throws {
        make = { security in
            var configuration = try security.configuration(connectSeconds: connectSeconds, idleSeconds: idleSeconds)
            adjust(&configuration)
            return HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
        }
        self.reload = reload
        self.interval = interval
        state = Mutex(State(security: security, connection: Connection(try make(security))))
    }

    /// For one request, which must keep it until its answer is read.
    public func connection() -> Connection {
        state.withLock { state in
            guard ContinuousClock.now - state.lookedAt > interval else { return state.connection }
            state.lookedAt = .now
            do {
                let fresh = try reload()
                if fresh != state.security {
                    state.connection = Connection(try make(fresh))
                    state.security = fresh
                }
                state.problem = ""
            } catch {
                // A file that is just being replaced, or a mistake: what worked goes on.
                state.problem = "\(error)"
            }
            return state.connection
        }
    }

    /// Ends every request that is under way. The next one has a new connection, of which nothing bad is known.
    public func replace() async {
        let old = state.withLock { state -> Connection? in
            guard let fresh = try? make(state.security) else { return nil }
            let old = state.connection
            state.connection = Connection(fresh)
            return old
        }
        try? await old?.http.shutdown()
    }

    /// Whether it is the one that the next request has.
    public func isCurrent(_ connection: Connection) -> Bool { state.withLock { $0.connection === connection } }

    /// Why the last look at the files was in vain; empty where it was not.
    public var problem: String { state.withLock { $0.problem } }

    /// Ends what is under way.
    public func shutdown() async { try? await state.withLock { $0.connection }.http.shutdown() }
}

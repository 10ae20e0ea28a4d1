import CLinux
import CNI
import Dispatch
import HelperProtocol
import Logging
import Netlink
import Synchronization

/// `cni.sock`: one thread accepts, reads each request as it comes, and hands it to the agent, whose thread answers. So a call
/// passes from thread to thread as seldom as can be. An ADD connects before it has its request. A plugin that sends nothing for
/// long, or does not take its answer at once, gets a thread of its own. (swift-nio cannot receive file descriptors.) What
/// arrives is not believed: see `receive`.
public final class PluginServer: Sendable {
    /// Plugins that are served at once; more wait in the backlog.
    static let maximumConnections = 512
    /// ADDs that are served at once: they may have to wait for an API server, and must not keep DEL, STATUS and the rest from
    /// being served. More than any node has pods.
    static let maximumADDs = maximumConnections - 64
    /// How long a connection may take to send its request, milliseconds.
    static let patience = 2000
    /// How long the accepting thread looks after a connection that has not sent anything yet, milliseconds.
    static let promptness: Int64 = 50

    private let listener: Int32
    private let path: String
    private let agent: NodeAgent
    private let logger: Logger
    private let places = DispatchSemaphore(value: maximumConnections)
    private let placesOfADDs = DispatchSemaphore(value: maximumADDs)
    private let isStopping = Atomic<Bool>(false)
    private let active = Atomic<Int>(0)
    private let calls = Atomic<UInt64>(0)
    /// Uid that plugins must have: 0, as runtimes have.
    private let plugInUID: Int64

    /// - Throws: where `path` cannot be listened on, with the remedy.
    public init(path: String, agent: NodeAgent, logger: Logger, plugInUID: Int64 = 0) throws {
        listener = culvert_seqpacket_listen(path, 256, 0o600)
        guard listener >= 0 else {
            let reason =
                listener == -EEXIST
                ? "a file that is not a socket exists there; remove it" : String(cString: strerror(-listener))
            throw AttachmentStore.Failure(description: "\(path) cannot be listened on: \(reason)")
        }
        self.path = path
        self.agent = agent
        self.logger = logger
        self.plugInUID = plugInUID
    }

    /// Starts accepting.
    public func start() {
        do { try BlockingThread.start("plugins") { self.acceptLoop() } } catch {
            logger.critical("\(path) is not served: \(error)")
        }
    }

    /// Stops accepting and waits for the calls that are being served.
    public func stop() {
        isStopping.store(true, ordering: .sequentiallyConsistent)
        shutdown(listener, Int32(SHUT_RDWR))
        for _ in 0..<500 where active.load(ordering: .sequentiallyConsistent) > 0 { usleep(10_000) }
    }

    private func acceptLoop() {
        let buffer = RequestBuffer()
        // Connected, with nothing sent so far, the first one first.
        var silent: [Call] = []
        while !isStopping.load(ordering: .sequentiallyConsistent) {
            if let first = silent.first {
                let hasPlace = places.wait(timeout: .now()) == .success
                var entries = silent.map { pollfd(fd: $0.connection, events: Int16(POLLIN), revents: 0) }
                if hasPlace { entries.append(pollfd(fd: listener, events: Int16(POLLIN), revents: 0)) }
                let patience = first.accepted + PluginServer.promptness - culvert_monotonic_milliseconds()
                _ = poll(&entries, nfds_t(entries.count), Int32(max(0, patience)))
                let late = culvert_monotonic_milliseconds() - PluginServer.promptness
                var rest: [Call] = []
                for (call, entry) in zip(silent, entries) {
                    if entry.revents != 0 {
                        call.begin(buffer)
                    } else if call.accepted <= late {
                        call.onThread { call.begin(RequestBuffer()) }
                    } else {
                        rest.append(call)
                    }
                }
                silent = rest
                guard hasPlace else { continue }
                guard entries[entries.count - 1].revents != 0 else {
                    places.signal()
                    continue
                }
            } else {
                places.wait()
            }
            guard let call = accept() else { continue }
            if call.hasSent { call.begin(buffer) } else { silent.append(call) }
        }
        for call in silent { call.onThread { call.begin(RequestBuffer()) } }
        close(listener)
    }

    /// Waits for the next plugin, with a place for it that is taken already.
    private func accept() -> Call? {
        let connection = culvert_accept(listener)
        guard connection >= 0 else {
            places.signal()
            if connection == -EMFILE || connection == -ENFILE,
                !isStopping.load(ordering: .sequentiallyConsistent)
            {
                logger.error("no file descriptor is left for another plugin call")
                usleep(50_000)
            }
            return nil
        }
        active.add(1, ordering: .sequentiallyConsistent)
        return Call(server: self, connection: connection)
    }

    /// Room for one request and the byte that makes it too long.
    private final class RequestBuffer {
        var bytes = [UInt8](repeating: 0, count: HelperRequest.maximumSize + 1)
    }

    private final class Call: Sendable {
        let server: PluginServer
        let connection: Int32
        /// When, on `culvert_monotonic_milliseconds`.
        let accepted = culvert_monotonic_milliseconds()
        /// Tells this call from all others.
        let number: UInt64

        init(server: PluginServer, connection: Int32) {
            self.server = server
            self.connection = connection
            number = server.calls.add(1, ordering: .relaxed).newValue
        }

        /// Whether a request is there to be read, or the connection's end.
        var hasSent: Bool {
            var entry = pollfd(fd: connection, events: Int16(POLLIN), revents: 0)
            return poll(&entry, 1, 0) > 0
        }

        /// Goes on with this call on a thread of its own.
        func onThread(_ body: @escaping @Sendable () -> Void) {
            do { try BlockingThread.start("a plugin", body) } catch {
                server.logger.error("a plugin call cannot be served: \(error)")
                end()
            }
        }

        private static let noRequest = "the connection was closed without a request"

        private func end() {
            close(connection)
            server.places.signal()
            server.active.subtract(1, ordering: .sequentiallyConsistent)
        }

        /// Reads the request, and has the agent begin with it.
        func begin(_ buffer: RequestBuffer) {
            do throws(CNIError) {
                let (request, descriptor) = try receive(buffer)
                if request.command == .add, server.placesOfADDs.wait(timeout: .now()) != .success {
                    if descriptor >= 0 { close(descriptor) }
                    throw CNIError(
                        .tryAgainLater,
                        "culvertd already serves \(PluginServer.maximumADDs) ADDs, which is the maximum",
                        details: "the API server may be slow; see culvertctl status")
                }
                server.agent.serve(
                    request, descriptor: descriptor, call: number, isAwaited: { !self.hasHungUp },
                    answer: { self.answer($0, to: request) })
            } catch {
                // A plugin that connects and finds that its configuration is wrong has told its runtime.
                server.logger.log(
                    level: error.message == Call.noRequest ? .debug : .warning, "refused a call on \(server.path)",
                    metadata: ["error": "\(error.message)"])
                send(HelperResponse.failed(error).messages[...]) { _ in self.end() }
            }
        }

        /// On the agent's thread.
        private func answer(_ response: HelperResponse, to request: HelperRequest) {
            send(response.messages[...]) { [self] isTaken in
                guard request.command == .add else { return end() }
                server.placesOfADDs.signal()
                guard !isTaken, case .done = response else { return end() }
                server.agent.abort(request, call: number) { self.end() }
            }
        }

        /// Peer's uid first, then one bounded message within a bounded time, with at most one descriptor, which must
        /// be a NETLINK_ROUTE socket of another network namespace.
        private func receive(_ buffer: RequestBuffer) throws(CNIError) -> (HelperRequest, Int32) {
            let uid = culvert_peer_uid(connection)
            guard uid == server.plugInUID || uid == Int64(geteuid()) && server.plugInUID != 0 else {
                throw CNIError(.requestRefused, "the peer's uid is \(uid); only root may call")
            }
            _ = culvert_receive_timeout(connection, PluginServer.patience)
            _ = culvert_send_timeout(connection, PluginServer.patience)
            var descriptor: Int32 = -1
            let count = culvert_receive_message(connection, &buffer.bytes, buffer.bytes.count, &descriptor)
            if count <= 0 {
                switch Int32(-count) {
                case 0:
                    if descriptor >= 0 { close(descriptor) }
                    throw CNIError(.requestRefused, Call.noRequest)
                case EAGAIN: throw CNIError(.requestRefused, "no request within \(PluginServer.patience) ms")
                case EMSGSIZE:
                    throw CNIError(.requestRefused, "the request has more than \(HelperRequest.maximumSize) bytes")
                case E2BIG: throw CNIError(.requestRefused, "the request came with more than one descriptor")
                default:
                    throw CNIError(.requestRefused, "the request: \(String(cString: strerror(Int32(-count))))")
                }
            }
            var accepted = false
            defer { if !accepted && descriptor >= 0 { close(descriptor) } }
            guard count <= HelperRequest.maximumSize else {
                throw CNIError(.requestRefused, "the request has more than \(HelperRequest.maximumSize) bytes")
            }
            let request = try HelperRequest(message: Array(buffer.bytes[0..<count]))
            if descriptor >= 0 {
                guard request.command == .add || request.command == .check else {
                    throw CNIError(.requestRefused, "\(request.command.rawValue) came with a descriptor")
                }
                let verdict = culvert_check_pod_socket(descriptor)
                guard verdict == 0 else {
                    let why =
                        verdict == -EXDEV
                        ? "is of the helper's own network namespace" : "is not a NETLINK_ROUTE socket"
                    throw CNIError(.requestRefused, "the descriptor \(why)")
                }
            }
            accepted = true
            return (request, descriptor)
        }

        /// The plugin has closed its end, so nobody takes the answer.
        private var hasHungUp: Bool {
            var entry = pollfd(fd: connection, events: Int16(POLLIN), revents: 0)
            return poll(&entry, 1, 0) > 0 && entry.revents & Int16(POLLHUP | POLLERR) != 0
        }

        /// Sends without waiting where the plugin takes it at once, which is nearly always; otherwise on a thread of its own.
        ///
        /// - Parameter done: whether all of it was taken; called once, now or later.
        private func send(_ messages: ArraySlice<[UInt8]>, done: @escaping @Sendable (Bool) -> Void) {
            if hasHungUp { return done(false) }
            var rest = messages
            while let message = rest.first {
                let sent = culvert_send_message(connection, message, message.count, -1, 1)
                if sent == -EAGAIN { break }
                guard sent == 0 else { return done(false) }
                rest.removeFirst()
            }
            guard !rest.isEmpty else { return done(true) }
            let left = rest
            do {
                try BlockingThread.start("a long answer") { [connection] in
                    done(left.allSatisfy { culvert_send_message(connection, $0, $0.count, -1, 0) == 0 })
                }
            } catch {
                server.logger.error("the rest of an answer cannot be sent: \(error)")
                done(false)
            }
        }
    }
}

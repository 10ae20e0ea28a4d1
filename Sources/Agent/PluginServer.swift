import CLinux
import CNI
import Dispatch
import HelperProtocol
import Logging
import Netlink
import Synchronization

/// `cni.sock`: one thread accepts, one short-lived thread serves each plugin. (swift-nio cannot receive file
/// descriptors.) What arrives is not believed: see `receive`.
public final class PluginServer: Sendable {
    /// Plugins that are served at once; more wait in the backlog.
    static let maximumConnections = 512
    /// ADDs that are served at once: they may have to wait for an API server, and must not keep DEL, STATUS and the rest from
    /// being served. More than any node has pods.
    static let maximumADDs = maximumConnections - 64
    /// How long a connection may take to send its request, milliseconds.
    static let patience = 2000

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
        while !isStopping.load(ordering: .sequentiallyConsistent) {
            places.wait()
            let connection = culvert_accept(listener)
            guard connection >= 0 else {
                places.signal()
                if isStopping.load(ordering: .sequentiallyConsistent) { break }
                if connection == -EMFILE || connection == -ENFILE {
                    logger.error("no file descriptor is left for another plugin call")
                    usleep(50_000)
                }
                continue
            }
            active.add(1, ordering: .sequentiallyConsistent)
            let call = Call(server: self, connection: connection)
            do { try BlockingThread.start("a plugin") { call.run() } } catch {
                logger.error("a plugin call cannot be served: \(error)")
                close(connection)
                places.signal()
                active.subtract(1, ordering: .sequentiallyConsistent)
            }
        }
        close(listener)
    }

    private final class Call: Sendable {
        let server: PluginServer
        let connection: Int32
        init(server: PluginServer, connection: Int32) {
            self.server = server
            self.connection = connection
        }

        func run() {
            defer {
                close(connection)
                server.places.signal()
                server.active.subtract(1, ordering: .sequentiallyConsistent)
            }
            do throws(CNIError) {
                let (request, descriptor) = try receive()
                if request.command == .add {
                    guard
                        server.placesOfADDs.wait(timeout: .now())
                            == .success
                    else {
                        if descriptor >= 0 { close(descriptor) }
                        throw CNIError(
                            .tryAgainLater,
                            "culvertd already serves \(PluginServer.maximumADDs) ADDs, which is the maximum",
                            details: "the API server may be slow; see culvertctl status")
                    }
                }
                defer { if request.command == .add { server.placesOfADDs.signal() } }
                let number = server.calls.add(1, ordering: .relaxed).newValue
                let response = Call.wait { [self] answer in
                    server.agent.serve(
                        request, descriptor: descriptor, call: number, isAwaited: { !self.hasHungUp }, answer: answer)
                }
                if !send(response), request.command == .add, case .done = response {
                    Call.wait { [server] done in
                        Task {
                            await server.agent.abort(request, call: number)
                            done(())
                        }
                    }
                }
            } catch {
                server.logger.warning("refused a call on \(server.path)", metadata: ["error": "\(error.message)"])
                _ = send(.failed(error))
            }
        }

        /// Peer's uid first, then one bounded message within a bounded time, with at most one descriptor, which must
        /// be a NETLINK_ROUTE socket of another network namespace.
        private func receive() throws(CNIError) -> (HelperRequest, Int32) {
            let uid = culvert_peer_uid(connection)
            guard uid == server.plugInUID || uid == Int64(geteuid()) && server.plugInUID != 0 else {
                throw CNIError(.requestRefused, "the peer's uid is \(uid); only root may call")
            }
            _ = culvert_receive_timeout(connection, PluginServer.patience)
            _ = culvert_send_timeout(connection, PluginServer.patience)
            var buffer = [UInt8](repeating: 0, count: HelperRequest.maximumSize + 1)
            var descriptor: Int32 = -1
            let count = culvert_receive_message(connection, &buffer, buffer.count, &descriptor)
            if count <= 0 {
                switch Int32(-count) {
                case 0:
                    if descriptor >= 0 { close(descriptor) }
                    throw CNIError(.requestRefused, "the connection was closed without a request")
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
            let request = try HelperRequest(message: Array(buffer[0..<count]))
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

        /// False if nobody receives the answer.
        private func send(_ response: HelperResponse) -> Bool {
            if hasHungUp { return false }
            for message in response.messages where culvert_send_message(connection, message, message.count, -1) != 0 {
                return false
            }
            return true
        }

        private final class Box<T: Sendable>: Sendable {
            let value = Mutex<T?>(nil)
        }

        /// Waits for what another thread works out. This runs on a dedicated thread, not on one of the cooperative pool.
        ///
        /// - Parameter begin: begins with it, and returns; its argument is to be called with the result.
        @discardableResult
        private static func wait<T: Sendable>(_ begin: (_ finish: @escaping @Sendable (T) -> Void) -> Void) -> T {
            let done = DispatchSemaphore(value: 0)
            let result = Box<T>()
            begin { value in
                result.value.withLock { $0 = value }
                done.signal()
            }
            while true {
                done.wait()
                if let value = result.value.withLock({ $0 }) { return value }
            }
        }
    }
}

import AsyncHTTPClient
import ClusterTransport
import FoundationEssentials
import Jansson
import Model
import NIOCore
import NIOHTTP1
import Synchronization

/// Why the API server did not do what it was asked.
public struct APIError: Error, CustomStringConvertible {
    /// HTTP status; 0: there was no answer.
    public let code: Int
    /// `metav1.Status.reason`, e.g. `Expired`.
    public let reason: String
    public let message: String
    /// Seconds that the server asks to wait.
    public let retryAfter: Double?
    /// No request gets through to the server, or the connection was lost.
    public let isUnreachable: Bool
    public init(
        code: Int, reason: String = "", message: String, retryAfter: Double? = nil, isUnreachable: Bool = false
    ) {
        self.isUnreachable = isUnreachable
        self.code = code
        self.reason = reason
        self.message = message
        self.retryAfter = retryAfter
    }
    public var description: String { code == 0 ? message : "\(code)\(reason.isEmpty ? "" : " \(reason)"): \(message)" }
    /// The resource version is too old: list again.
    public var isGone: Bool { code == 410 || reason == "Expired" || reason == "Gone" }
    /// The server is away, or was started a moment ago: it is worth asking it again soon. Something before it may say so for
    /// it, which has no `metav1.Status` to tell.
    var isOfAServerThatIsAway: Bool {
        isUnreachable || (code == 429 && message.contains("initializing"))
            || ((502...504).contains(code) && reason.isEmpty)
    }

    /// From a `metav1.Status`, or any other answer.
    init(status: JSON?, code: Int, text: String, retryAfter: Double?) {
        self.init(
            code: status?["code"]?.integer.map { Int($0) } ?? code, reason: status?["reason"]?.string ?? "",
            message: status?["message"]?.string ?? String(text.prefix(200)), retryAfter: retryAfter)
    }
}

/// A client of the API server: just the requests that Culvert makes.
public final class KubernetesClient: Sendable {
    /// The most bytes of one answer.
    static let maximumAnswer = 256 * 1024 * 1024

    public let access: ClusterAccess
    private let client: RenewableClient
    private let credentials: Credentials
    private let userAgent: String
    /// `https://HOST:PORT` as requests name it: with `tls-server-name` the host is that one.
    private let base: String

    /// When a server that says nothing is asked whether it is there. A watch is silent by nature, and what stands still on the
    /// way (a proxy whose kernel goes on acknowledging) gives no error.
    public struct Silence: Sendable {
        /// After so long without a byte of any answer.
        let quiet: Duration
        /// So long the answer may take; then every request that is under way is given up.
        let answer: Duration
        public init(quiet: Duration = .seconds(15), answer: Duration = .seconds(15)) {
            self.quiet = quiet
            self.answer = answer
        }
    }
    private let silence: Silence
    private let lastHeard = Mutex(ContinuousClock.now)
    let presence = ServerPresence()

    /// - Parameters:
    ///   - idleSeconds: a watch that says nothing for so long is broken. The server sends a bookmark every minute.
    ///   - renewal: certificates are read again when a request begins so long after the last look.
    ///   - silence: when a silent server is asked whether it is there (`watchOverConnections`).
    public init(
        access: ClusterAccess, userAgent: String, idleSeconds: Int64 = 100, renewal: Duration = .seconds(60),
        silence: Silence = .init()
    ) throws {
        self.access = access
        self.userAgent = userAgent
        self.silence = silence
        var base = access.server
        var hosts: [String: String] = [:]
        if let name = access.tlsServerName, var parts = URLComponents(string: access.server), let host = parts.host {
            parts.host = name
            base = parts.string ?? base
            hosts[name] = host.trimming { $0 == "[" || $0 == "]" }
        }
        self.base = base
        let (dns, proxy) = (hosts, access.proxy)
        do {
            client = try RenewableClient(
                access.transportSecurity, connectSeconds: 10, idleSeconds: idleSeconds, interval: renewal,
                adjust: {
                    $0.decompression = .enabled(limit: .size(KubernetesClient.maximumAnswer))
                    $0.connectionPool.concurrentHTTP1ConnectionsPerHostSoftLimit = 32
                    $0.dnsOverride = dns
                    $0.proxy = proxy.map {
                        $0.isSOCKS ? .socksServer(host: $0.host, port: $0.port) : .server(host: $0.host, port: $0.port)
                    }
                }, reload: { try access.reloaded().transportSecurity })
        } catch { throw ClusterAccess.Failure("the certificates for \(access.server) are not valid PEM: \(error)") }
        credentials = Credentials(access)
    }

    public func shutdown() async { await client.shutdown() }

    /// Why renewed certificates cannot be used; empty where they can.
    public var renewalProblem: String { client.problem }

    // MARK: connections that stand still

    private func noteBytes() { lastHeard.withLock { $0 = .now } }
    private var silentSince: ContinuousClock.Instant { lastHeard.withLock { $0 } }

    /// Asks a server that has been silent for a while whether it is there, and gives up all requests that are under way where
    /// it does not answer: they are then made again, over new connections. Until the task is cancelled.
    func watchOverConnections() async {
        while !Task.isCancelled {
            let due = silentSince + silence.quiet
            if .now < due {
                try? await Task.sleep(until: due)
                continue
            }
            let start = ContinuousClock.now
            if await !isAnswering(), !Task.isCancelled, silentSince < start {
                presence.noteFailure()
                await client.replace()
            }
            // Whatever came of it, the next question is not due before the next silence.
            noteBytes()
        }
    }

    private func isAnswering() async -> Bool {
        for _ in 0..<2 {
            let start = ContinuousClock.now
            do {
                // Not limited by priority and fairness, so that a server that is busy answers too. And without a credential:
                // one that cannot be had says nothing of the server, and "who are you?" is an answer.
                _ = try await send(
                    "GET", "/livez", query: [], accept: "*/*", compressed: false,
                    deadline: .nanoseconds(Int64(silence.answer / .nanoseconds(1))), isAuthorized: false)
                return true
            } catch let error as APIError where error.code != 0 { return true } catch {
                // A connection that was kept open may have been closed meanwhile: once more with another one.
                if ContinuousClock.now - start > silence.answer / 2 { return false }
                try? await Task.sleep(for: min(.seconds(1), silence.quiet))
            }
        }
        return false
    }

    private func standsStill(_ what: String) -> APIError {
        APIError(
            code: 0,
            message:
                "\(access.server) does not respond: no data arrived for \(silence.quiet + silence.answer), and a test request was not answered (\(what)); connecting again",
            isUnreachable: true)
    }

    // MARK: requests

    /// One object; nil where there is none.
    public func get(
        _ resource: Resource, namespace: String? = nil, name: String, metadataOnly: Bool = false
    ) async throws -> JSON? {
        do {
            return try await answer(
                "GET", resource.path(namespace: namespace, name: name),
                accept: metadataOnly ? KubernetesClient.metadata : "application/json")
        } catch let error as APIError where error.code == 404 { return nil }
    }

    /// One page of a list, and the token of the next one.
    func page(
        _ resource: Resource, query: [(String, String)], metadataOnly: Bool
    ) async throws -> (items: [JSON], next: String, resourceVersion: String) {
        let list = try await answer(
            "GET", resource.path(), query: query,
            accept: metadataOnly ? KubernetesClient.metadataList : "application/json")
        return (
            list["items"]?.elements ?? [], list["metadata"]?["continue"]?.string ?? "",
            list["metadata"]?["resourceVersion"]?.string ?? ""
        )
    }
    private static let metadataList =
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
    private static let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"

    /// Server-side apply: what this manager said before and says no more is removed.
    public func apply(
        _ resource: Resource, namespace: String? = nil, name: String, subresource: String? = nil, manager: String,
        _ object: JSON
    ) async throws {
        _ = try await answer(
            "PATCH", resource.path(namespace: namespace, name: name, subresource: subresource),
            query: [("fieldManager", manager), ("force", "true")], body: object,
            contentType: "application/apply-patch+yaml")
    }

    public func create(_ resource: Resource, namespace: String? = nil, _ object: JSON) async throws {
        _ = try await answer("POST", resource.path(namespace: namespace), body: object)
    }

    /// The lines of a watch, one JSON object each, until it ends or fails. Silence is an end too: a resource that never
    /// changes may be sent no bookmarks for longer than we wait.
    func watch(
        _ resource: Resource, query: [(String, String)], metadataOnly: Bool, seconds: Int64,
        begins: () async -> Void, onEvent: (JSON) async throws -> Void
    ) async throws {
        let (response, connection) = try await send(
            "GET", resource.path(),
            query: query + [("watch", "1"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", "\(seconds)")],
            accept: metadataOnly ? KubernetesClient.metadata : "application/json", compressed: false,
            deadline: .seconds(seconds + 60))
        defer { withExtendedLifetime(connection) {} }
        await begins()
        var lines = LineReader(limit: 16 * 1024 * 1024)
        do {
            for try await part in response.body {
                noteBytes()
                for line in try lines.take(part.readableBytesView) {
                    let event: JSON
                    do { event = try JSON.parse(line) } catch {
                        throw APIError(code: 0, message: "the watch of \(resource) sent a line that is not JSON")
                    }
                    try await onEvent(event)
                }
            }
        } catch let error as HTTPClientError {
            if error == .readTimeout { return }
            if !client.isCurrent(connection) { throw standsStill("watch of \(resource)") }
            throw APIError(code: 0, message: "the watch of \(resource) was interrupted: \(error)", isUnreachable: true)
        }
        guard lines.isEmpty else {
            throw APIError(code: 0, message: "the watch of \(resource) ended in the middle of a line")
        }
    }

    // MARK: transport

    private func answer(
        _ method: String, _ path: String, query: [(String, String)] = [], accept: String = "application/json",
        body: JSON? = nil, contentType: String = "application/json"
    ) async throws -> JSON {
        let (response, connection) = try await send(
            method, path, query: query, accept: accept, body: body, contentType: contentType, compressed: true,
            deadline: .seconds(60))
        defer { withExtendedLifetime(connection) {} }
        var bytes: [UInt8] = []
        do {
            for try await part in response.body {
                noteBytes()
                guard bytes.count + part.readableBytes <= KubernetesClient.maximumAnswer else {
                    throw APIError(
                        code: 0,
                        message:
                            "the response to \(method) \(path) has more than \(KubernetesClient.maximumAnswer) bytes"
                    )
                }
                bytes += part.readableBytesView
            }
        } catch let error as HTTPClientError {
            throw APIError(
                code: 0, message: "the response to \(method) \(path) was cut off: \(error)", isUnreachable: true)
        }
        do { return try JSON.parse(bytes) } catch {
            throw APIError(code: 0, message: "the response to \(method) \(path) is not JSON: \(error.description)")
        }
    }

    private func send(
        _ method: String, _ path: String, query: [(String, String)], accept: String, body: JSON? = nil,
        contentType: String = "application/json", compressed: Bool, deadline: TimeAmount, again: Bool = true,
        isAuthorized: Bool = true
    ) async throws -> (HTTPClientResponse, RenewableClient.Connection) {
        var parts = URLComponents()
        parts.queryItems = query.isEmpty ? nil : query.map { URLQueryItem(name: $0.0, value: $0.1) }
        // URLComponents leaves "+" as it is, which means a space.
        let text = parts.percentEncodedQuery.map { "?" + $0.replacing("+", with: "%2B") } ?? ""
        var request = HTTPClientRequest(url: base + path + text)
        request.method = HTTPMethod(rawValue: method)
        request.headers.add(name: "Accept", value: accept)
        request.headers.add(name: "User-Agent", value: userAgent)
        if compressed { request.headers.add(name: "Accept-Encoding", value: "gzip") }
        let token = isAuthorized ? try await credentials.token() : nil
        if let token {
            request.headers.add(name: "Authorization", value: "Bearer \(token)")
        }
        if let body {
            request.headers.add(name: "Content-Type", value: contentType)
            request.body = .bytes(body.bytes())
        }
        let response: HTTPClientResponse
        let connection = client.connection()
        do { response = try await connection.http.execute(request, timeout: deadline) } catch let error
            as CancellationError
        {
            throw error
        } catch {
            // A request whose caller has stopped waiting was cancelled. That shows nothing about the server.
            if Task.isCancelled { throw CancellationError() }
            presence.noteFailure()
            if !client.isCurrent(connection) { throw standsStill("\(method) \(path)") }
            throw APIError(
                code: 0, message: "\(access.server) cannot be reached: \(error)", isUnreachable: true)
        }
        noteBytes()
        presence.noteAnswer()
        if (200..<300).contains(response.status.code) { return (response, connection) }
        let bytes = (try? await response.body.collect(upTo: 1024 * 1024)).map { Array($0.readableBytesView) } ?? []
        if response.status == .unauthorized && again && isAuthorized {
            // The token may have been renewed since it was read.
            await credentials.forget(token)
            return try await send(
                method, path, query: query, accept: accept, body: body, contentType: contentType,
                compressed: compressed, deadline: deadline, again: false)
        }
        throw APIError(
            status: try? JSON.parse(bytes), code: Int(response.status.code),
            text: String(decoding: bytes, as: UTF8.self),
            retryAfter: response.headers.first(name: "Retry-After").flatMap { Double($0) })
    }
}

/// The bearer token of the moment.
private actor Credentials {
    private let access: ClusterAccess
    private var credential: ClusterAccess.Credential
    private var known: (token: String, until: Date)?
    /// However many requests need a credential at the same time, the program runs once.
    private let runs = SingleFlight<ExecCredentialPlugin.Credential>()

    init(_ access: ClusterAccess) {
        self.access = access
        credential = access.credential
    }

    /// - Parameter used: the token that was refused. A newer one that another request has brought meanwhile stays.
    func forget(_ used: String?) {
        guard known == nil || known?.token == used else { return }
        known = nil
        if let fresh = try? access.reloaded().credential { credential = fresh }
    }

    func token() async throws -> String? {
        switch credential {
        case .none, .certificate: return nil
        case .token(let token): return token
        case .tokenFile(let path):
            if let known, known.until > Date() { return known.token }
            guard let data = FileManager.default.contents(atPath: path) else {
                throw APIError(code: 0, message: "\(path) cannot be read")
            }
            let token = String(decoding: data, as: UTF8.self).trimmed
            // The kubelet renews it at four fifths of its life, which is ten minutes at least.
            known = (token, Date().addingTimeInterval(60))
            return token
        case .exec(let plugin):
            if let known, known.until > Date() { return known.token }
            let fresh = try await runs.value { try await plugin.run() }
            known = (fresh.token, fresh.expires?.addingTimeInterval(-10) ?? .distantFuture)
            return fresh.token
        }
    }
}

import AsyncHTTPClient
import ClusterTransport
import Foundation
import Jansson
import NIOCore
import NIOHTTP1

/// Why the API server did not do what it was asked.
public struct APIError: Error, CustomStringConvertible {
    /// HTTP status; 0: there was no answer.
    public let code: Int
    /// `metav1.Status.reason`, e.g. `Expired`.
    public let reason: String
    public let message: String
    /// Seconds that the server asks to wait.
    public let retryAfter: Double?
    public init(code: Int, reason: String = "", message: String, retryAfter: Double? = nil) {
        self.code = code
        self.reason = reason
        self.message = message
        self.retryAfter = retryAfter
    }
    public var description: String { code == 0 ? message : "\(code)\(reason.isEmpty ? "" : " \(reason)"): \(message)" }
    /// The resource version is too old: list again.
    public var isGone: Bool { code == 410 || reason == "Expired" || reason == "Gone" }

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

    /// - Parameters:
    ///   - idleSeconds: a watch that says nothing for so long is broken. The server sends a bookmark every minute.
    ///   - renewal: certificates are read again when a request begins so long after the last look.
    public init(
        access: ClusterAccess, userAgent: String, idleSeconds: Int64 = 150, renewal: Duration = .seconds(60)
    ) throws {
        self.access = access
        self.userAgent = userAgent
        var base = access.server
        var hosts: [String: String] = [:]
        if let name = access.tlsServerName, var parts = URLComponents(string: access.server), let host = parts.host {
            parts.host = name
            base = parts.string ?? base
            hosts[name] = host.trimmingCharacters(in: ["[", "]"])
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
        } catch { throw ClusterAccess.Failure("the certificates for \(access.server) are no PEM: \(error)") }
        credentials = Credentials(access)
    }

    public func shutdown() async { await client.shutdown() }

    /// Why renewed certificates cannot be used; empty where they can.
    public var renewalProblem: String { client.problem }

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
                for line in try lines.take(part.readableBytesView) {
                    let event: JSON
                    do { event = try JSON.parse(line) } catch {
                        throw APIError(code: 0, message: "the watch of \(resource) sent a line that is not JSON")
                    }
                    try await onEvent(event)
                }
            }
        } catch let error as HTTPClientError where error == .readTimeout { return }
        guard lines.isEmpty else { throw APIError(code: 0, message: "the watch of \(resource) broke off in a line") }
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
        let bytes = try await response.body.collect(upTo: KubernetesClient.maximumAnswer)
        do { return try JSON.parse(Array(bytes.readableBytesView)) } catch {
            throw APIError(code: 0, message: "the answer to \(method) \(path) is not JSON: \(error.description)")
        }
    }

    private func send(
        _ method: String, _ path: String, query: [(String, String)], accept: String, body: JSON? = nil,
        contentType: String = "application/json", compressed: Bool, deadline: TimeAmount, again: Bool = true
    ) async throws -> (HTTPClientResponse, RenewableClient.Connection) {
        var parts = URLComponents()
        parts.queryItems = query.isEmpty ? nil : query.map { URLQueryItem(name: $0.0, value: $0.1) }
        // URLComponents leaves "+" as it is, which means a space.
        let text = parts.percentEncodedQuery.map { "?" + $0.replacingOccurrences(of: "+", with: "%2B") } ?? ""
        var request = HTTPClientRequest(url: base + path + text)
        request.method = HTTPMethod(rawValue: method)
        request.headers.add(name: "Accept", value: accept)
        request.headers.add(name: "User-Agent", value: userAgent)
        if compressed { request.headers.add(name: "Accept-Encoding", value: "gzip") }
        if let token = try await credentials.token() {
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
            throw APIError(code: 0, message: "\(access.server) cannot be reached: \(error)")
        }
        if (200..<300).contains(response.status.code) { return (response, connection) }
        let bytes = (try? await response.body.collect(upTo: 1024 * 1024)).map { Array($0.readableBytesView) } ?? []
        if response.status == .unauthorized && again {
            // The token may have been renewed since it was read.
            await credentials.forget()
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

    init(_ access: ClusterAccess) {
        self.access = access
        credential = access.credential
    }

    func forget() {
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
            let token = String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
            // The kubelet renews it at four fifths of its life, which is ten minutes at least.
            known = (token, Date().addingTimeInterval(60))
            return token
        case .exec(let plugin):
            if let known, known.until > Date() { return known.token }
            let fresh = try await plugin.run()
            known = (fresh.token, fresh.expires?.addingTimeInterval(-10) ?? .distantFuture)
            return fresh.token
        }
    }
}

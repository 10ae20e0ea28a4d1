import AsyncHTTPClient
import ClusterTransport
import FoundationEssentials
import Jansson
import NIOCore

/// etcd's API version 3, by its JSON gateway (etcd documentation, "Why gRPC gateway"): ranges and watches.
final class EtcdClient: Sendable {
    struct Failure: Error, CustomStringConvertible {
        let description: String
        /// The revision asked for is compacted away, or is not there yet: read everything again.
        var isGone = false
    }

    struct Entry: Equatable, Sendable {
        let key: String
        let value: [UInt8]
    }
    struct Event: Sendable {
        let isDeletion: Bool
        let entry: Entry
    }

    let endpoints: [String]
    private let client: RenewableClient

    init(_ settings: EtcdConfiguration, idleSeconds: Int64, renewal: Duration = .seconds(60)) throws {
        endpoints = settings.endpoints
        do {
            client = try RenewableClient(
                settings.transportSecurity, connectSeconds: 3, idleSeconds: idleSeconds, interval: renewal,
                reload: { try settings.reloaded().transportSecurity })
        } catch { throw EtcdConfiguration.Failure(description: "etcd's certificates are not valid PEM: \(error)") }
    }

    func shutdown() async { await client.shutdown() }

    /// Why renewed certificates cannot be used; empty where they can.
    var renewalProblem: String { client.problem }

    private static func base64(_ text: String) -> JSON { .string(Data(text.utf8).base64EncodedString()) }

    /// The end of the range of all keys with this prefix: its last byte plus one.
    private static func end(of prefix: String) -> JSON {
        var bytes = Array(prefix.utf8)
        bytes[bytes.count - 1] += 1
        return .string(Data(bytes).base64EncodedString())
    }

    /// The answer, and what must be held until it is read.
    private func post(_ endpoint: String, _ path: String, _ body: JSON, seconds: Int64) async throws
        -> (HTTPClientResponse, RenewableClient.Connection)
    {
        var request = HTTPClientRequest(url: endpoint + path)
        request.method = .POST
        request.headers.add(name: "Content-Type", value: "application/json")
        request.body = .bytes(body.bytes())
        let response: HTTPClientResponse
        let connection = client.connection()
        do { response = try await connection.http.execute(request, timeout: .seconds(seconds)) } catch {
            throw Failure(description: "\(endpoint) cannot be reached: \(error)")
        }
        guard response.status == .ok else {
            let text = try? await response.body.collect(upTo: 65536)
            throw Failure(
                description:
                    "\(endpoint)\(path): \(response.status.code) \(text.map { String(buffer: $0).prefix(200) } ?? "")")
        }
        return (response, connection)
    }

    private static func entry(_ kv: JSON) -> Entry? {
        guard let key = kv["key"]?.string.flatMap({ Data(base64Encoded: $0) }) else { return nil }
        let value = kv["value"]?.string.flatMap { Data(base64Encoded: $0) } ?? Data()
        return Entry(key: String(decoding: key, as: UTF8.self), value: [UInt8](value))
    }

    /// Numbers of 64 bits are strings in this JSON.
    static func number(_ value: JSON?) -> Int64 { value?.string.flatMap { Int64($0) } ?? value?.integer ?? 0 }

    /// Everything with a prefix, in pages of one revision.
    func range(
        _ endpoint: String, prefix: String
    ) async throws -> (entries: [Entry], revision: Int64, cluster: String) {
        var entries: [Entry] = []
        var revision: Int64 = 0
        var cluster = ""
        var start = prefix
        while true {
            let body = JSON.make(
                ("key", EtcdClient.base64(start)), ("range_end", EtcdClient.end(of: prefix)), ("limit", .string("500")),
                ("revision", revision == 0 ? nil : .string("\(revision)")))
            let (response, connection) = try await post(endpoint, "/v3/kv/range", body, seconds: 20)
            defer { withExtendedLifetime(connection) {} }
            let bytes = try await response.body.collect(upTo: 128 * 1024 * 1024)
            guard let answer = try? JSON.parse(Array(bytes.readableBytesView)) else {
                throw Failure(description: "\(endpoint): the answer is not JSON")
            }
            if revision == 0 { revision = EtcdClient.number(answer["header"]?["revision"]) }
            cluster = answer["header"]?["cluster_id"]?.string ?? ""
            let page = (answer["kvs"]?.elements ?? []).compactMap(EtcdClient.entry)
            entries += page
            guard answer["more"]?.bool == true, let last = page.last else { break }
            start = last.key + "\u{0}"
        }
        return (entries, revision, cluster)
    }

    /// Events of every key with a prefix from a revision on, until the stream ends or fails.
    ///
    /// - Parameter cluster: the etcd that the revision is of; Cilium's clustermesh-apiserver has a new one at every start.
    func watch(
        _ endpoint: String, prefix: String, from revision: Int64, cluster: String,
        _ body: (_ events: [Event], _ revision: Int64) async throws -> Void
    ) async throws {
        let request = JSON.make(
            (
                "create_request",
                .make(
                    ("key", EtcdClient.base64(prefix)), ("range_end", EtcdClient.end(of: prefix)),
                    ("start_revision", .string("\(revision)")), ("progress_notify", .bool(true)))
            ))
        let (response, connection) = try await post(endpoint, "/v3/watch", request, seconds: 24 * 3600)
        defer { withExtendedLifetime(connection) {} }
        var lines = LineReader(limit: 16 * 1024 * 1024)
        do {
            for try await part in response.body {
                for line in try lines.take(part.readableBytesView) {
                    guard let answer = try? JSON.parse(line) else {
                        throw Failure(description: "\(endpoint): the watch sent a line that is not JSON")
                    }
                    if let error = answer["error"] {
                        throw Failure(description: "\(endpoint): \(error["message"]?.string ?? "the watch failed")")
                    }
                    let result = answer["result"] ?? .null
                    let here = result["header"]?["cluster_id"]?.string ?? ""
                    if !here.isEmpty, !cluster.isEmpty, here != cluster {
                        throw Failure(
                            description: "\(endpoint): is a different etcd cluster from the one that was read before",
                            isGone: true)
                    }
                    let now = EtcdClient.number(result["header"]?["revision"])
                    if result["canceled"]?.bool == true {
                        throw Failure(
                            description: "\(endpoint): \(result["cancel_reason"]?.string ?? "the watch was canceled")",
                            isGone: EtcdClient.number(result["compact_revision"]) > 0)
                    }
                    if result["created"]?.bool == true && now < revision &- 1 {
                        throw Failure(
                            description:
                                "\(endpoint): its revision is lower than one that was read before: it is another etcd, or it was restored from a backup",
                            isGone: true)
                    }
                    let events = (result["events"]?.elements ?? []).compactMap { event in
                        (event["kv"].flatMap(EtcdClient.entry)).map {
                            Event(isDeletion: event["type"]?.string == "DELETE", entry: $0)
                        }
                    }
                    try await body(events, now)
                }
            }
        } catch let error as HTTPClientError where error == .readTimeout {
            // Nothing has arrived for a while, and there is no sign that the server is alive: begin the watch again
            // from the same revision.
        }
    }
}

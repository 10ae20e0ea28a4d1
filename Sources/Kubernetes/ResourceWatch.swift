import ClusterTransport
import Jansson
import Logging

/// Follows one resource: lists it in pages, watches it from there on, and lists again where the server has forgotten
/// what came since (Kubernetes, "Efficient detection of changes").
struct ResourceWatch: Sendable {
    enum Change: Sendable {
        /// The whole content.
        case replaced([JSON])
        case set(JSON)
        case deleted(JSON)
        /// The server has known no such resource for so long.
        case missing(Duration)
        /// The server does not let us read an optional resource.
        case refused(String)
        /// Whether the server can be reached, and why not.
        case problem(String)
    }

    let client: KubernetesClient
    let resource: Resource
    var fieldSelector = ""
    /// Labels and annotations are all that is needed.
    var metadataOnly = false
    var pageSize = 500
    /// The longest wait after a failure, seconds.
    var ceiling = 30.0
    /// The longest wait while the server is away. It is back at once for whoever asks: thousands of helpers ask a proxy that
    /// has no server eight times in two seconds each, which costs it a connection that is closed.
    private static let absenceCeiling = 3.0
    var clock: any Clock<Duration> = ContinuousClock()
    let logger: Logger

    /// Until the task is cancelled.
    func run(_ report: @Sendable (Change) async -> Void) async {
        var backoff = Backoff(ceiling: ceiling)
        var absence = Backoff(ceiling: min(ceiling, ResourceWatch.absenceCeiling))
        var version: String?
        /// The server has forgotten what came since the version that was asked for, and was listed anew.
        var isListedAnew = false
        var lastFailure = ""
        /// Since when the server answers that there is no such resource.
        var missingSince: (@Sendable () -> Duration)?
        // An optional resource that is not there today is hardly there in ten seconds, and thousands of helpers ask.
        var missingBackoff = Backoff(first: 1, ceiling: resource.isOptional ? 300 : 10)
        while !Task.isCancelled {
            // Of the watch alone: a list that fails late is a failure all the same.
            var elapsed: @Sendable () -> Duration = { .zero }
            do {
                if version == nil { version = try await list(report) }
                elapsed = clock.stopwatch()
                missingSince = nil
                missingBackoff.reset()
                try await watch(&version, report)
                // The server ends a watch when its time is over; one that ends at once is a server in trouble.
                guard elapsed() > .seconds(1) else {
                    throw APIError(code: 0, message: "the server ended the watch immediately")
                }
                backoff.reset()
                absence.reset()
                isListedAnew = false
                lastFailure = ""
                try await clock.sleep(for: .milliseconds(Int64.random(in: 20...60)))
            } catch {
                if error is CancellationError || Task.isCancelled { return }
                // It worked for a while: whatever ended it is no reason to wait for long.
                if elapsed() > .seconds(10) {
                    backoff.reset()
                    absence.reset()
                }
                if elapsed() > .seconds(2) { isListedAnew = false }
                // Every error that is thrown here is an error of the connection, except a line that is too long.
                let failure =
                    error as? APIError
                    ?? APIError(code: 0, message: "\(error)", isUnreachable: !(error is LineReader.TooLong))
                // The server itself has answered, also where it is not ready yet.
                if failure.code == 429 || !failure.isOfAServerThatIsAway { absence.reset() }
                if failure.isGone {
                    logger.debug("the resource version is too old: listing the objects again", metadata: meta)
                    version = nil
                    missingSince = nil
                    // Thousands of helpers may have received this answer at the same time.
                    try? await clock.sleep(for: .milliseconds(Int64.random(in: 0...Int64(min(ceiling * 100, 1200)))))
                    // A server that was restarted answers this once for each watch. That is no reason to wait longer.
                    if !isListedAnew {
                        isListedAnew = true
                        continue
                    }
                } else if failure.code == 404 && !resource.isBuiltIn {
                    let since = missingSince ?? clock.stopwatch()
                    missingSince = since
                    version = nil
                    await report(.missing(since()))
                    // Soon at first, in case that it was a stray answer, and then every ten seconds at the latest (of an
                    // optional resource every five minutes).
                    try? await clock.sleep(for: missingBackoff.wait())
                    continue
                } else if failure.code == 403 && resource.isOptional {
                    missingSince = nil
                    version = nil
                    await report(.refused("\(failure)"))
                    try? await clock.sleep(for: missingBackoff.wait())
                    continue
                } else {
                    // "Not found" counts only where it lasts: what came between says nothing of it.
                    missingSince = nil
                    missingBackoff.reset()
                    // While the server is away the same is said again every second or two.
                    logger.log(
                        level: lastFailure == "\(failure)" ? .debug : .notice, "a watch failed",
                        metadata: meta.merging(["error": "\(failure)"]) { a, _ in a })
                    lastFailure = "\(failure)"
                    await report(.problem("\(resource): \(failure)"))
                    if failure.isOfAServerThatIsAway {
                        let asked = failure.retryAfter ?? (failure.code == 429 ? 1 : nil)
                        await client.presence.wait(absence.wait(atLeast: asked), clock)
                        continue
                    }
                }
                try? await clock.sleep(for: backoff.wait(atLeast: failure.retryAfter))
            }
        }
    }

    private var meta: Logger.Metadata { ["resource": "\(resource)"] }
    private var selection: [(String, String)] { fieldSelector.isEmpty ? [] : [("fieldSelector", fieldSelector)] }

    private func list(_ report: @Sendable (Change) async -> Void) async throws -> String {
        var items: [JSON] = []
        var token = ""
        var version = ""
        repeat {
            var query = selection + [("limit", "\(pageSize)")]
            if !token.isEmpty { query.append(("continue", token)) }
            let page = try await client.page(resource, query: query, metadataOnly: metadataOnly)
            items += page.items.map(reduced)
            version = page.resourceVersion
            token = page.next
        } while !token.isEmpty
        await report(.replaced(items))
        return version
    }

    private func watch(_ version: inout String?, _ report: @Sendable (Change) async -> Void) async throws {
        var current = version
        defer { version = current }
        let query = selection + [("resourceVersion", current ?? "")]
        try await client.watch(
            resource, query: query, metadataOnly: metadataOnly, seconds: Int64.random(in: 300...600),
            begins: { await report(.problem("")) },
            onEvent: { event in
                let object = event["object"] ?? .null
                switch event["type"]?.string {
                case "ADDED", "MODIFIED": await report(.set(reduced(object)))
                case "DELETED": await report(.deleted(reduced(object)))
                case "BOOKMARK": break
                case "ERROR":
                    throw APIError(status: object, code: Int(object["code"]?.integer ?? 500), text: "", retryAfter: nil)
                default: throw APIError(code: 0, message: "a watch event has an unknown type")
                }
                if let next = object["metadata"]?["resourceVersion"]?.string { current = next }
            })
    }

    /// The object without the fields that this program does not read, so that thousands of waiting objects take little
    /// memory.
    private func reduced(_ object: JSON) -> JSON {
        guard let metadata = object["metadata"]?.members else { return resource.stamp(object) }
        return resource.stamp(
            object.setting(
                "metadata",
                to: .object(
                    metadata.filter {
                        // In a policy, managedFields show who wrote its status.
                        ($0.key != "managedFields" || resource == .egressPolicies) && $0.key != "ownerReferences"
                    })))
    }
}

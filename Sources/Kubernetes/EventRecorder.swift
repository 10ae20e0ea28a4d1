import FoundationEssentials
import Inventory
import Jansson
import Logging
import Model

/// Writes Events, for `kubectl describe`: each only once an hour, after which the API server forgets it.
actor EventRecorder {
    private let client: KubernetesClient
    private let nodeName: String
    private let logger: Logger
    /// An Event, and the UID of the policy that it is on: one of the same name that was made anew is another policy.
    private struct Recorded: Hashable {
        let event: ObjectEvent
        let uid: String
        /// Since 1970.
        let hour: Int
    }
    /// Those that were written. One that was forgotten is written again, and is there already under its name.
    private var recorded: RecentlyUsed<Recorded>
    private let clock: @Sendable () -> Date

    init(
        client: KubernetesClient, nodeName: String, room: Int = 10_000,
        clock: @escaping @Sendable () -> Date = { Date() },
        logger: Logger
    ) {
        self.clock = clock
        recorded = RecentlyUsed(room: room)
        self.client = client
        self.nodeName = nodeName
        self.logger = logger
    }

    /// Begins to write an Event, and does not wait for the server.
    ///
    /// - Parameter uid: of the policy that the Event is on; empty: not known, and then `kubectl describe` does not find it.
    func record(_ event: ObjectEvent, uid: String = "") {
        let record = Recorded(event: event, uid: uid, hour: Int(clock().timeIntervalSince1970 / 3600))
        // The same event once more is not written.
        guard recorded.insert(record) else { return }
        let (namespace, reference) = EventRecorder.reference(event.subject, uid)
        // Many nodes may report the same event of a policy. The name is derived from the event, so only one object
        // remains.
        let name = "\(reference["name"]?.string ?? "").\(String(EventRecorder.hash("\(event)\(uid)"), radix: 16))"
        let now = clock().formatted(.iso8601)
        let body = JSON.make(
            ("apiVersion", .string("v1")), ("kind", .string("Event")),
            ("metadata", .make(("name", .string(name)), ("namespace", .string(namespace)))),
            ("involvedObject", reference), ("reason", .string(event.reason)), ("message", .string(event.message)),
            ("type", .string("Warning")), ("firstTimestamp", .string(now)), ("lastTimestamp", .string(now)),
            ("count", .integer(1)),
            ("source", .make(("component", .string("culvertd")), ("host", .string(nodeName)))))
        Task {
            do { try await client.create(.events, namespace: namespace, body) } catch let error as APIError
                where error.code == 409
            {} catch {
                logger.warning("an Event cannot be written", metadata: ["error": "\(error)"])
                recorded.remove(record)
            }
        }
    }

    private static func reference(_ subject: ObjectEvent.Subject, _ uid: String) -> (namespace: String, JSON) {
        switch subject {
        case .pod(let namespace, let name, let uid):
            (
                namespace,
                .make(
                    ("apiVersion", .string("v1")), ("kind", .string("Pod")), ("namespace", .string(namespace)),
                    ("name", .string(name)), ("uid", .string(uid)))
            )
        case .node(let name):
            // As the kubelet does it: a Node's events bear its name in place of its UID.
            (
                "default",
                .make(
                    ("apiVersion", .string("v1")), ("kind", .string("Node")), ("name", .string(name)),
                    ("uid", .string(name)))
            )
        case .policy(let name, let source):
            // Events of objects without a namespace are written to this namespace.
            (
                "default",
                .make(
                    ("apiVersion", .string(Resource.policies(source).apiVersion)), ("kind", .string(source.rawValue)),
                    ("name", .string(name)), ("uid", uid.isEmpty ? nil : .string(uid)))
            )
        }
    }

    /// FNV-1a, 64 bits: the same on every node.
    private static func hash(_ text: String) -> UInt64 {
        text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
    }
}

import Foundation
import Inventory
import Jansson
import Logging
import Model

/// Events, for `kubectl describe`.
extension KubernetesInventory {
    public func record(_ event: ObjectEvent) {
        // The same again says nothing new.
        guard recorded.count < 10_000, recorded.insert(event).inserted else { return }
        let (namespace, reference) = KubernetesInventory.reference(event.subject)
        // Many nodes may have the same to say of a policy: the name is made of it, so that one event is left.
        let name = "\(reference["name"]?.string ?? "").\(String(KubernetesInventory.hash("\(event)"), radix: 16))"
        let now = ISO8601DateFormatter().string(from: Date())
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
                logger.warning("an event cannot be written", metadata: ["error": "\(error)"])
                recorded.remove(event)
            }
        }
    }

    private static func reference(_ subject: ObjectEvent.Subject) -> (namespace: String, JSON) {
        switch subject {
        case .pod(let namespace, let name, let uid):
            (
                namespace,
                .make(
                    ("apiVersion", .string("v1")), ("kind", .string("Pod")), ("namespace", .string(namespace)),
                    ("name", .string(name)), ("uid", .string(uid)))
            )
        case .policy(let name, let source):
            // Events of what has no namespace are in this one.
            (
                "default",
                .make(
                    ("apiVersion", .string(Resource.policies(source).apiVersion)), ("kind", .string(source.rawValue)),
                    ("name", .string(name)))
            )
        }
    }

    /// FNV-1a, 64 bits: the same on every node.
    private static func hash(_ text: String) -> UInt64 {
        text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
    }
}

import CLinux
import Foundation
import Inventory
import Jansson
import Model

/// Attachments and given numbers on disk, below the run directory.
///
/// Files are written beside their place and renamed, so that a crash leaves the old or the new one. They are not
/// synced: a run directory is a tmpfs, and what it says is as short-lived as the kernel's own state.
struct AttachmentStore {
    let runDirectory: String

    struct Failure: Error, CustomStringConvertible {
        let description: String
    }

    var attachmentsDirectory: String { runDirectory + "/attachments" }
    var deletedDirectory: String { runDirectory + "/deleted" }
    var publishedDirectory: String { runDirectory + "/published" }
    private var idsPath: String { runDirectory + "/ids.json" }

    /// Makes the directories that are missing.
    func prepare() throws {
        for directory in [runDirectory, attachmentsDirectory, deletedDirectory, publishedDirectory] {
            if mkdir(directory, 0o770) != 0 && culvert_errno() != EEXIST {
                throw Failure(
                    description:
                        "\(directory) cannot be made: \(String(cString: strerror(culvert_errno()))); make it (root:culvert, mode 2770), or name another with --run-dir"
                )
            }
            guard access(directory, W_OK | X_OK) == 0 else {
                throw Failure(
                    description:
                        "\(directory) cannot be written by this user: \(String(cString: strerror(culvert_errno()))); it must belong to the helper's group, mode 2770"
                )
            }
        }
    }

    private func write(_ path: String, _ value: JSON) throws {
        try AtomicFile.write(value.text(indent: 2) + "\n", to: path, mode: 0o640)
    }

    /// What this node says of itself, `published/NODE.yaml`; written only where it says something new.
    func publish(_ node: PublishedNode) throws {
        let path = "\(publishedDirectory)/\(node.name).yaml"
        let text = node.manifest
        guard FileManager.default.contents(atPath: path) != Data(text.utf8) else { return }
        // Meant for others, and holds no secret.
        try AtomicFile.write(text, to: path, mode: 0o644)
    }

    func save(_ attachment: Attachment) throws {
        try write("\(attachmentsDirectory)/\(attachment.id)", AttachmentRecord.json(attachment))
    }
    func remove(_ id: String) { unlink("\(attachmentsDirectory)/\(id)") }

    func save(_ ids: AssignedIDs) throws {
        func numbers(_ map: AssignedIDs.Numbers) -> JSON {
            .object(map.sorted { $0.key < $1.key }.map { JSON.Member($0.key, .integer(Int64($0.value))) })
        }
        try write(
            idsPath,
            .make(
                ("tunnels", numbers(ids.tunnels)), ("tables", numbers(ids.tables)),
                ("nextHops", numbers(ids.nextHops))))
    }

    private func read(_ path: String) -> JSON? {
        FileManager.default.contents(atPath: path).flatMap { try? JSON.parse([UInt8]($0)) }
    }

    func loadIDs() -> AssignedIDs {
        var ids = AssignedIDs()
        guard let root = read(idsPath) else { return ids }
        func numbers(_ key: String) -> AssignedIDs.Numbers {
            var map: AssignedIDs.Numbers = [:]
            for member in root[key]?.members ?? [] {
                map[member.key] = member.value.integer.flatMap { UInt32(exactly: $0) }
            }
            return map
        }
        ids.tunnels = numbers("tunnels")
        ids.tables = numbers("tables")
        ids.nextHops = numbers("nextHops")
        return ids
    }

    /// All attachments, and the names of files that are none.
    func load() -> (attachments: [Attachment], damaged: [String]) {
        var attachments: [Attachment] = []
        var damaged: [String] = []
        for name in names(attachmentsDirectory) {
            if let value = read("\(attachmentsDirectory)/\(name)"), let attachment = AttachmentRecord.attachment(value),
                attachment.id == name
            {
                attachments.append(attachment)
            } else {
                damaged.append("\(attachmentsDirectory)/\(name)")
            }
        }
        return (attachments, damaged)
    }

    /// Records of DELs that came while the helper was down: ids of attachments.
    func deletions() -> [String] { names(deletedDirectory) }
    func forgetDeletion(_ id: String) { unlink("\(deletedDirectory)/\(id)") }

    private func names(_ directory: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).filter { !$0.hasPrefix(".") }.sorted()
    }

    /// Removes everything that the helper has written.
    func removeAll() {
        for name in names(attachmentsDirectory) { unlink("\(attachmentsDirectory)/\(name)") }
        for name in names(deletedDirectory) { unlink("\(deletedDirectory)/\(name)") }
        for name in names(publishedDirectory) { unlink("\(publishedDirectory)/\(name)") }
        unlink(idsPath)
    }
}

/// An attachment as JSON.
enum AttachmentRecord {
    static func json(_ attachment: Attachment) -> JSON {
        func map(_ pairs: [String: String]) -> JSON {
            .strings(pairs.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
        }
        return .make(
            ("containerID", .string(attachment.containerID)), ("ifname", .string(attachment.interfaceName)),
            ("network", .string(attachment.network)), ("namespace", .string(attachment.podNamespace)),
            ("name", .string(attachment.podName)), ("uid", .string(attachment.podUID)),
            ("addresses", .array(attachment.addresses.map { .string($0.description) })),
            ("labels", map(attachment.labels)), ("annotations", map(attachment.annotations)),
            ("defaultPolicy", .string(attachment.defaultPolicy)),
            (
                "podRoutes",
                .object(
                    attachment.podRoutes.sorted { $0.key < $1.key }.map {
                        JSON.Member("\($0.key)", .integer(Int64($0.value)))
                    })
            ), ("hostIndex", .integer(Int64(attachment.hostIndex))), ("hostName", .string(attachment.hostName)))
    }

    static func attachment(_ value: JSON) -> Attachment? {
        func text(_ key: String) -> String { value[key]?.string ?? "" }
        func map(_ key: String) -> [String: String] {
            var map: [String: String] = [:]
            for member in value[key]?.members ?? [] { map[member.key] = member.value.string }
            return map
        }
        let addresses = (value["addresses"]?.elements ?? []).compactMap { $0.string.flatMap { IPNetwork($0) } }
        guard !text("containerID").isEmpty, !text("ifname").isEmpty, !addresses.isEmpty else { return nil }
        var attachment = Attachment(
            containerID: text("containerID"), interfaceName: text("ifname"), network: text("network"),
            podNamespace: text("namespace"), podName: text("name"), podUID: text("uid"), addresses: addresses,
            labels: map("labels"), annotations: map("annotations"), defaultPolicy: text("defaultPolicy"),
            hostIndex: Int32(clamping: value["hostIndex"]?.integer ?? 0), hostName: text("hostName"))
        for member in value["podRoutes"]?.members ?? [] {
            if let network = IPNetwork(member.key), let mtu = member.value.integer {
                attachment.podRoutes[network] = Int(mtu)
            }
        }
        return attachment
    }
}

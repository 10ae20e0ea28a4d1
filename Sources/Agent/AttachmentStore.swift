import CLinux
import FoundationEssentials
import Glibc
import Installer
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
    private var adoptedPath: String { runDirectory + "/adopted.json" }
    private var endedPath: String { runDirectory + "/ended.json" }
    /// Those that have ended since that was written, a line each.
    private var endedSincePath: String { runDirectory + "/ended.jsonl" }
    private var servedPath: String { runDirectory + "/served.json" }
    private var lockPath: String { runDirectory + "/lock" }

    /// Makes the directories that are missing.
    func prepare() throws {
        for directory in [runDirectory, attachmentsDirectory, deletedDirectory, publishedDirectory] {
            if mkdir(directory, 0o770) != 0 && culvert_errno() != EEXIST {
                throw Failure(
                    description:
                        "\(directory) cannot be created: \(String(cString: strerror(culvert_errno()))); make it (root:culvert, mode 2770), or name another with --run-dir"
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

    /// Makes sure that no other program changes this node, for as long as the process lives.
    ///
    /// - Throws: if another helper, or a cleanup, is running.
    func lock() throws {
        let descriptor = culvert_lock_file(lockPath)
        if descriptor >= 0 { return }
        throw Failure(
            description: -descriptor == EWOULDBLOCK
                ? "another culvertd uses \(runDirectory) (it has locked \(lockPath)); stop it first, or name another directory with --run-dir"
                : "\(lockPath) cannot be locked: \(String(cString: strerror(-descriptor)))")
    }

    private func write(_ path: String, _ value: JSON) throws {
        try AtomicFile.write(value.text(indent: 2) + "\n", to: path, mode: 0o640)
    }

    /// What this node publishes, `published/NODE.yaml`. It is written only if it has changed.
    func publish(_ node: PublishedNode) throws {
        let path = "\(publishedDirectory)/\(node.name).yaml"
        let text = node.manifest
        guard FileManager.default.contents(atPath: path) != Data(text.utf8) else { return }
        // Meant for others, and holds no secret.
        try AtomicFile.write(text, to: path, mode: 0o644)
    }

    private let assignments = AssignmentTexts()

    func save(_ attachment: Attachment) throws {
        var record = AttachmentRecord.json(attachment, assignment: false).text(indent: 2)
        if let policies = attachment.assignment {
            // As the last member.
            record.removeLast(2)
            record += ",\n  \"assignment\": \(assignments.text(policies))\n}"
        }
        try AtomicFile.write(record + "\n", to: "\(attachmentsDirectory)/\(attachment.id)", mode: 0o640)
    }
    func has(_ id: String) -> Bool { AttachmentStore.isThere("\(attachmentsDirectory)/\(id)") }
    /// `access` would take several times as long, because it asks as another user.
    private static func isThere(_ path: String) -> Bool {
        var status = stat()
        return lstat(path, &status) == 0
    }
    func remove(_ id: String) { unlink("\(attachmentsDirectory)/\(id)") }

    /// What is kept of pods that never had an ADD.
    struct Adopted: Equatable {
        /// What they have, by the attachment's ID.
        var assignments: [String: [AssignedPolicy]] = [:]
        /// The annotation's value that each was last permitted to have; nil: of the release before, which permitted all.
        var granted: [String: String]? = [:]
        /// The plugin's `defaultPolicy`, as of the last ADD.
        var defaultPolicy = ""
    }

    func saveAdopted(_ adopted: Adopted) throws {
        try write(
            adoptedPath,
            .make(
                ("version", .integer(AttachmentRecord.version)),
                (
                    "assignments",
                    .object(
                        adopted.assignments.sorted { $0.key < $1.key }.map {
                            JSON.Member($0.key, AttachmentRecord.json($0.value))
                        })
                ),
                (
                    "granted",
                    adopted.granted.map { .strings($0.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }) }
                ),
                ("defaultPolicy", .string(adopted.defaultPolicy))))
    }
    func loadAdopted() -> Adopted {
        var adopted = Adopted()
        guard let root = read(adoptedPath) else { return adopted }
        for member in root["assignments"]?.members ?? [] {
            adopted.assignments[member.key] = AttachmentRecord.assignment(member.value)
        }
        adopted.granted = (root["granted"]?.members).map { members in
            Dictionary(
                members.compactMap { member in member.value.string.map { (member.key, $0) } },
                uniquingKeysWith: { _, last in last })
        }
        adopted.defaultPolicy = root["defaultPolicy"]?.string ?? ""
        return adopted
    }

    func saveEnded(_ ended: EndedPods) throws {
        try write(
            endedPath,
            .make(
                ("version", .integer(AttachmentRecord.version)),
                ("pods", .object(ended.pods.sorted { $0.key < $1.key }.map { JSON.Member($0, json($1)) }))))
        unlink(endedSincePath)
    }

    /// Adds what is known of one pod, which costs the same however many there are.
    func addEnded(_ uid: String, _ pod: EndedPods.Ended) throws {
        let line = JSON.object([JSON.Member(uid, json(pod))]).text() + "\n"
        let file = open(endedSincePath, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o640)
        guard file >= 0 else {
            throw Failure(
                description: "\(endedSincePath) cannot be opened: \(String(cString: strerror(culvert_errno())))")
        }
        defer { close(file) }
        let bytes = Array(line.utf8)
        let count = CLinux.write(file, bytes, bytes.count)
        if count == bytes.count { return }
        // A part of a line at the end is not read. A part of one in the middle would take the next one with it.
        let code = count < 0 ? culvert_errno() : ENOSPC
        _ = CLinux.write(file, "\n", 1)
        throw Failure(description: "\(endedSincePath) cannot be written: \(String(cString: strerror(code)))")
    }

    private func json(_ pod: EndedPods.Ended) -> JSON {
        .make(
            ("addresses", .array(pod.addresses.map { "\($0)" }.sorted().map { .string($0) })),
            ("at", .integer(Int64(pod.at.timeIntervalSince1970))), ("hasNoConnections", .bool(pod.hasNoConnections)))
    }
    func loadEnded() -> EndedPods {
        var pods: [String: EndedPods.Ended] = [:]
        let since = FileManager.default.contents(atPath: endedSincePath)?.split(separator: UInt8(ascii: "\n")) ?? []
        let added = since.flatMap { (try? JSON.parse([UInt8]($0)))?.members ?? [] }
        for member in (read(endedPath)?["pods"]?.members ?? []) + added {
            let addresses = (member.value["addresses"]?.elements ?? []).compactMap {
                $0.string.flatMap { IPAddress($0) }
            }
            let at = Date(timeIntervalSince1970: TimeInterval(member.value["at"]?.integer ?? 0))
            pods[member.key] = .init(
                addresses: Set(addresses), at: at, hasNoConnections: member.value["hasNoConnections"]?.bool ?? false)
        }
        return EndedPods(pods: pods)
    }

    /// Policies that this node serves as a gateway.
    ///
    /// - Parameter answering: of those with targets, the ones whose targets answer.
    func saveServed(_ policies: [AssignedPolicy], answering: Set<EgressSpecification>) throws {
        try write(
            servedPath,
            .make(
                ("version", .integer(AttachmentRecord.version)), ("policies", AttachmentRecord.json(policies)),
                ("answering", AttachmentRecord.json(answering))))
    }
    func loadAnswering() -> Set<EgressSpecification> { AttachmentRecord.egresses(read(servedPath)?["answering"]) }
    func loadServed() -> [AssignedPolicy] { AttachmentRecord.assignment(read(servedPath)?["policies"]) ?? [] }

    /// - Parameter overlayAddress: this node's, as it was last known.
    func save(_ ids: AssignedIDs, overlayAddress: IPAddress?) throws {
        func numbers(_ map: AssignedIDs.Numbers) -> JSON {
            .object(map.sorted { $0.key < $1.key }.map { JSON.Member($0.key, .integer(Int64($0.value))) })
        }
        try write(
            idsPath,
            .make(
                ("tunnels", numbers(ids.tunnels)), ("tables", numbers(ids.tables)),
                ("nextHops", numbers(ids.nextHops)),
                ("overlayAddress", overlayAddress.map { .string("\($0)") })))
    }
    func loadOverlayAddress() -> IPAddress? { read(idsPath)?["overlayAddress"]?.string.flatMap { IPAddress($0) } }

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
    ///
    /// - Throws: where a file is there and cannot be read: nobody knows what its pod had.
    func load() throws -> (attachments: [Attachment], damaged: [String]) {
        var attachments: [Attachment] = []
        var damaged: [String] = []
        for name in names(attachmentsDirectory) {
            let path = "\(attachmentsDirectory)/\(name)"
            guard let bytes = FileManager.default.contents(atPath: path) else {
                if access(path, F_OK) != 0 { continue }
                throw Failure(
                    description:
                        "\(path) cannot be read by this user: the routing of its pod stays as it is; give the file to the helper's user, or remove it if the pod is gone"
                )
            }
            if let value = try? JSON.parse([UInt8](bytes)), let attachment = AttachmentRecord.attachment(value),
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
    func hasDeletion(_ id: String) -> Bool { AttachmentStore.isThere("\(deletedDirectory)/\(id)") }
    func forgetDeletion(_ id: String) { unlink("\(deletedDirectory)/\(id)") }

    private func names(_ directory: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).filter { !$0.hasPrefix(".") }.sorted()
    }

    /// Removes everything that the helper has written, and the installer's word on the chain.
    func removeAll() {
        unlink(ChainState.path(runDirectory: runDirectory))
        for name in names(attachmentsDirectory) { unlink("\(attachmentsDirectory)/\(name)") }
        for name in names(deletedDirectory) { unlink("\(deletedDirectory)/\(name)") }
        for name in names(publishedDirectory) { unlink("\(publishedDirectory)/\(name)") }
        unlink(idsPath)
        unlink(adoptedPath)
        unlink(endedPath)
        unlink(endedSincePath)
        unlink(servedPath)
    }
}

/// What attachments are assigned, as JSON text. Pods of the same policies have the same, which may name dozens of gateways.
private final class AssignmentTexts {
    private var known: [(policies: [AssignedPolicy], text: String)] = []
    /// Most nodes have pods of fewer sets of policies.
    private static let most = 16

    func text(_ policies: [AssignedPolicy]) -> String {
        if let place = known.firstIndex(where: { $0.policies == policies }) { return known[place].text }
        let text = AttachmentRecord.json(policies).text()
        known.insert((policies, text), at: 0)
        if known.count > Self.most { known.removeLast() }
        return text
    }
}

/// An attachment as JSON. What is new in a version is added to it, so that the release before reads it too.
enum AttachmentRecord {
    /// 2: `assignment`. 3: its candidates.
    static let version: Int64 = 3

    static func json(_ policies: [AssignedPolicy]) -> JSON {
        .array(
            policies.map { policy in
                var standing = "inForce"
                if case .kept = policy.standing { standing = "kept" }
                if case .held = policy.standing { standing = "held" }
                func texts(_ networks: [IPNetwork]) -> JSON { .array(networks.map { .string("\($0)") }) }
                // The release before reads one egress, and the names of the gateways.
                return .make(
                    ("source", .string(policy.source.rawValue)), ("name", .string(policy.name)),
                    ("destinations", texts(policy.destinations)), ("exclusions", texts(policy.exclusions)),
                    ("egress", json(policy.candidates.first?.egress.address ?? .defaultAddress)),
                    ("gateways", .array(policy.gateways.map { .string($0) })),
                    ("candidates", .array(policy.candidates.map(json))), ("spread", .string(policy.spread)),
                    ("failBack", .bool(policy.takesBack)), ("interval", .integer(Int64(policy.interval))),
                    ("multiplier", .integer(Int64(policy.multiplier))), ("standing", .string(standing)),
                    ("reason", .string(policy.reason)))
            })
    }

    /// nil where it is not such a list.
    static func assignment(_ value: JSON?) -> [AssignedPolicy]? {
        guard let elements = value?.elements else { return nil }
        var policies: [AssignedPolicy] = []
        for element in elements {
            guard let source = element["source"]?.string.flatMap({ EgressPolicy.Source(rawValue: $0) }),
                let name = element["name"]?.string
            else { return nil }
            func networks(_ key: String) -> [IPNetwork] {
                (element[key]?.elements ?? []).compactMap { $0.string.flatMap { IPNetwork($0) } }
            }
            guard let egress = egress(element["egress"]) else { return nil }
            let reason = element["reason"]?.string ?? ""
            let standing: AssignedPolicy.Standing =
                switch element["standing"]?.string {
                case "kept": .kept(reason)
                case "held": .held(reason)
                default: .inForce
                }
            policies.append(
                AssignedPolicy(
                    source: source, name: name, destinations: networks("destinations"),
                    exclusions: networks("exclusions"),
                    candidates: element["candidates"]?.elements?.compactMap(candidate)
                        ?? (element["gateways"]?.elements ?? []).compactMap(\.string).map {
                            GatewayCandidate(node: $0, egress: .init(egress))
                        },
                    spread: element["spread"]?.string ?? "", takesBack: element["failBack"]?.bool ?? false,
                    interval: Int(clamping: element["interval"]?.integer ?? Int64(HealthChecks().interval)),
                    multiplier: Int(clamping: element["multiplier"]?.integer ?? Int64(HealthChecks().multiplier)),
                    standing: standing))
        }
        return policies
    }

    private static func json(_ egress: EgressPolicy.Egress) -> JSON {
        switch egress {
        case .defaultAddress: .make(("kind", .string("default")))
        case .address(let address): .make(("kind", .string("address")), ("value", .string("\(address)")))
        case .interface(let name): .make(("kind", .string("interface")), ("value", .string(name)))
        case .untranslated: .make(("kind", .string("untranslated")))
        }
    }

    private static func egress(_ value: JSON?) -> EgressPolicy.Egress? {
        let text = value?["value"]?.string ?? ""
        switch value?["kind"]?.string {
        case "default": return .defaultAddress
        case "address": return IPAddress(text).map { .address($0) }
        case "interface": return .interface(text)
        case "untranslated": return .untranslated
        default: return nil
        }
    }

    private static func json(_ candidate: GatewayCandidate) -> JSON {
        .make(
            ("node", .string(candidate.node)), ("egress", json(candidate.egress.address)),
            ("targets", .array(candidate.egress.targets.map { .string("\($0)") })))
    }

    private static func candidate(_ value: JSON) -> GatewayCandidate? {
        guard let node = value["node"]?.string, let address = egress(value["egress"]) else { return nil }
        let targets = (value["targets"]?.elements ?? []).compactMap { $0.string.flatMap { HealthTarget($0) } }
        return GatewayCandidate(node: node, egress: .init(address, targets: targets))
    }

    static func json(_ egresses: Set<EgressSpecification>) -> JSON {
        .array(
            egresses.sorted { $0.text < $1.text }.map { egress in
                .make(
                    ("egress", json(egress.address)), ("targets", .array(egress.targets.map { .string("\($0)") })))
            })
    }

    /// What makes no sense is left out.
    static func egresses(_ value: JSON?) -> Set<EgressSpecification> {
        Set(
            (value?.elements ?? []).compactMap { element in
                guard let address = egress(element["egress"]) else { return nil }
                let texts = element["targets"]?.elements?.compactMap(\.string) ?? []
                let targets = texts.compactMap { HealthTarget($0) }
                return targets.count == texts.count ? EgressSpecification(address, targets: targets) : nil
            })
    }

    /// - Parameter assignment: with what it is assigned.
    static func json(_ attachment: Attachment, assignment: Bool = true) -> JSON {
        func map(_ pairs: [String: String]) -> JSON {
            .strings(pairs.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
        }
        return .make(
            ("containerID", .string(attachment.containerID)), ("ifname", .string(attachment.interfaceName)),
            ("network", .string(attachment.network)), ("namespace", .string(attachment.podNamespace)),
            ("name", .string(attachment.podName)), ("uid", .string(attachment.podUID)),
            ("addresses", .array(attachment.addresses.map { .string($0.description) })),
            // The release before knows the service account by the label that Cilium derives from it.
            (
                "labels",
                map(
                    attachment.serviceAccount.isEmpty
                        ? attachment.labels
                        : attachment.labels.merging([DerivedLabels.serviceAccount: attachment.serviceAccount]) { $1 })
            ), ("serviceAccount", .string(attachment.serviceAccount)),
            ("grantedAnnotation", attachment.grantedAnnotation.map { .string($0) }),
            ("formerOwners", attachment.formerOwners.map { .array($0.sorted().map { .string($0) }) }),
            ("annotations", map(attachment.annotations)), ("annotatedByPod", .bool(attachment.isAnnotatedByPod)),
            ("defaultPolicy", .string(attachment.defaultPolicy)),
            (
                "podRoutes",
                .object(
                    attachment.podRoutes.sorted { $0.key < $1.key }.map {
                        JSON.Member("\($0.key)", .integer(Int64($0.value)))
                    })
            ), ("hostIndex", .integer(Int64(attachment.hostIndex))), ("hostName", .string(attachment.hostName)),
            ("version", .integer(version)),
            ("assignment", assignment ? attachment.assignment.map { json($0) } : nil))
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
            labels: map("labels").filter { !DerivedLabels.isDerived($0.key) }, annotations: map("annotations"),
            defaultPolicy: text("defaultPolicy"), hostIndex: Int32(clamping: value["hostIndex"]?.integer ?? 0),
            hostName: text("hostName"))
        attachment.serviceAccount =
            value["serviceAccount"]?.string ?? value["labels"]?[DerivedLabels.serviceAccount]?.string ?? ""
        attachment.grantedAnnotation = value["grantedAnnotation"]?.string
        attachment.isAnnotatedByPod = value["annotatedByPod"]?.bool ?? false
        attachment.formerOwners = (value["formerOwners"]?.elements).map { Set($0.compactMap(\.string)) }
        attachment.assignment = assignment(value["assignment"])
        for member in value["podRoutes"]?.members ?? [] {
            if let network = IPNetwork(member.key), let mtu = member.value.integer {
                attachment.podRoutes[network] = Int(mtu)
            }
        }
        return attachment
    }
}

import CLinux
import Foundation
import Model

/// The inventory of a directory of manifests. A file that is bad keeps its last good content in force, and is
/// reported.
public struct FileInventory: Sendable {
    /// Files that are read: these endings, not hidden.
    static let endings = [".yaml", ".yml", ".json"]
    /// The most bytes that a file may have.
    static let maximumSize = 64 * 1024 * 1024

    public let directory: String
    private var lastGood: [String: [ManifestObject]] = [:]
    /// What was read, by file, so that an unchanged file is not parsed again.
    private var contents: [String: (signature: Signature, problems: [InventoryProblem])] = [:]

    private struct Signature: Equatable {
        let inode: UInt64
        let size: Int64
        let seconds: Int
        let nanoseconds: Int
    }

    public init(directory: String) { self.directory = directory }

    /// Reads the directory again.
    public mutating func read() -> Inventory {
        var problems: [InventoryProblem] = []
        guard let names = try? FileManager.default.contentsOfDirectory(atPath: directory) else {
            var inventory = FileInventory.assemble(lastGood)
            inventory.problems.insert(
                InventoryProblem(
                    file: directory,
                    message:
                        "the inventory directory cannot be read; put manifests there, or name another with --inventory"),
                at: 0)
            return inventory
        }
        let files = names.filter { name in
            !name.hasPrefix(".") && FileInventory.endings.contains { name.hasSuffix($0) }
        }.sorted()
        for gone in Set(lastGood.keys).subtracting(files) { lastGood[gone] = nil }
        for gone in Set(contents.keys).subtracting(files) { contents[gone] = nil }
        for file in files {
            let path = directory + "/" + file
            var status = stat()
            guard stat(path, &status) == 0 else { continue }
            let signature = Signature(
                inode: UInt64(status.st_ino), size: Int64(status.st_size), seconds: Int(status.st_mtim.tv_sec),
                nanoseconds: Int(status.st_mtim.tv_nsec))
            if let known = contents[file], known.signature == signature {
                problems += known.problems
                continue
            }
            let found = load(path: path, file: file, size: signature.size)
            contents[file] = (signature, found)
            problems += found
        }
        var inventory = FileInventory.assemble(lastGood)
        inventory.problems = problems + inventory.problems
        return inventory
    }

    private mutating func load(path: String, file: String, size: Int64) -> [InventoryProblem] {
        guard size <= Int64(FileInventory.maximumSize) else {
            return [InventoryProblem(file: file, message: "has more than \(FileInventory.maximumSize) bytes")]
        }
        guard let data = FileManager.default.contents(atPath: path) else {
            return [InventoryProblem(file: file, message: "cannot be read")]
        }
        guard let text = String(data: data, encoding: .utf8) else {
            return [InventoryProblem(file: file, message: "is not UTF-8")]
        }
        switch Manifests.parse(text, file: file) {
        case .success(let objects):
            lastGood[file] = objects
            return []
        case .failure(let problems):
            return lastGood[file] == nil
                ? problems.list
                : problems.list.map {
                    InventoryProblem(
                        file: $0.file, document: $0.document, field: $0.field,
                        message: $0.message + " (the file's last good content stays in force)")
                }
        }
    }

    /// All objects of all files as one inventory. Of an object that is there twice the first, by file name, counts.
    static func assemble(_ files: [String: [ManifestObject]]) -> Inventory {
        var inventory = Inventory()
        var ciliumNodes: [(String, [IPAddress], [IPAddress], [IPAddress], [IPNetwork])] = []
        var published: [Node] = []
        var seen: [String: String] = [:]
        func isNew(_ key: String, _ file: String) -> Bool {
            if let first = seen[key] {
                inventory.problems.append(
                    InventoryProblem(file: file, message: "\(key) is in \(first) already, which counts"))
                return false
            }
            seen[key] = file
            return true
        }
        for (file, objects) in files.sorted(by: { $0.key < $1.key }) {
            for object in objects {
                switch object {
                case .node(let node):
                    if isNew("Node \(node.name)", file) { inventory.nodes[node.name] = node }
                case .publishedNode(let node):
                    if isNew("published Node \(node.name)", file) { published.append(node) }
                case .ciliumNode(let name, let internals, let externals, let overlay, let cidrs):
                    if isNew("CiliumNode \(name)", file) {
                        ciliumNodes.append((name, internals, externals, overlay, cidrs))
                    }
                case .pod(let pod):
                    if isNew("Pod \(pod.namespace)/\(pod.name)", file) { inventory.pods.append(pod) }
                case .namespace(let name, let labels):
                    if isNew("Namespace \(name)", file) { inventory.namespaces[name] = labels }
                case .policy(let policy):
                    if isNew("\(policy.source.rawValue) \(policy.name)", file) { inventory.policies.append(policy) }
                case .peer(let peer):
                    if isNew("Peer \(peer.name)", file) { inventory.peers.append(peer) }
                case .ciliumConfig(let data):
                    if isNew("ConfigMap cilium-config", file) { inventory.cilium = CiliumSettings(data: data) }
                }
            }
        }
        for part in published {
            guard var node = inventory.nodes[part.name] else {
                inventory.nodes[part.name] = part
                continue
            }
            node.labels.merge(part.labels) { _, new in new }
            node.annotations.merge(part.annotations) { _, new in new }
            node.internalIPs = Manifests.unique(part.internalIPs + node.internalIPs)
            node.overlayAddresses = Manifests.unique(part.overlayAddresses + node.overlayAddresses)
            inventory.nodes[part.name] = node
        }
        for (name, internals, externals, overlay, cidrs) in ciliumNodes {
            var node = inventory.nodes[name] ?? Node(name: name)
            node.internalIPs = Manifests.unique(node.internalIPs + internals)
            node.externalIPs = Manifests.unique(node.externalIPs + externals)
            node.overlayAddresses = Manifests.unique(node.overlayAddresses + overlay)
            // What Cilium's own IPAM says goes before the Node.
            if !cidrs.isEmpty { node.podCIDRs = Manifests.unique(cidrs) }
            inventory.nodes[name] = node
        }
        for (name, node) in inventory.nodes {
            inventory.nodes[name]?.overlayAddresses = Manifests.unique(
                node.overlayAddresses + Manifests.lastOverlayAddress(node))
        }
        for name in inventory.nodes.keys.sorted() {
            guard let node = inventory.nodes[name] else { continue }
            let (mesh, problems) = MeshAnnotationReader.read(node)
            inventory.nodes[name]?.mesh = mesh
            inventory.problems += problems
        }
        inventory.peers.sort { $0.name < $1.name }
        inventory.pods.sort { ($0.namespace, $0.name) < ($1.namespace, $1.name) }
        inventory.policies.sort { $0.sortKey < $1.sortKey }
        return inventory
    }
}

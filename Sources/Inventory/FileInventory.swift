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
            var inventory = Inventory(assembling: lastGood)
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
        var inventory = Inventory(assembling: lastGood)
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
}

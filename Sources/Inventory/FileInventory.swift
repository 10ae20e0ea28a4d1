import CLinux
import FoundationEssentials
import Glibc
import Model

/// The inventory of a directory of manifests.
///
/// What cannot be read is never taken for empty. A file that is bad keeps its last good content in force, and is reported;
/// without such content the inventory is not known (`Inventory.unknown`), and so it is while the directory itself cannot
/// be read. A file that is gone is gone.
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
        /// Of the last change of content or mode: seconds and nanoseconds.
        let changed: [Int]
    }

    public init(directory: String) { self.directory = directory }

    /// Reads the directory again. A directory without manifests is an empty inventory.
    public mutating func read() -> Inventory {
        guard let files = manifests() else { return unreadable() }
        return read(files)
    }

    /// The same, but for a directory without manifests: nil then, and nothing is forgotten.
    public mutating func readUnlessEmpty() -> Inventory? {
        guard let files = manifests() else { return unreadable() }
        return files.isEmpty ? nil : read(files)
    }

    /// What was read last, of a directory that is not known at the moment.
    public func lastRead(unknown reason: String) -> Inventory {
        var inventory = Inventory(assembling: lastGood)
        inventory.unknown = [reason]
        return inventory
    }

    private func unreadable() -> Inventory {
        var reason = "it could be read only a moment later"
        if let handle = opendir(directory) {
            closedir(handle)
        } else {
            reason = String(cString: strerror(culvert_errno()))
        }
        let stays = lastGood.isEmpty ? "" : " (what was read last stays in force)"
        let problem = InventoryProblem(
            file: directory,
            message:
                "the inventory directory cannot be read: \(reason); put manifests there, or name another with --inventory\(stays)"
        )
        var inventory = lastRead(unknown: problem.description)
        inventory.problems.insert(problem, at: 0)
        return inventory
    }

    /// Names of the files, in order; nil where the directory cannot be read.
    private func manifests() -> [String]? {
        guard let names = try? FileManager.default.contentsOfDirectory(atPath: directory) else { return nil }
        return names.filter { name in
            !name.hasPrefix(".") && FileInventory.endings.contains { name.hasSuffix($0) }
        }.sorted()
    }

    private mutating func read(_ files: [String]) -> Inventory {
        for gone in Set(lastGood.keys).union(contents.keys).subtracting(files) { forget(gone) }
        var problems: [InventoryProblem] = []
        var unknown: [String] = []
        for file in files {
            let found = read(file)
            problems += found
            if lastGood[file] == nil, let problem = found.first { unknown.append("\(directory)/\(problem)") }
        }
        var inventory = Inventory(assembling: lastGood)
        inventory.problems = problems + inventory.problems
        inventory.unknown = unknown
        return inventory
    }

    private mutating func forget(_ file: String) {
        lastGood[file] = nil
        contents[file] = nil
    }

    /// - Returns: what is wrong with the file.
    private mutating func read(_ file: String) -> [InventoryProblem] {
        let path = directory + "/" + file
        var status = stat()
        guard stat(path, &status) == 0 else {
            let reason = String(cString: strerror(culvert_errno()))
            if lstat(path, &status) != 0 && culvert_errno() == ENOENT {
                // It went away since the directory was listed.
                forget(file)
                return []
            }
            contents[file] = nil
            return keeping(file, [InventoryProblem(file: file, message: "cannot be read: \(reason)")])
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            // No manifest ever was in it, and none will be.
            forget(file)
            lastGood[file] = []
            return [InventoryProblem(file: file, message: "is not a regular file and is ignored: rename or remove it")]
        }
        let signature = Signature(
            inode: UInt64(status.st_ino), size: Int64(status.st_size),
            changed: [
                Int(status.st_mtim.tv_sec), Int(status.st_mtim.tv_nsec), Int(status.st_ctim.tv_sec),
                Int(status.st_ctim.tv_nsec),
            ])
        if let known = contents[file], known.signature == signature { return known.problems }
        guard signature.size > Int64(FileInventory.maximumSize) || access(path, R_OK) == 0 else {
            let reason = String(cString: strerror(culvert_errno()))
            contents[file] = nil
            return keeping(file, [InventoryProblem(file: file, message: "cannot be read: \(reason)")])
        }
        let problems = keeping(file, load(path: path, file: file, size: signature.size))
        contents[file] = (signature, problems)
        return problems
    }

    /// The problems of a file, which say so where its last good content stays in force.
    private func keeping(_ file: String, _ problems: [InventoryProblem]) -> [InventoryProblem] {
        guard lastGood[file] != nil else { return problems }
        return problems.map {
            InventoryProblem(
                file: $0.file, document: $0.document, field: $0.field,
                message: $0.message + " (the file's last good content stays in force)")
        }
    }

    /// Takes the content of a file in where it is good.
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
        // Whoever writes a file in place begins by emptying it.
        guard text.utf8.contains(where: { $0 > 0x20 }) else {
            return [
                InventoryProblem(
                    file: file, message: "is empty: write manifests into it, or delete the file")
            ]
        }
        switch Manifests.parse(text, file: file) {
        case .success(let objects):
            lastGood[file] = objects
            return []
        case .failure(let problems): return problems.list
        }
    }
}

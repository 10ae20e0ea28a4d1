import CLinux
import Dispatch
import FoundationEssentials
import Glibc

/// The last inventory on disk: a list of manifests. It may hold preshared keys, so nobody else may read it.
public enum InventoryCache {
    /// Writes it on a thread that may wait for a disk, so that nobody who wants to know something of the inventory does.
    ///
    /// - Throws: where the file cannot be written.
    public static func write(_ objects: [ManifestObject], to path: String) async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            queue.async {
                continuation.resume(
                    with: Result {
                        try AtomicFile.write(ManifestWriter.list(objects), to: path, mode: 0o600, isSynced: true)
                    })
            }
        }
    }
    private static let queue = DispatchQueue(label: "culvert.inventory-cache", qos: .utility)

    /// Whether an object of this kind is in it. (The text is searched: thousands of objects are not read for it.)
    public static func has(_ kind: String, _ path: String) -> Bool {
        guard let data = FileManager.default.contents(atPath: path) else { return false }
        let sought = Array("\"kind\":\"\(kind)\"".utf8)
        return data.withUnsafeBytes { culvert_contains($0.baseAddress, $0.count, sought, sought.count) } == 1
    }

    /// nil where there is none, or where it is damaged.
    public static func read(_ path: String) -> (objects: [ManifestObject], written: Date)? {
        var status = stat()
        guard stat(path, &status) == 0, let data = FileManager.default.contents(atPath: path),
            case .success(let objects) = Manifests.parse(String(decoding: data, as: UTF8.self), file: path)
        else { return nil }
        return (objects, Date(timeIntervalSince1970: Double(status.st_mtim.tv_sec)))
    }
}

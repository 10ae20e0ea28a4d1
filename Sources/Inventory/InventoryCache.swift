import CLinux
import Foundation

/// The last inventory on disk: a list of manifests. It may hold preshared keys, so nobody else may read it.
public enum InventoryCache {
    public static func write(_ text: String, to path: String) throws(AtomicFile.Failure) {
        try AtomicFile.write(text, to: path, mode: 0o600, isSynced: true)
    }

    /// Whether an object of this kind is in it. (The text is searched: thousands of objects are not read for it.)
    public static func has(_ kind: String, _ path: String) -> Bool {
        guard let data = FileManager.default.contents(atPath: path) else { return false }
        return data.range(of: Data("\"kind\":\"\(kind)\"".utf8)) != nil
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

import CLinux
import Foundation

/// The last inventory on disk: a list of manifests. It may hold preshared keys, so nobody else may read it.
public enum InventoryCache {
    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    public static func write(_ text: String, to path: String) throws {
        let temporary = path + ".new"
        unlink(temporary)
        let file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard file >= 0 else {
            throw Failure(description: "\(temporary): \(String(cString: strerror(culvert_errno())))")
        }
        var code: Int32 = 0
        var text = text
        text.withUTF8 { bytes in
            var done = 0
            while done < bytes.count {
                let count = CLinux.write(file, bytes.baseAddress! + done, bytes.count - done)
                if count <= 0 {
                    code = count < 0 ? culvert_errno() : ENOSPC
                    break
                }
                done += count
            }
        }
        if code == 0 && fsync(file) != 0 { code = culvert_errno() }
        close(file)
        if code == 0 && rename(temporary, path) != 0 { code = culvert_errno() }
        guard code == 0 else {
            unlink(temporary)
            throw Failure(description: "\(path): \(String(cString: strerror(code)))")
        }
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

import CLinux
import FoundationEssentials
import Glibc

/// A file that holds a secret.
public enum SecretFile {
    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// - Throws: where it cannot be read, or where everybody can read it.
    public static func contents(_ path: String) throws(Failure) -> [UInt8] {
        var status = stat()
        guard stat(path, &status) == 0, let data = FileManager.default.contents(atPath: path) else {
            throw Failure(description: "\(path): cannot be read: \(String(cString: strerror(culvert_errno())))")
        }
        guard status.st_mode & 0o004 == 0 else {
            throw Failure(description: "\(path): holds a secret and can be read by everybody: chmod 600 \(path)")
        }
        return [UInt8](data)
    }
}

import CLinux
import Glibc

/// What could not be done with which file, and the remedy where one is known.
public struct InstallationFailure: Error, Equatable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
    /// - Parameter code: errno.
    init(_ path: String, _ what: String, _ code: Int32) {
        let reason = String(cString: strerror(code))
        let remedy =
            switch code {
            case EROFS: "; mount the directory writable"
            case EACCES, EPERM: "; run as uid 0 (no capability is needed), or give this user permission"
            case ENOSPC: "; the file system is full"
            default: ""
            }
        self.init("\(path) \(what): \(reason)\(remedy)")
    }
}

/// Reading and writing whole files, so that a reader or a crash sees the old file or the new one and never a part of one.
enum FileAccess {
    /// Bytes, above which a file is no configuration of a network.
    static let mostConfiguration = 4 << 20

    /// - Parameter followsLinks: else a symbolic link is ELOOP.
    /// - Throws: errno.
    static func read(_ path: String, most: Int, followsLinks: Bool = false) throws(Errno) -> (
        bytes: [UInt8], mode: UInt32
    ) {
        // Without O_NONBLOCK a named pipe would hold this program up.
        let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (followsLinks ? 0 : O_NOFOLLOW))
        guard file >= 0 else { throw Errno(code: culvert_errno()) }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0 else { throw Errno(code: culvert_errno()) }
        guard status.st_mode & S_IFMT == S_IFREG else { throw Errno(code: EINVAL) }
        guard status.st_size <= most else { throw Errno(code: EFBIG) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = Glibc.read(file, &buffer, buffer.count)
            if count < 0 {
                if culvert_errno() == EINTR { continue }
                throw Errno(code: culvert_errno())
            }
            if count == 0 { return (bytes, UInt32(status.st_mode) & 0o7777) }
            bytes += buffer[..<count]
            guard bytes.count <= most else { throw Errno(code: EFBIG) }
        }
    }
    struct Errno: Error { let code: Int32 }

    /// Makes a file that was not there, with every byte on the disk.
    static func create(_ path: String, _ bytes: [UInt8], mode: UInt32) throws(InstallationFailure) {
        let file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard file >= 0 else { throw InstallationFailure(path, "cannot be created", culvert_errno()) }
        var code: Int32 = 0
        var done = 0
        while code == 0 && done < bytes.count {
            let count = bytes[done...].withUnsafeBytes { Glibc.write(file, $0.baseAddress, $0.count) }
            if count > 0 { done += count } else { code = count < 0 ? culvert_errno() : ENOSPC }
            if code == EINTR { code = 0 }
        }
        if code == 0 && fchmod(file, mode_t(mode)) != 0 { code = culvert_errno() }
        if code == 0 && fsync(file) != 0 { code = culvert_errno() }
        close(file)
        guard code == 0 else {
            unlink(path)
            throw InstallationFailure(path, "cannot be written", code)
        }
    }

    /// Has the disk keep the names in a directory (fsync(2)).
    static func sync(directory: String) {
        let file = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard file >= 0 else { return }
        fsync(file)
        close(file)
    }

    /// Names in a directory, sorted; nil: it cannot be listed.
    static func names(_ directory: String) -> [String]? {
        guard let stream = opendir(directory) else { return nil }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { raw in
                String(decoding: raw.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted { ChainFileNames.precedes($0, $1) }
    }
}

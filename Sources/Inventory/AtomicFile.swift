import CLinux
import FoundationEssentials
import Glibc
import Model

/// Writing a file so that a crash leaves the old one or the new one: beside its place, and then renamed.
public enum AtomicFile {
    public struct Failure: Error, CustomStringConvertible {
        public let path: String
        /// errno
        public let code: Int32
        public var description: String { "\(path) cannot be written: \(String(cString: strerror(code)))" }
    }

    /// - Parameters:
    ///   - mode: whatever the umask is.
    ///   - isSynced: it must outlive a power failure.
    public static func write(_ text: String, to path: String, mode: mode_t, isSynced: Bool = false) throws(Failure) {
        try write(text, to: path, mode: mode, sync: isSynced ? { fsync($0) } : nil)
    }

    /// - Parameter sync: has the disk keep what was written to a file or a directory, as `fsync` does; nil: it need not.
    static func write(
        _ text: String, to path: String, mode: mode_t, sync: ((_ file: Int32) -> Int32)?
    ) throws(Failure) {
        let directory = PathText.directory(of: path)
        // The name is hidden, so that a program that lists the directory does not take it for one of its files.
        let temporary = directory + "/." + PathText.name(of: path)
        unlink(temporary)
        let file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw Failure(path: path, code: culvert_errno()) }
        let bytes = Array(text.utf8)
        var code: Int32 = 0
        var done = 0
        while code == 0 && done < bytes.count {
            let count = bytes[done...].withUnsafeBytes { CLinux.write(file, $0.baseAddress, $0.count) }
            if count > 0 { done += count } else { code = count < 0 ? culvert_errno() : ENOSPC }
        }
        if code == 0 && fchmod(file, mode) != 0 { code = culvert_errno() }
        if code == 0, let sync, sync(file) != 0 { code = culvert_errno() }
        close(file)
        if code == 0 && rename(temporary, path) != 0 { code = culvert_errno() }
        guard code == 0 else {
            unlink(temporary)
            throw Failure(path: path, code: code)
        }
        guard let sync else { return }
        // The new name is the directory's content, not the file's (fsync(2)).
        let parent = open(directory.isEmpty ? "." : directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard parent >= 0 else { throw Failure(path: path, code: culvert_errno()) }
        defer { close(parent) }
        if sync(parent) != 0 { throw Failure(path: path, code: culvert_errno()) }
    }
}

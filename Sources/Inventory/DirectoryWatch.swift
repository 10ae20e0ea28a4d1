import CLinux

/// Signals that something in a directory may have changed (inotify(7)).
public final class DirectoryWatch: Sendable {
    private let descriptor: Int32
    private let device: UInt64
    private let inode: UInt64

    public enum Outcome: Sendable, Equatable {
        case changed
        /// Nothing happened in the time given.
        case unchanged
        /// The directory itself was deleted, moved or unmounted: nothing more will be seen of what is at its path by now.
        case ended
    }

    /// nil where the directory cannot be watched, e.g. because it does not exist.
    public init?(_ directory: String) {
        // Before the watch begins: a directory that is replaced in between is taken for another one, and watched anew.
        var status = stat()
        guard stat(directory, &status) == 0 else { return nil }
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
        descriptor = culvert_watch_directory(directory)
        if descriptor < 0 { return nil }
    }
    deinit { close(descriptor) }

    /// Whether the directory that is watched is the one at this path: a symbolic link, or a parent directory, may lead to
    /// another one by now.
    public func isWatching(_ directory: String) -> Bool {
        var status = stat()
        return stat(directory, &status) == 0 && UInt64(status.st_dev) == device && UInt64(status.st_ino) == inode
    }

    /// Blocks until something changes, or `milliseconds` have passed.
    public func wait(milliseconds: Int32) -> Outcome {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, milliseconds) > 0 else { return .unchanged }
        var buffer = [UInt8](repeating: 0, count: 8192)
        let count = read(descriptor, &buffer, buffer.count)
        guard count > 0 else { return .unchanged }
        return buffer[0..<count].withUnsafeBytes { DirectoryWatch.hasEnded($0) } ? .ended : .changed
    }

    /// `IN_DELETE_SELF`, `IN_MOVE_SELF`, `IN_UNMOUNT` and `IN_IGNORED` of linux/inotify.h.
    private static let ends: UInt32 = 0x400 | 0x800 | 0x2000 | 0x8000

    /// Whether one of the events (`struct inotify_event`: wd, mask, cookie, len, name) is the last one.
    private static func hasEnded(_ events: UnsafeRawBufferPointer) -> Bool {
        var offset = 0
        while offset + 16 <= events.count {
            if events.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self) & ends != 0 { return true }
            offset += 16 + Int(events.loadUnaligned(fromByteOffset: offset + 12, as: UInt32.self))
        }
        return false
    }
}

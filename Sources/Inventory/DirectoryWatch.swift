import CLinux

/// Says when something in a directory may have changed (inotify(7)).
public final class DirectoryWatch: Sendable {
    private let descriptor: Int32

    /// nil where the directory cannot be watched, e.g. because it does not exist.
    public init?(_ directory: String) {
        descriptor = culvert_watch_directory(directory)
        if descriptor < 0 { return nil }
    }
    deinit { close(descriptor) }

    /// Blocks until something changes, or `milliseconds` have passed; true for the former.
    public func wait(milliseconds: Int32) -> Bool {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, milliseconds) > 0 else { return false }
        var buffer = [UInt8](repeating: 0, count: 8192)
        return read(descriptor, &buffer, buffer.count) > 0
    }
}

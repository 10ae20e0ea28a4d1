import CLinux

/// What is told to people beside a program's output.
public enum StandardError {
    /// Writes the text as it is. What cannot be written is lost.
    public static func write(_ text: String) {
        var rest = [UInt8](text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { CLinux.write(2, $0.baseAddress, $0.count) }
            if count < 0 && culvert_errno() == EINTR { continue }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }
}

import CLinux
import Glibc

/// The directories that the helper works in. They belong to root and to the helper's group, and what is made in them
/// belongs to that group too (the set-group-ID bit), so neither the helper nor the installer needs a capability.
public enum SharedDirectories {
    static let mode: mode_t = 0o2770
    /// Of a run directory that an administrator lets everybody search, so that a group of its own reaches `api.sock`
    /// (`chmod o+x`): that stays. A directory that somebody else has made with other bits than ours gets ours.
    static let openMode: mode_t = 0o2771
    static let inRunDirectory = ["attachments", "deleted", "published"]

    /// Makes the directories that are missing, and mends the mode and group of those that are there where this program may.
    ///
    /// - Parameter group: the helper's; nil: this program's own. To give files to another group than its own, the program
    ///   needs CAP_CHOWN.
    /// - Returns: what is not as it should be and could not be mended, with the remedy.
    public static func make(
        runDirectory: String, stateDirectory: String, group: gid_t? = nil
    ) throws(InstallationFailure) -> [String] {
        let group = group ?? getegid()
        var notes: [String] = []
        for path in [runDirectory] + inRunDirectory.map({ runDirectory + "/" + $0 }) + [stateDirectory] {
            if let note = try make(path, group, mayBeOpen: path == runDirectory) { notes.append(note) }
        }
        return notes
    }

    private static func make(
        _ path: String, _ group: gid_t, mayBeOpen: Bool
    ) throws(InstallationFailure) -> String? {
        // Until the mode is set, nobody else may enter.
        if mkdir(path, 0o700) != 0 && culvert_errno() != EEXIST {
            throw InstallationFailure(path, "cannot be created", culvert_errno())
        }
        let file = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard file >= 0 else {
            throw InstallationFailure(path, "is not a directory that can be opened", culvert_errno())
        }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0 else { throw InstallationFailure(path, "cannot be inspected", culvert_errno()) }
        if status.st_gid != group { _ = fchown(file, uid_t.max, group) }
        let wanted = mayBeOpen && status.st_mode & 0o7777 == openMode ? openMode : mode
        if status.st_mode & 0o7777 != wanted { _ = fchmod(file, wanted) }
        guard fstat(file, &status) == 0 else { throw InstallationFailure(path, "cannot be inspected", culvert_errno()) }
        if status.st_gid == group && status.st_mode & 0o7777 == wanted { return nil }
        let bits = String(status.st_mode & 0o7777, radix: 8)
        return
            "\(path) has group \(status.st_gid) and mode \(bits) instead of group \(group) and mode 2770: chgrp \(group) \(path); chmod 2770 \(path)"
    }
}

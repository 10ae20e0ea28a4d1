import ArgumentParser
import CLinux
import FoundationEssentials
import Glibc
import Logging
import Model

/// A separate group for `api.sock`. Its members may read the API. Unlike members of the helper's group, they may not
/// write to the run directory.
struct APIGroup: Sendable {
    let name: String
    let id: gid_t

    /// - Parameter text: a name or a number.
    /// - Throws: where there is no such group, or this process could not give it a file.
    init(_ text: String) throws {
        name = text
        if let number = gid_t(text) {
            id = number
        } else if let entry = getgrnam(text) {
            id = entry.pointee.gr_gid
        } else {
            throw ValidationError("the group \(text) of api.sock does not exist: groupadd -r \(text)")
        }
        var groups = [gid_t](repeating: 0, count: 65536)
        let count = max(0, Int(getgroups(Int32(groups.count), &groups)))
        guard geteuid() == 0 || getegid() == id || groups.prefix(count).contains(id) else {
            throw ValidationError(
                "this process is not in the group \(text), so it cannot give api.sock to that group: make the helper's user a member (usermod -aG \(text) culvert), or in Kubernetes name the group in supplementalGroups"
            )
        }
    }

    /// Gives it the socket.
    func take(_ socket: String, logger: Logger) {
        guard chown(socket, uid_t.max, id) == 0, chmod(socket, 0o660) == 0 else {
            let reason = String(cString: strerror(culvert_errno()))
            return logger.error(
                "the group of api.sock cannot be set: only the helper's user can open the socket (under systemd, a drop-in of culvertd.service must allow it: SystemCallFilter=chown fchownat)",
                metadata: ["group": "\(name)", "error": "\(reason)"])
        }
        let directory = PathText.directory(of: socket)
        var status = stat()
        if stat(directory, &status) == 0, status.st_gid != id, status.st_mode & 0o001 == 0 {
            logger.warning(
                "the members of the group of api.sock cannot reach the socket: others have no search permission on the run directory (chmod o+x)",
                metadata: ["group": "\(name)", "directory": "\(directory)"])
        }
    }
}

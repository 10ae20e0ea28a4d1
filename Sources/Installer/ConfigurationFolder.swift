import CLinux
import Glibc

/// A directory of network configurations on disk: reads it as a value, and carries changes out.
public final class ConfigurationFolder {
    public let path: String
    private let lock: Int32
    private var temporaries = 0

    /// Takes the directory's lock (flock(2)), so that no two installers work on it, and removes what one that was killed has
    /// left half written. nil: another one has the lock.
    public init?(_ path: String) throws(InstallationFailure) {
        self.path = path
        lock = culvert_lock_directory(path)
        if lock == -EWOULDBLOCK { return nil }
        guard lock >= 0 else { throw InstallationFailure(path, "cannot be opened", -lock) }
        for folder in [path] + networkFolders() {
            for name in FileAccess.names(folder) ?? []
            where name.hasPrefix(ChainFileNames.temporaryPrefix) && name.hasSuffix(ChainFileNames.temporarySuffix) {
                if folder == path { try putBack(name) }
                unlink(folder + "/" + name)
            }
        }
    }
    deinit { if lock >= 0 { close(lock) } }

    /// The directory that is worked on is not the one at its path any more. Where it is mounted into a container, nothing
    /// but a new mount leads to the new one.
    public var isReplaced: Bool {
        var own = stat()
        var there = stat()
        guard fstat(lock, &own) == 0, stat(path, &there) == 0 else { return true }
        return own.st_nlink == 0 || own.st_ino != there.st_ino || own.st_dev != there.st_dev
    }

    /// An installer that was killed between the exchange of two files and the look at what came out (`replace`) leaves the
    /// network's own file under a temporary name. Where that is newer than what our entry was added to, it goes back.
    private func putBack(_ temporary: String) throws(InstallationFailure) {
        guard let lost = try? FileAccess.read(path + "/" + temporary, most: FileAccess.mostConfiguration),
            let list = try? ConfigurationListFile(lost.bytes, fileName: "x.conflist"), list.markedEntries == 0
        else { return }
        for file in try read().files where ChainFileNames.isRead(file.name) {
            guard !ChainFileNames.ownLists.contains(file.name), case .regular(let bytes, _) = file.body,
                let present = try? ConfigurationListFile(bytes, fileName: file.name), present.network == list.network,
                present.markedEntries > 0, present.withoutMarkedEntries() != lost.bytes
            else { continue }
            _ = try replace(file.name, expected: bytes, lost.bytes, mode: lost.mode)
            return
        }
    }

    /// Directories of networks that have something of ours.
    private func networkFolders() -> [String] {
        (FileAccess.names(path) ?? []).filter(ConfigurationListFile.isNetworkName).map { path + "/" + $0 }
            .filter { folder in
                access(folder + "/" + ChainFileNames.dropIn, F_OK) == 0
                    || access(folder + "/" + ChainFileNames.madeDirectory, F_OK) == 0
            }
    }

    /// What is there now.
    public func read() throws(InstallationFailure) -> DirectoryContent {
        guard let names = FileAccess.names(path) else {
            throw InstallationFailure(path, "cannot be listed", culvert_errno())
        }
        var files: [DirectoryContent.File] = []
        var dropIns: [String: [UInt8]] = [:]
        for name in names {
            let file = path + "/" + name
            if ConfigurationListFile.isNetworkName(name),
                let body = try? FileAccess.read(
                    file + "/" + ChainFileNames.dropIn, most: FileAccess.mostConfiguration)
            {
                dropIns[name] = body.bytes
            }
            guard ChainFileNames.isRead(name) || ChainFileNames.isPutAside(name) else { continue }
            if let body = ConfigurationFolder.body(file) { files.append(.init(name, body)) }
        }
        return DirectoryContent(files: files, dropIns: dropIns)
    }

    /// nil: it is a directory, or has gone.
    private static func body(_ path: String) -> DirectoryContent.Body? {
        do throws(FileAccess.Errno) {
            let (bytes, mode) = try FileAccess.read(path, most: FileAccess.mostConfiguration)
            return .regular(bytes, mode: mode)
        } catch {
            var status = stat()
            if error.code == ENOENT || (lstat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR) { return nil }
            if error.code == ELOOP,
                let body = try? FileAccess.read(path, most: FileAccess.mostConfiguration, followsLinks: true)
            {
                return .link(body.bytes)
            }
            return .unreadable(
                error.code == EINVAL
                    ? "it is not a regular file"
                    : error.code == EFBIG ? "it is too large" : String(cString: strerror(error.code)))
        }
    }

    /// Carries one change out. False: the directory is not any more what the change was chosen for; nothing was changed.
    public func apply(_ change: DirectoryChange) throws(InstallationFailure) -> Bool {
        switch change {
        case .write(let name, let bytes, let mode):
            try put(bytes, mode: mode, in: path, as: name)
        case .replace(let name, let expected, let bytes, let mode):
            return try replace(name, expected: expected, bytes, mode: mode)
        case .remove(let name):
            try remove(path + "/" + name)
            FileAccess.sync(directory: path)
        case .writeDropIn(let network, let bytes):
            let folder = path + "/" + network
            if mkdir(folder, 0o755) == 0 {
                // Whatever the umask is: a runtime that is not root reads it too.
                chmod(folder, 0o755)
                try FileAccess.create(folder + "/" + ChainFileNames.madeDirectory, [], mode: 0o644)
            } else if culvert_errno() != EEXIST {
                throw InstallationFailure(folder, "cannot be created", culvert_errno())
            }
            try put(bytes, mode: 0o644, in: folder, as: ChainFileNames.dropIn)
            try announce()
        case .removeDropIn(let network):
            let folder = path + "/" + network
            try remove(folder + "/" + ChainFileNames.dropIn)
            if access(folder + "/" + ChainFileNames.madeDirectory, F_OK) == 0 {
                try remove(folder + "/" + ChainFileNames.madeDirectory)
                rmdir(folder)
            }
            try announce()
        }
        return true
    }

    private func temporary(in folder: String) -> String {
        temporaries += 1
        return "\(folder)/\(ChainFileNames.temporaryPrefix)\(getpid())-\(temporaries)\(ChainFileNames.temporarySuffix)"
    }

    private func put(_ bytes: [UInt8], mode: UInt32, in folder: String, as name: String) throws(InstallationFailure) {
        let beside = temporary(in: folder)
        try FileAccess.create(beside, bytes, mode: mode)
        guard rename(beside, folder + "/" + name) == 0 else {
            let code = culvert_errno()
            unlink(beside)
            throw InstallationFailure(folder + "/" + name, "cannot be replaced", code)
        }
        FileAccess.sync(directory: folder)
    }

    private func remove(_ file: String) throws(InstallationFailure) {
        guard unlink(file) == 0 || culvert_errno() == ENOENT else {
            throw InstallationFailure(file, "cannot be removed", culvert_errno())
        }
    }

    /// Replaces a file that other programs write too. A plain `rename` would destroy what another program has written
    /// since the file was read. So the two files are exchanged, and the one that comes out is checked. If it is newer
    /// than expected, it is put back.
    private func replace(
        _ name: String, expected: [UInt8], _ bytes: [UInt8], mode: UInt32
    ) throws(InstallationFailure) -> Bool {
        let file = path + "/" + name
        func content(_ path: String) -> [UInt8]? {
            (try? FileAccess.read(path, most: FileAccess.mostConfiguration))?.bytes
        }
        guard content(file) == expected else { return false }
        let beside = temporary(in: path)
        try FileAccess.create(beside, bytes, mode: mode)
        defer { unlink(beside) }
        /// What this program expects to be in the place of the file.
        var believed: [UInt8]? = expected
        var isReplaced = false
        // More than one round only while somebody writes between two system calls.
        for round in 0..<100 {
            let putting = content(beside)
            let result = culvert_exchange_files(beside, file)
            if result == -EINVAL && round == 0 {
                // This file system cannot exchange files: the gap between looking and renaming is as small as it can be.
                guard content(file) == expected else { return false }
                guard rename(beside, file) == 0 else {
                    throw InstallationFailure(file, "cannot be replaced", culvert_errno())
                }
                isReplaced = true
                break
            }
            if result == -ENOENT { return false }
            guard result == 0 else { throw InstallationFailure(file, "cannot be replaced", -result) }
            if content(beside) == believed {
                isReplaced = round == 0
                break
            }
            // What came out is newer than what was known: the next round puts it back into its place.
            believed = putting
        }
        FileAccess.sync(directory: path)
        return isReplaced
    }

    /// containerd and CRI-O watch this directory and not the networks' own: a file that comes and goes has them read again.
    private func announce() throws(InstallationFailure) {
        let name = temporary(in: path)
        try FileAccess.create(name, [], mode: 0o600)
        unlink(name)
        FileAccess.sync(directory: path)
    }
}

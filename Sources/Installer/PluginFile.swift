import CLinux
import Glibc

/// The plugin's program in the runtime's plugin directory.
public struct PluginFile: Sendable {
    public let directory: String
    public var path: String { directory + "/" + PluginEntry.type }
    /// Bytes, above which a file is no plugin of ours (a debug build has 3 MiB).
    private static let most = 64 << 20
    /// Stands in every build of the plugin: its default for `socket`.
    private static let trait = Array("/run/culvert/cni.sock".utf8)

    public init(directory: String) { self.directory = directory }

    public enum Outcome: Equatable, Sendable { case written, unchanged }

    /// Puts the program in its place, also while the one that is there is being executed: containers that start see the old
    /// program or the new one.
    ///
    /// - Parameter source: the program.
    public func install(from source: String) throws(InstallationFailure) -> Outcome {
        let program: [UInt8]
        do throws(FileAccess.Errno) {
            program = try FileAccess.read(source, most: PluginFile.most, followsLinks: true).bytes
        } catch {
            throw InstallationFailure(
                "\(source), the plugin, cannot be read: \(String(cString: strerror(error.code))); --plugin names its file"
            )
        }
        guard PluginFile.isPlugin(program) else {
            throw InstallationFailure("\(source) is not Culvert's plugin; --plugin names its file")
        }
        var status = stat()
        guard stat(directory, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
            throw InstallationFailure(
                "\(directory) is not a directory; --bin-dir names the directory where the runtime looks for plugins")
        }
        sweep()
        if lstat(path, &status) == 0 {
            guard let present = try? FileAccess.read(path, most: PluginFile.most), PluginFile.isPlugin(present.bytes)
            else {
                throw InstallationFailure("\(path) is there and is not Culvert's plugin; move it away")
            }
            if present.bytes == program && present.mode & 0o111 == 0o111 { return .unchanged }
        }
        let beside = "\(directory)/\(ChainFileNames.temporaryPrefix)\(getpid())\(ChainFileNames.temporarySuffix)"
        unlink(beside)
        try FileAccess.create(beside, program, mode: 0o755)
        guard rename(beside, path) == 0 else {
            let code = culvert_errno()
            unlink(beside)
            throw InstallationFailure(path, "cannot be replaced", code)
        }
        FileAccess.sync(directory: directory)
        return .written
    }

    /// Removes the program. False: there is none, or it is not Culvert's.
    public func remove() throws(InstallationFailure) -> Bool {
        sweep()
        guard let present = try? FileAccess.read(path, most: PluginFile.most), PluginFile.isPlugin(present.bytes) else {
            return false
        }
        guard unlink(path) == 0 else { throw InstallationFailure(path, "cannot be removed", culvert_errno()) }
        FileAccess.sync(directory: directory)
        return true
    }

    /// What an installer that was killed has left half written.
    private func sweep() {
        for name in FileAccess.names(directory) ?? []
        where name.hasPrefix(ChainFileNames.temporaryPrefix) && name.hasSuffix(ChainFileNames.temporarySuffix) {
            unlink(directory + "/" + name)
        }
    }

    static func isPlugin(_ program: [UInt8]) -> Bool {
        program.starts(with: [0x7F, 0x45, 0x4C, 0x46])
            && culvert_find(program, program.count, PluginFile.trait, PluginFile.trait.count) >= 0
    }
}

import CLinux
import FoundationEssentials
import Jansson
import Model

/// `chained.json` in the state directory: the installer writes it, the helper reads it. It outlives restarts and reboots;
/// `uninstall` and `cleanup` remove it.
public enum ChainRecordFile {
    private static func path(_ stateDirectory: String) -> String { stateDirectory + "/chained.json" }

    /// nil: nothing is known.
    public static func read(_ stateDirectory: String) -> ChainRecord? {
        guard let data = FileManager.default.contents(atPath: path(stateDirectory)), data.count < 4096,
            let value = try? JSON.parse([UInt8](data))
        else { return nil }
        return ChainRecord(value)
    }

    /// Keeps a record where there is none. The time of one that is there stays, as the first time counts.
    ///
    /// - Throws: where the file cannot be written.
    public static func keep(_ record: ChainRecord, _ stateDirectory: String) throws {
        var wanted = record
        if let before = read(stateDirectory) {
            wanted = before
            wanted.allowsWithoutHelper = before.allowsWithoutHelper || record.allowsWithoutHelper
            if wanted == before { return }
        }
        // The directory gives the file the helper's group.
        try AtomicFile.write(
            wanted.json.text(indent: 2) + "\n", to: path(stateDirectory), mode: 0o640, isSynced: true)
    }

    /// - Throws: where it is there and cannot be removed.
    public static func remove(_ stateDirectory: String) throws {
        guard unlink(path(stateDirectory)) != 0 else { return }
        let code = culvert_errno()
        guard code == ENOENT || code == ENOTDIR else {
            throw AtomicFile.Failure(path: path(stateDirectory), code: code)
        }
    }
}

import CLinux
import Foundation
import Jansson
import Testing

@testable import PluginVerbs

/// A DEL without a helper: root writes into a directory that the helper's group may write to.
struct DeletionRecordTests {
    /// A run directory with `deleted/` in it, and a file that nobody may touch.
    final class Folder {
        let path = NSTemporaryDirectory() + "culvert-deleted-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        var deleted: String { path + "/deleted" }
        var victim: String { path + "/victim" }
        var record: String { deleted + "/c1_eth0" }
        init() throws {
            try FileManager.default.createDirectory(atPath: deleted, withIntermediateDirectories: true)
            try "precious".write(toFile: victim, atomically: false, encoding: .utf8)
        }
        deinit { try? FileManager.default.removeItem(atPath: path) }
        func names(_ directory: String) -> [String]? { try? FileManager.default.contentsOfDirectory(atPath: directory) }
        func text(_ file: String) -> String? { try? String(contentsOfFile: file, encoding: .utf8) }

        func delete() -> Plugin.Outcome {
            let environment = [
                "CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_NETNS": "", "CNI_IFNAME": "eth0", "CNI_ARGS": "",
                "CNI_PATH": "/opt/cni/bin",
            ]
            let stdin = "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"socket\":\"\(path)/cni.sock\"}"
            return Plugin.run(variable: { environment[$0] }, stdin: { _ in Array(stdin.utf8) })
        }
        func mode(_ file: String) -> mode_t {
            var status = stat()
            return lstat(file, &status) == 0 ? status.st_mode : 0
        }
    }

    @Test func theRecordIsWrittenForTheHelpersGroup() throws {
        let folder = try Folder()
        #expect(folder.delete().exitCode == 0)
        let record = try JSON.parse([UInt8]((folder.text(folder.record) ?? "").utf8))
        #expect(record["containerID"]?.string == "c1", "\(record.text())")
        #expect(folder.mode(folder.record) == S_IFREG | 0o640)
        #expect(folder.names(folder.deleted) == ["c1_eth0"])
    }

    @Test func aLinkThatWaitsUnderTheTemporaryNameIsNotFollowed() throws {
        let folder = try Folder()
        for name in [".\(getpid())", ".\(getpid()).0", ".\(getpid()).1"] {
            symlink(folder.victim, "\(folder.deleted)/\(name)")
        }
        #expect(folder.delete().exitCode == 0)
        #expect(folder.text(folder.victim) == "precious")
        #expect(folder.mode(folder.record) == S_IFREG | 0o640)
    }

    @Test func aHardLinkThatWaitsUnderTheTemporaryNameIsNotWrittenTo() throws {
        let folder = try Folder()
        for name in [".\(getpid())", ".\(getpid()).0"] { link(folder.victim, "\(folder.deleted)/\(name)") }
        #expect(folder.delete().exitCode == 0)
        #expect(folder.text(folder.victim) == "precious")
    }

    @Test func aLinkInPlaceOfTheRecordIsReplaced() throws {
        let folder = try Folder()
        symlink(folder.victim, folder.record)
        #expect(folder.delete().exitCode == 0)
        #expect(folder.text(folder.victim) == "precious")
        #expect(folder.mode(folder.record) & S_IFMT == S_IFREG)
    }

    @Test func aLinkInPlaceOfTheDirectoryIsRefused() throws {
        let folder = try Folder()
        let other = folder.path + "/other"
        try FileManager.default.createDirectory(atPath: other, withIntermediateDirectories: false)
        try FileManager.default.removeItem(atPath: folder.deleted)
        symlink(other, folder.deleted)
        let outcome = folder.delete()
        #expect(outcome.exitCode == 1 && outcome.output.contains("cannot be recorded"), "\(outcome.output)")
        #expect(folder.names(other) == [])
    }

    @Test func whereNoHelperEverRanThereIsNothingToRecord() throws {
        let folder = try Folder()
        try FileManager.default.removeItem(atPath: folder.deleted)
        #expect(folder.delete().exitCode == 0)
        #expect(folder.mode(folder.deleted) == 0)
    }
}

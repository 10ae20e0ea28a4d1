import CLinux
import Foundation
import Testing

@testable import Inventory

struct AtomicFileTests {
    /// After a rename the old name may come back with a power failure, until the directory is on the disk too.
    @Test func theDirectoryIsKeptAfterTheFile() throws {
        let directory = NSTemporaryDirectory() + "culvert-atomic-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var kept: [mode_t] = []
        var wasThere: [Bool] = []
        try AtomicFile.write("text", to: directory + "/file", mode: 0o600) { file in
            var status = stat()
            fstat(file, &status)
            kept.append(status.st_mode & S_IFMT)
            wasThere.append(access(directory + "/file", F_OK) == 0)
            return 0
        }
        #expect(kept == [S_IFREG, S_IFDIR])
        #expect(wasThere == [false, true])
        #expect(try String(contentsOfFile: directory + "/file", encoding: .utf8) == "text")
    }

    @Test func aDirectoryThatCannotBeKeptIsAnError() throws {
        let directory = NSTemporaryDirectory() + "culvert-atomic-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        #expect(throws: AtomicFile.Failure.self) {
            try AtomicFile.write("text", to: directory + "/file", mode: 0o600) { file in
                var status = stat()
                fstat(file, &status)
                return status.st_mode & S_IFMT == S_IFDIR ? -1 : 0
            }
        }
    }
}

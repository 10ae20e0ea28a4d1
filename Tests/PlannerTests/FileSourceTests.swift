import Foundation
import Model
import TestSupport
import Testing

@testable import Inventory

/// "Not known" is never "empty": the inventory directory while it, or a file in it, is missing, cut off or replaced.
@Suite struct FileSourceTests {
    /// A directory of this test's own, and what is in it.
    final class Folder: Sendable {
        let path = "/tmp/\(Shell.prefix)-files-\(UUID().uuidString)"
        deinit { try? FileManager.default.removeItem(atPath: path) }
        func make() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
        func write(_ file: String, _ text: String) throws {
            try text.write(toFile: "\(path)/\(file)", atomically: false, encoding: .utf8)
        }
        func remove(_ file: String) throws { try FileManager.default.removeItem(atPath: "\(path)/\(file)") }
    }
    static func namespace(_ name: String) -> String { "apiVersion: v1\nkind: Namespace\nmetadata: {name: \(name)}\n" }
    static func names(_ inventory: Inventory) -> [String] { inventory.namespaces.keys.sorted() }

    @Test func aDirectoryThatWasNeverThereIsNotKnown() async throws {
        let folder = Folder()
        let source = FileSource(directory: folder.path)
        let missing = await source.inventory()
        #expect(missing.unknown.count == 1)
        #expect(missing.unknown.first?.contains(folder.path) == true, "\(missing.unknown)")
        #expect(missing.unknown.first?.contains("No such file or directory; put manifests there") == true)
        #expect(missing.problems.first?.file == folder.path)
        try folder.make()
        try folder.write("a.yaml", Self.namespace("a"))
        let present = await source.inventory()
        #expect(Self.names(present) == ["a"] && present.unknown == [] && present.problems == [])
    }

    @Test func aDirectoryThatWentAwayKeepsItsContentAndIsNotKnown() async throws {
        let folder = Folder()
        try folder.make()
        try folder.write("a.yaml", Self.namespace("a"))
        let source = FileSource(directory: folder.path)
        #expect(Self.names(await source.inventory()) == ["a"])
        try FileManager.default.moveItem(atPath: folder.path, toPath: folder.path + ".old")
        defer { try? FileManager.default.removeItem(atPath: folder.path + ".old") }
        let gone = await source.inventory()
        #expect(Self.names(gone) == ["a"] && gone.unknown.count == 1 && gone.problems.count == 1)
        #expect(gone.unknown.first?.contains("stays in force") == true, "\(gone.unknown)")
        try folder.make()
        try folder.write("b.yaml", Self.namespace("b"))
        let replaced = await source.inventory()
        #expect(Self.names(replaced) == ["b"] && replaced.unknown == [])
    }

    @Test(arguments: ["a: [", "", " \n\n", "\u{0}", "\"", "- just\n- a list"])
    func aFileThatIsCutOffIsNotKnownAndKeepsWhatItHad(_ cut: String) async throws {
        let folder = Folder()
        try folder.make()
        try folder.write("a.yaml", cut)
        try folder.write("b.yaml", Self.namespace("b"))
        let source = FileSource(directory: folder.path)
        let first = await source.inventory()
        #expect(Self.names(first) == ["b"])
        #expect(
            first.unknown.count == 1 && first.unknown.first?.contains("\(folder.path)/a.yaml") == true,
            "\(first.unknown)")
        #expect(first.problems.first?.file == "a.yaml", "the problem stays too")
        try folder.write("a.yaml", Self.namespace("a"))
        let whole = await source.inventory()
        #expect(Self.names(whole) == ["a", "b"] && whole.unknown == [] && whole.problems == [])
        try folder.write("a.yaml", cut)
        let second = await source.inventory()
        #expect(Self.names(second) == ["a", "b"] && second.unknown == [])
        #expect(second.problems.first?.description.contains("last good content stays") == true, "\(second.problems)")
        // A file that is gone is gone at once, while others stay.
        try folder.remove("a.yaml")
        let third = await source.inventory()
        #expect(Self.names(third) == ["b"] && third.unknown == [] && third.problems == [])
    }

    @Test func aFileThatCannotBeReadIsNotKnown() async throws {
        let folder = Folder()
        try folder.make()
        // Nobody can read it, root neither.
        let path = "\(folder.path)/a.yaml"
        try FileManager.default.createSymbolicLink(atPath: path, withDestinationPath: "\(folder.path)/target")
        let source = FileSource(directory: folder.path)
        let first = await source.inventory()
        #expect(first.unknown.first?.contains("a.yaml: cannot be read: No such file") == true, "\(first.unknown)")
        try folder.write("target", Self.namespace("a"))
        #expect(Self.names(await source.inventory()) == ["a"])
        try folder.remove("target")
        let second = await source.inventory()
        #expect(Self.names(second) == ["a"] && second.unknown == [] && second.problems.count == 1)
        // No manifest, whatever its name.
        try folder.remove("a.yaml")
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        let third = await source.inventory()
        #expect(Self.names(third) == [] && third.unknown == [] && third.problems.count == 1, "\(third)")
    }

    @Test func aFileOfCommentsIsKnownAndEmpty() async throws {
        let folder = Folder()
        try folder.make()
        try folder.write("a.yaml", "# nothing yet\n")
        let inventory = await FileSource(directory: folder.path).inventory()
        #expect(inventory.unknown == [] && inventory.problems == [])
    }

    @Test func anEmptyDirectoryIsEmptyAfter200Milliseconds() async throws {
        let folder = Folder()
        try folder.make()
        try folder.write("a.yaml", Self.namespace("a"))
        let source = FileSource(directory: folder.path)
        #expect(Self.names(await source.inventory()) == ["a"])
        try folder.remove("a.yaml")
        let start = ContinuousClock.now
        let first = await source.inventory()
        #expect(Self.names(first) == ["a"] && first.unknown == ["\(folder.path): empty for less than 200 ms"])
        // The source says itself when the time is over.
        let signalled = Task {
            for await _ in source.changes { return ContinuousClock.now - start }
            return Duration.zero
        }
        let deadline = Task {
            try? await Task.sleep(for: .seconds(5))
            signalled.cancel()
        }
        #expect(await signalled.value >= .milliseconds(200))
        deadline.cancel()
        let second = await source.inventory()
        #expect(second.namespaces.isEmpty && second.unknown == [] && second.problems == [])
        // All files replaced by others: at no time is there nothing.
        try folder.write("a.yaml", Self.namespace("a"))
        #expect(Self.names(await source.inventory()) == ["a"])
        try folder.remove("a.yaml")
        #expect(Self.names(await source.inventory()) == ["a"])
        try folder.write("b.yaml", Self.namespace("b"))
        let third = await source.inventory()
        #expect(Self.names(third) == ["b"] && third.unknown == [])
    }

    @Test func anEmptyDirectoryAtTheStartIsNotKnownAtFirst() async throws {
        let folder = Folder()
        try folder.make()
        let source = FileSource(directory: folder.path)
        #expect(await source.inventory().unknown.count == 1)
        try await Task.sleep(for: .milliseconds(250))
        #expect(await source.inventory().unknown == [])
    }

    /// What culvertctl uses.
    @Test func onADeskAnEmptyDirectoryIsEmptyAtOnce() throws {
        let folder = Folder()
        try folder.make()
        var files = FileInventory(directory: folder.path)
        #expect(files.read().unknown == [])
        try folder.write("a.yaml", Self.namespace("a"))
        #expect(Self.names(files.read()) == ["a"])
        try folder.remove("a.yaml")
        let empty = files.read()
        #expect(empty.namespaces.isEmpty && empty.unknown == [])
    }

    @Test(arguments: ["move", "delete", "link"]) func aDirectoryThatIsReplacedIsStillWatched(_ how: String) async throws
    {
        let folder = Folder()
        let first = folder.path + ".1"
        let second = folder.path + ".2"
        defer { for path in [first, second] { try? FileManager.default.removeItem(atPath: path) } }
        for path in [first, second] {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
            try Self.namespace(path == first ? "a" : "b").write(
                toFile: "\(path)/n.yaml", atomically: false, encoding: .utf8)
        }
        if how == "link" {
            try FileManager.default.createSymbolicLink(atPath: folder.path, withDestinationPath: first)
        } else {
            try FileManager.default.moveItem(atPath: first, toPath: folder.path)
        }
        let source = FileSource(directory: folder.path)
        let thread = Thread { source.watch() }
        thread.start()
        // The last word that anybody who follows the source has heard.
        let following = Task {
            for await _ in source.changes where Self.names(await source.inventory()) == ["c"] { return true }
            return false
        }
        try await Task.sleep(for: .milliseconds(100))
        switch how {
        case "link": Shell.run("ln -sfn \(second) \(folder.path)")
        case "move": Shell.run("mv \(folder.path) \(first) && mv \(second) \(folder.path)")
        default: Shell.run("rm -r \(folder.path) && mkdir \(folder.path) && cp \(second)/n.yaml \(folder.path)")
        }
        try await Task.sleep(for: .milliseconds(1500))
        #expect(Self.names(await source.inventory()) == ["b"])
        // Now only the watch can tell.
        try folder.write("n.yaml", Self.namespace("c"))
        let deadline = Task {
            try? await Task.sleep(for: .seconds(5))
            following.cancel()
        }
        #expect(await following.value)
        deadline.cancel()
    }
}

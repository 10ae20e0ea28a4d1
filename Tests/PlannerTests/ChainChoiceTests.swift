import Foundation
import Jansson
import TestSupport
import Testing

@testable import Installer

/// What is done with which directory of network configurations: tables, and random interleavings with an opponent.
@Suite struct ChainChoiceTests {
    static let entry = PluginEntry(socket: "/run/culvert/cni.sock")
    static let cilium =
        "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cilium\",\n  \"plugins\": [\n    {\"type\": \"cilium-cni\"}\n  ]\n}"
    static let podman = #"{"name":"podman","plugins":[{"type":"bridge"}]}"#

    static func directory(_ files: (String, String)..., dropIns: [String: [UInt8]] = [:]) -> DirectoryContent {
        DirectoryContent(
            files: files.map { .init($0.0, .regular(Array($0.1.utf8), mode: 0o644)) }, dropIns: dropIns)
    }
    static func wishes(
        _ network: String? = nil, by method: ChainMethod? = nil, dropIns: Bool = false, takenAway: Bool = false
    ) -> ChainWishes {
        ChainWishes(
            entry: entry, network: network, method: method, readsDropIns: dropIns, isOwnListTakenAway: takenAway)
    }
    static func chained(_ text: String) throws -> String {
        String(
            decoding: try ConfigurationListFile(Array(text.utf8), fileName: "x.conflist").adding(entry), as: UTF8.self)
    }

    /// What the directory is after one change; nil where the change does not fit it any more.
    static func after(_ change: DirectoryChange, _ content: DirectoryContent) -> DirectoryContent? {
        var files = content.files
        var dropIns = content.dropIns
        switch change {
        case .write(let name, let bytes, let mode):
            files.removeAll { $0.name == name }
            files.append(.init(name, .regular(bytes, mode: mode)))
        case .replace(let name, let expected, let bytes, let mode):
            guard files.contains(where: { $0.name == name && $0.bytes == expected }) else { return nil }
            files.removeAll { $0.name == name }
            files.append(.init(name, .regular(bytes, mode: mode)))
        case .remove(let name): files.removeAll { $0.name == name }
        case .writeDropIn(let network, let bytes): dropIns[network] = bytes
        case .removeDropIn(let network): dropIns[network] = nil
        }
        return DirectoryContent(files: files, dropIns: dropIns)
    }

    /// Carries a decision out, and checks what a reader sees between any two changes.
    static func settled(_ content: DirectoryContent, _ wishes: ChainWishes) throws -> DirectoryContent {
        guard case .chain(let chain) = ChainChoice.decide(content, wishes) else { return content }
        var state = content
        for change in chain.changes {
            state = try #require(after(change, state))
            let calls = ChainChoice.calls(state, network: chain.network, readsDropIns: wishes.readsDropIns)
            #expect(
                (calls ?? 0) <= 1
                    || ChainChoice.calls(content, network: chain.network, readsDropIns: wishes.readsDropIns) ?? 0 > 1)
        }
        return state
    }

    @Test func theFirstWayThatTheNodeAllowsIsTaken() throws {
        let plain = Self.directory(("05-cilium.conflist", Self.cilium))
        func method(_ content: DirectoryContent, _ wishes: ChainWishes) -> ChainMethod? {
            guard case .chain(let chain) = ChainChoice.decide(content, wishes) else { return nil }
            return chain.method
        }
        #expect(method(plain, Self.wishes()) == .ownList)
        #expect(method(plain, Self.wishes(dropIns: true)) == .ownList)
        #expect(method(plain, Self.wishes(dropIns: true, takenAway: true)) == .dropIn)
        #expect(method(plain, Self.wishes(takenAway: true)) == .inPlace)
        // Our list put aside by Cilium is proof that it takes such files away.
        let aside = Self.directory(
            ("05-cilium.conflist", Self.cilium), ("02-culvert.conflist.cilium_bak", try Self.chained(Self.cilium)))
        #expect(method(aside, Self.wishes(dropIns: true)) == .dropIn)
        #expect(method(aside, Self.wishes()) == .inPlace)
        #expect(try Self.settled(aside, Self.wishes()).files.map(\.name) == ["05-cilium.conflist"])
        // A file that nothing of ours sorts before.
        #expect(method(Self.directory(("00--a.conflist", Self.cilium)), Self.wishes()) == .inPlace)
        #expect(method(Self.directory(("01-x.conflist", Self.cilium)), Self.wishes()) == .ownList)
        // A list that wants no drop-ins.
        let closed = Self.directory(
            ("05-c.conflist", #"{"name":"c","loadOnlyInlinedPlugins":true,"plugins":[{"type":"a"}]}"#))
        #expect(method(closed, Self.wishes(dropIns: true, takenAway: true)) == .inPlace)
        guard case .impossible(let why) = ChainChoice.decide(closed, Self.wishes(by: .dropIn, dropIns: true)) else {
            Issue.record("a drop-in that nobody would read")
            return
        }
        #expect(why.contains("loadOnlyInlinedPlugins"))
        // What works stays. But an entry in the network's file gives way to a list of our own, where that is possible.
        for method in ChainMethod.allCases {
            let there = try Self.settled(plain, Self.wishes(by: method, dropIns: true))
            for isTakenAway in [false, true] {
                let wishes = Self.wishes(dropIns: true, takenAway: isTakenAway)
                guard case .chain(let chain) = ChainChoice.decide(there, wishes) else { continue }
                if method == .ownList && isTakenAway { continue }
                let stays = method != .inPlace || isTakenAway
                #expect(chain.isChained && chain.changes.isEmpty == stays)
                #expect(chain.method == (stays ? method : .ownList))
            }
        }
    }

    @Test func anEntryOfSomebodyElseIsLeftAlone() throws {
        let custom = #"{"name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"culvert"}]}"#
        let content = Self.directory(("05-cilium.conflist", custom))
        guard case .chain(let chain) = ChainChoice.decide(content, Self.wishes()) else {
            Issue.record("not chained")
            return
        }
        #expect(chain.method == nil && chain.isChained && chain.changes.isEmpty)
        #expect(chain.notes.count == 1 && chain.notes[0].contains("io.kubernetes.cri.pod-annotations"))
        // Ours from before Cilium's ConfigMap was changed goes, so that the plugin is not called twice.
        let both = Self.directory(
            ("05-cilium.conflist", custom), ("02-culvert.conflist", try Self.chained(custom)),
            dropIns: ["cilium": Self.entry.text])
        let after = try Self.settled(both, Self.wishes(dropIns: true))
        #expect(after == content)
        // An administrator's own file of our name is an administrator's.
        let manual = Self.directory(("02-culvert.conflist", custom), ("05-cilium.conflist", Self.cilium))
        #expect(try Self.settled(manual, Self.wishes()) == manual)
    }

    @Test func fromEveryStateToEveryWayThePluginIsNeverCalledTwice() throws {
        let plain = Self.directory(("05-cilium.conflist", Self.cilium), ("87-podman.conflist", Self.podman))
        for from in ChainMethod.allCases {
            let before = try Self.settled(plain, Self.wishes(by: from, dropIns: true))
            for to in ChainMethod.allCases {
                let after = try Self.settled(before, Self.wishes(by: to, dropIns: true))
                #expect(ChainChoice.calls(after, network: "cilium", readsDropIns: true) == 1, "\(from) to \(to)")
                #expect(try Self.settled(after, Self.wishes(by: to, dropIns: true)) == after)
                #expect(after == (try Self.settled(plain, Self.wishes(by: to, dropIns: true))), "\(from) to \(to)")
            }
        }
    }

    @Test func whatIsNotKnownIsWaitedFor() throws {
        func waits(_ content: DirectoryContent, _ wishes: ChainWishes) -> Bool {
            if case .wait = ChainChoice.decide(content, wishes) { return true }
            return false
        }
        #expect(waits(Self.directory(), Self.wishes()))
        #expect(waits(Self.directory(("87-podman.conflist", Self.podman)), Self.wishes("cilium")))
        // The first file is being written: the next one is not what the runtime will take.
        #expect(waits(Self.directory(("05-cilium.conflist", "{"), ("87-podman.conflist", Self.podman)), Self.wishes()))
        let unreadable = DirectoryContent(files: [
            .init("05-cilium.conflist", .unreadable("permission denied")),
            .init("87-podman.conflist", .regular(Array(Self.podman.utf8), mode: 0o644)),
        ])
        #expect(waits(unreadable, Self.wishes()))
        // Cilium's file is gone for a moment: our own list stays, and podman's network does not take its place...
        let gone = Self.directory(
            ("02-culvert.conflist", try Self.chained(Self.cilium)), ("87-podman.conflist", Self.podman))
        #expect(waits(gone, Self.wishes()))
        var last = Self.wishes()
        last.lastNetwork = "cilium"
        #expect(waits(Self.directory(("87-podman.conflist", Self.podman)), last))
        // ...until it has been gone for long.
        last.mayLeaveNetwork = true
        let after = try Self.settled(gone, last)
        #expect(ChainChoice.calls(after, network: "podman", readsDropIns: false) == 1)
        #expect(ChainChoice.calls(after, network: "cilium", readsDropIns: false) == nil)
        // Back again, Cilium's is the first file, and podman's is as it was.
        var back = after
        back = Self.directory(("05-cilium.conflist", Self.cilium), ("87-podman.conflist", Self.podman))
        back.files += after.files.filter { $0.name == "02-culvert.conflist" }
        let end = try Self.settled(DirectoryContent(files: back.files), Self.wishes())
        #expect(
            end
                == (try Self.settled(
                    Self.directory(("05-cilium.conflist", Self.cilium), ("87-podman.conflist", Self.podman)),
                    Self.wishes())))
    }

    @Test func aFileThatIsNotOneIsNotReplaced() throws {
        let link = DirectoryContent(files: [.init("05-cilium.conflist", .link(Array(Self.cilium.utf8)))])
        guard case .impossible(let why) = ChainChoice.decide(link, Self.wishes(by: .inPlace)) else {
            Issue.record("a symbolic link was replaced")
            return
        }
        #expect(why.contains("symbolic link"))
        #expect(ChainChoice.calls(try Self.settled(link, Self.wishes()), network: nil, readsDropIns: false) == 1)
        let single = Self.directory(("10-br.conf", #"{"name":"br","type":"bridge"}"#))
        guard case .impossible = ChainChoice.decide(single, Self.wishes(takenAway: true)) else {
            Issue.record("a single plugin cannot take an entry")
            return
        }
        #expect(ChainChoice.calls(try Self.settled(single, Self.wishes()), network: "br", readsDropIns: false) == 1)
    }

    @Test func ofAModeThatSomebodyHasChosenEveryBitIsKept() throws {
        let secret = DirectoryContent(files: [
            .init("05-cilium.conflist", .regular(Array(Self.cilium.utf8), mode: 0o600))
        ])
        for method in [ChainMethod.ownList, .inPlace] {
            for file in try Self.settled(secret, Self.wishes(by: method)).files {
                guard case .regular(_, let mode) = file.body else { continue }
                #expect(mode == 0o600, "\(file.name)")
            }
        }
    }

    @Test func uninstallLeavesWhatWasThereByteForByte() throws {
        let before = Self.directory(
            ("05-cilium.conflist", Self.cilium), ("87-podman.conflist", Self.podman), ("99-x.conf", "not JSON"))
        for method in ChainMethod.allCases {
            var state = try Self.settled(before, Self.wishes(by: method, dropIns: true))
            #expect(state != before)
            for change in Restore.changes(state) { state = try #require(Self.after(change, state)) }
            #expect(state == before, "\(method)")
            #expect(Restore.changes(state).isEmpty)
        }
        // What Cilium has rewritten and put aside meanwhile stays as it is, without our entry.
        var state = Self.directory(
            ("05-cilium.conflist", try Self.chained(Self.cilium.replacing("0.3.1", with: "1.0.0"))),
            ("87-podman.conflist.cilium_bak", try Self.chained(Self.podman)),
            ("02-culvert.conflist.cilium_bak", try Self.chained(Self.cilium)), ("00-culvert.conflist", "{ broken"))
        for change in Restore.changes(state) { state = try #require(Self.after(change, state)) }
        #expect(
            state
                == Self.directory(
                    ("05-cilium.conflist", Self.cilium.replacing("0.3.1", with: "1.0.0")),
                    ("87-podman.conflist.cilium_bak", Self.podman)))
        #expect(
            Restore.foreignEntries(
                Self.directory(("05-a.conflist", #"{"name":"a","plugins":[{"type":"a"},{"type":"culvert"}]}"#)))
                == ["05-a.conflist"])
    }

    /// An opponent does something between any two looks and any two changes. Whatever it does: nothing of Culvert's makes a
    /// reader see the plugin twice, a change that does not fit any more is not made, and when the opponent rests, the plugin
    /// is called exactly once.
    @Test(arguments: [false, true])
    func inEveryInterleavingTheEndIsChainedExactlyOnce(_ readsDropIns: Bool) throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SeededGenerator(seed: seed)
        for _ in 0..<300 {
            var wishes = Self.wishes(
                by: [nil, nil, .ownList, .inPlace].randomElement(using: &random) ?? nil, dropIns: readsDropIns)
            var state = Self.directory(("05-cilium.conflist", Self.cilium), ("87-podman.conflist", Self.podman))
            for _ in 0..<20 {
                if Bool.random(using: &random) { state = Self.opponent(state, &random) }
                guard case .chain(let chain) = ChainChoice.decide(state, wishes) else { continue }
                wishes.lastNetwork = chain.network
                for change in chain.changes {
                    if Int.random(in: 0..<4, using: &random) == 0 { state = Self.opponent(state, &random) }
                    guard let next = Self.after(change, state) else { break }
                    state = next
                }
            }
            // The opponent rests, with its own file in its place.
            state.files.removeAll { $0.name == "05-cilium.conflist" || $0.name.hasSuffix(".cilium_bak") }
            state = DirectoryContent(
                files: state.files + [.init("05-cilium.conflist", .regular(Array(Self.cilium.utf8), mode: 0o644))],
                dropIns: state.dropIns)
            wishes.mayLeaveNetwork = true
            for _ in 0..<3 { state = try Self.settled(state, wishes) }
            #expect(ChainChoice.calls(state, network: "cilium", readsDropIns: readsDropIns) == 1, "seed \(seed)")
            #expect(ChainChoice.calls(state, network: nil, readsDropIns: readsDropIns) == 1, "seed \(seed)")
            #expect(try Self.settled(state, wishes) == state, "seed \(seed)")
            for change in Restore.changes(state) { state = try #require(Self.after(change, state)) }
            #expect(state.files.allSatisfy { !String(decoding: $0.bytes ?? [], as: UTF8.self).contains("culvert") })
        }
    }

    /// What Cilium's agent does, and what nobody should do.
    static func opponent(_ content: DirectoryContent, _ random: inout SeededGenerator) -> DirectoryContent {
        var files = content.files
        func put(_ name: String, _ text: String) {
            files.removeAll { $0.name == name }
            files.append(.init(name, .regular(Array(text.utf8), mode: 0o644)))
        }
        switch Int.random(in: 0..<8, using: &random) {
        case 0: put("05-cilium.conflist", cilium)
        case 1: put("05-cilium.conflist", cilium.replacing("0.3.1", with: "1.0.0"))
        case 2: files.removeAll { $0.name == "05-cilium.conflist" }
        case 3: put("05-cilium.conflist", String(cilium.prefix(Int.random(in: 0..<cilium.count, using: &random))))
        case 4:  // cni.exclusive=true
            files = files.map { file in
                file.name == "05-cilium.conflist" || !ChainFileNames.isRead(file.name)
                    ? file : .init(file.name + ".cilium_bak", file.body)
            }
            let names = Set(files.map(\.name))
            files = names.compactMap { name in files.last { $0.name == name } }
        case 5: files.removeAll { $0.name == "02-culvert.conflist" }
        case 6: put("02-culvert.conflist", "{")
        default: put("87-podman.conflist", podman)
        }
        return DirectoryContent(files: files, dropIns: content.dropIns)
    }

    @Test func aWriterThatFightsBackIsBorneWithGrowingPausesAndThenNamed() {
        var losses = ChainLosses(most: 5)
        losses.seenLost(at: 0)
        #expect(losses.count == 0, "what was never chained is not lost")
        var now = 0.0
        var pauses: [Double] = []
        while !losses.isExhausted {
            losses.seenChained(at: now)
            losses.seenLost(at: now)
            // Seen once more, it is the same loss.
            losses.seenLost(at: now)
            pauses.append(losses.pause(at: now))
            now += losses.pause(at: now)
        }
        #expect(pauses.map { ($0 * 10).rounded() / 10 } == [0, 0.1, 0.2, 0.4, 0.8, 1.6])
        // Cilium rewrites its file once at each start: that is no fight.
        var starts = ChainLosses(most: 2)
        for start in 0..<50 {
            starts.seenChained(at: Double(start) * 100)
            starts.seenLost(at: Double(start) * 100 + 99)
            #expect(starts.pause(at: Double(start) * 100 + 99) == 0 && !starts.isExhausted)
        }
    }

    @Test func theRuntimesLibraryIsReadFromItsProgram() {
        func version(_ text: String) -> Int? {
            Array(text.utf8).withUnsafeBytes { RuntimeLibrary.version(in: $0) }.map { $0.major * 100 + $0.minor }
        }
        let before = "\u{7F}ELF...dep\tgithub.com/containerd/go-cni\tv1.1.12\th1:x=\n"
        #expect(version(before + "dep\tgithub.com/containernetworking/cni\tv1.3.0\th1:y=\n") == 103)
        #expect(version(before + "dep\tgithub.com/containernetworking/cni\tv1.2.3\n") == 102)
        #expect(version(before + "dep\tgithub.com/containernetworking/cni\tv") == nil)
        #expect(version(before + "dep\tgithub.com/containernetworking/cni\tvx.y.z\n") == nil)
        #expect(version(before) == nil)
        #expect(version("") == nil)
        #expect(!RuntimeLibrary.readsDropIns(programs: ["/nonexistent"]))
    }

    /// A container sees the host's programs elsewhere, and does not know where the host has its runtime.
    @Test func ofThePlacesWhereTheRuntimeMayBeThoseCountWhereItIs() throws {
        let path = NSTemporaryDirectory() + "\(Shell.prefix)-runtimes"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        func place(_ name: String, _ version: String?) throws -> String {
            if let version {
                try "\u{7F}ELF\n dep\tgithub.com/containernetworking/cni\tv\(version)\th1:x=\n".write(
                    toFile: "\(path)/\(name)", atomically: true, encoding: .utf8)
            }
            return "\(path)/\(name)"
        }
        let (new, missing) = (try place("new", "1.3.0"), try place("missing", nil))
        #expect(RuntimeLibrary.readsDropIns(programs: [missing, new]))
        // With two runtimes nobody knows which one is in use.
        #expect(!RuntimeLibrary.readsDropIns(programs: [new, missing, try place("old", "1.2.3")]))
        #expect(!RuntimeLibrary.readsDropIns(programs: [missing]))
    }

    @Test func thePluginGoesWhereContainerdLooksForIt() {
        let tables: [(String, String?)] = [
            (
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\" # Debian's",
                "/usr/lib/cni"
            ),
            ("[plugins.'io.containerd.cri.v1.runtime'.cni]\n  bin_dirs = ['/a', '/b']\n", "/a"),
            ("[plugins.\"io.containerd.grpc.v1.cri\".cni]\n# bin_dir = \"/a\"\nbin_dir=\"/b\"", "/b"),
            ("[other]\nbin_dir = \"/a\"", nil), ("[x.cni]\nbin_dir = \"relative\"", nil), ("[x.cni]\nbin_dir =", nil),
            ("[x.cni]\nconf_dir = \"/a\"\n[other]\nbin_dir = \"/b\"", nil), ("", nil), ("[[=\"", nil),
        ]
        for (configuration, wanted) in tables {
            #expect(PluginDirectory.named(in: configuration) == wanted, "\(configuration)")
        }
        #expect(PluginDirectory.ofRuntime(configuration: "/nonexistent") == "/opt/cni/bin")
    }
}

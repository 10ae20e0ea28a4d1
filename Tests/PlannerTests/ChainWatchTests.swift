import CLinux
import Foundation
import Jansson
import TestSupport
import Testing

@testable import Installer

/// The installer's watch over a directory, with a clock of the test's own: hours pass in milliseconds.
@Suite struct ChainWatchTests {
    /// A directory of network configurations, and a watch over it.
    final class Watched {
        let path: String
        private let folder: ConfigurationFolder
        private var watch: ChainWatch
        var said: [String] { heard.lines }
        private let heard: Heard
        private final class Heard {
            var lines: [String] = []
        }

        init(_ list: String, most: Int = 10) throws {
            path = NSTemporaryDirectory() + "\(Shell.prefix)-watch-\(UInt32.random(in: 0 ... .max))"
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
            let heard = Heard()
            self.heard = heard
            try list.write(toFile: path + "/05-cilium.conflist", atomically: true, encoding: .utf8)
            folder = try #require(try ConfigurationFolder(path))
            watch = ChainWatch(
                folder: folder, wishes: ChainChoiceTests.wishes(),
                losses: ChainLosses(most: most)
            ) { report in
                switch report {
                case .info(let line), .warning(let line): heard.lines.append(line)
                }
            }
        }
        deinit { try? FileManager.default.removeItem(atPath: path) }

        func write(_ text: String, to name: String = "05-cilium.conflist") throws {
            try text.write(toFile: path + "/" + name, atomically: true, encoding: .utf8)
        }
        func read(_ name: String) -> String? { try? String(contentsOfFile: path + "/" + name, encoding: .utf8) }
        var names: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted() }
        /// Cilium with `cni.exclusive=true`.
        func putOurListAside() {
            rename(path + "/02-culvert.conflist", path + "/02-culvert.conflist.cilium_bak")
        }
        /// How often a runtime calls the plugin now.
        var calls: Int {
            (try? folder.read()).flatMap {
                ChainChoice.calls($0, network: nil, readsDropIns: false)
            } ?? -1
        }
        /// Looks until nothing is overtaken any more.
        func step(_ now: Double) -> ChainWatch.Outcome {
            for _ in 0..<20 {
                let outcome = watch.step(now: now)
                if outcome != .overtaken { return outcome }
            }
            return .overtaken
        }
    }

    /// Whoever wrote them has to mend them: nobody fights, and the installer neither ends nor accuses anybody.
    @Test func twoEntriesOfSomebodyElseAreNoFight() throws {
        let twice = #"{"name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"culvert"},{"type":"culvert"}]}"#
        let node = try Watched(twice)
        for now in 0..<200 {
            guard case .obstructed(let why) = node.step(Double(now)) else {
                Issue.record("\(node.step(Double(now)))")
                return
            }
            #expect(why.contains("2 entries of Culvert's plugin") && why.contains("remove all but one"))
        }
        #expect(node.said.count == 1 && !node.said[0].contains("has taken"), "\(node.said)")
        #expect(node.read("05-cilium.conflist") == twice)
        // Mended, it is the entry that somebody else wrote.
        try node.write(#"{"name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"culvert"}]}"#)
        #expect(node.step(200) == .chained(file: "05-cilium.conflist", nil))
    }

    /// An administrator sets cni.exclusive=false some time after the installer has had to take the network's own file.
    @Test func anEntryInTheNetworksFileGivesWayToAListOfOurOwnWhenNobodyTakesThatAwayAnyMore() throws {
        let node = try Watched(ChainChoiceTests.cilium)
        let inPlace = ChainWatch.Outcome.chained(file: "05-cilium.conflist", .inPlace)
        let ownList = ChainWatch.Outcome.chained(file: "05-cilium.conflist", .ownList)
        #expect(node.step(0) == ownList)
        node.putOurListAside()
        #expect(node.step(1) == inPlace && node.names == ["05-cilium.conflist"])
        // Each trial in vain makes the next one come later, and at no moment is the plugin not called exactly once.
        var trials: [Int] = []
        for now in 2..<1000 {
            #expect([inPlace, ownList].contains(node.step(Double(now))))
            #expect(node.calls == 1, "at \(now)")
            guard node.names.contains("02-culvert.conflist") else { continue }
            trials.append(now)
            node.putOurListAside()
            #expect(node.calls == 1, "at \(now)")
        }
        #expect(trials == [61, 182, 423, 904], "\(trials)")
        // From now on exclusive=false. The entry in Cilium's file goes when our own list has stood for a minute.
        var taken: Double?
        for now in stride(from: 1000.0, to: 2500, by: 5) {
            let outcome = node.step(now)
            #expect(node.calls == 1, "at \(now)")
            if outcome == ownList && taken == nil { taken = now }
            if let taken {
                let isClean = node.read("05-cilium.conflist") == ChainChoiceTests.cilium
                #expect(isClean == (now >= taken + ChainLosses.calm), "at \(now), own list since \(taken)")
            }
        }
        #expect(taken == 1865, "\(taken ?? -1)")
        #expect(node.names == ["02-culvert.conflist", "05-cilium.conflist"])
    }

    @Test func afterADefeatNothingIsTouchedForAnHour() throws {
        let node = try Watched(ChainChoiceTests.cilium, most: 3)
        var now = 0.0
        func fight() throws -> String? {
            for _ in 0..<100 {
                switch node.step(now) {
                case .chained: break
                case .resting(let seconds): now += seconds
                case .defeated(let why): return why
                case let other: Issue.record("\(other)")
                }
                for name in node.names where name != "05-cilium.conflist" { unlink(node.path + "/" + name) }
                try node.write(ChainChoiceTests.cilium)
                now += 0.1
            }
            return nil
        }
        let why = try #require(try fight())
        #expect(why.contains("gave up") && why.contains("cni.exclusive=false"))
        let begin = now
        while now < begin + ChainWatch.restAfterDefeat {
            #expect(node.step(now) == .defeated(why))
            #expect(node.names == ["05-cilium.conflist"] && node.read("05-cilium.conflist") == ChainChoiceTests.cilium)
            now += 100
        }
        // Then once more, with all its patience.
        #expect(try fight() != nil)
        now += ChainWatch.restAfterDefeat + 1
        guard case .chained = node.step(now) else {
            Issue.record("nobody fights any more")
            return
        }
        #expect(node.calls == 1)
    }

    /// Killed between the exchange of two files and the look at what came out of it: what came out may be newer.
    @Test func whatSomebodyHasWrittenMeanwhileOutlivesAnInstallerThatIsKilled() throws {
        let newer = ChainChoiceTests.cilium.replacing("0.3.1", with: "1.0.0")
        let ours = try ChainChoiceTests.chained(ChainChoiceTests.cilium)
        for (temporary, wanted) in [
            (newer, newer), (ChainChoiceTests.cilium, ours), (ours, ours), (String(newer.prefix(30)), ours),
            (ChainChoiceTests.podman, ours),
        ] {
            let path = NSTemporaryDirectory() + "\(Shell.prefix)-killed"
            defer { try? FileManager.default.removeItem(atPath: path) }
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
            try ours.write(toFile: path + "/05-cilium.conflist", atomically: true, encoding: .utf8)
            try ChainChoiceTests.podman.write(toFile: path + "/87-podman.conflist", atomically: true, encoding: .utf8)
            try temporary.write(toFile: path + "/.culvert-1-1.tmp", atomically: true, encoding: .utf8)
            #expect(try ConfigurationFolder(path) != nil)
            let text = try String(contentsOfFile: path + "/05-cilium.conflist", encoding: .utf8)
            #expect(text == wanted, "\(temporary)")
            let names = try FileManager.default.contentsOfDirectory(atPath: path).sorted()
            #expect(names == ["05-cilium.conflist", "87-podman.conflist"])
        }
    }

    @Test func theInstallersWordIsReadBack() throws {
        for outcome in [
            ChainWatch.Outcome.chained(file: "05-cilium.conflist", .ownList), .chained(file: "a", nil), .waiting("why"),
            .obstructed("why"), .resting(3), .defeated("why"), .failed("why"),
        ] {
            let state = try #require(ChainState(outcome))
            #expect(ChainState(state.json) == state)
            #expect((state.phase == .chained) == state.reason.isEmpty)
        }
        #expect(ChainState(.overtaken) == nil)
        #expect(ChainState(.make(("state", .string("of a later release")))) == nil)
        #expect(
            ChainState(.chained(file: "05-cilium.conflist", .ownList))?.line == "chained: own-list, 05-cilium.conflist")
        #expect(
            ChainState(.waiting("there is no network configuration"))?.line
                == "waiting: there is no network configuration")
    }
}

/// Keeps Culvert's plugin in the chain: looks at the directory, decides, carries out, and looks again.
///
/// `step` is one look; whoever calls it waits as long as it says. No clock and no wait are in here, so that a test decides
/// how much time passes.
public struct ChainWatch {
    private let folder: ConfigurationFolder
    private let report: (Report) -> Void
    private var wishes: ChainWishes
    private var losses: ChainLosses
    private var missingSince: Double?
    private var said: [Report] = []
    /// The plugin was not in the chain when this one first looked, or not any more since.
    public private(set) var hasChained = false

    /// Seconds after which another network may take the place of one whose file has gone.
    public static let leaveAfter = 30.0

    public enum Report: Equatable, Sendable {
        case info(String)
        case warning(String)
    }
    public enum Outcome: Equatable, Sendable {
        /// The plugin is called exactly once for each container that starts now.
        case chained(file: String, ChainMethod?)
        /// Nothing can be done yet: the reason. Look again when something changes.
        case waiting(String)
        /// Another program has taken the plugin out; the next change is made in so many seconds.
        case resting(Double)
        /// Something has changed while it was looked at: look again at once.
        case overtaken
        /// Ended, with the reason and the remedy.
        case failed(String)
    }

    public init(
        folder: ConfigurationFolder, wishes: ChainWishes, losses: ChainLosses = .init(),
        report: @escaping (Report) -> Void
    ) {
        self.folder = folder
        self.wishes = wishes
        self.losses = losses
        self.report = report
    }

    /// - Parameter now: seconds of a clock that does not go back.
    public mutating func step(now: Double) -> Outcome {
        do throws(InstallationFailure) { return try look(now) } catch { return .failed(error.description) }
    }

    private mutating func look(_ now: Double) throws(InstallationFailure) -> Outcome {
        wishes.mayLeaveNetwork = missingSince.map { now - $0 >= ChainWatch.leaveAfter } ?? false
        let content = try folder.read()
        if !wishes.isOwnListTakenAway && DirectoryView(content).isOwnListPutAside {
            wishes.isOwnListTakenAway = true
            say(
                .warning(
                    "Cilium has put our list aside (\(ChainFileNames.putAside)): cni.exclusive is true. Set cni.exclusive=false, or let Cilium write the entry itself with cni.customConf and cni.configMap; another way is tried until then"
                ))
        }
        switch ChainChoice.decide(content, wishes) {
        case .wait(let reason):
            if missingSince == nil { missingSince = now }
            say(.info("waiting: \(reason) in \(folder.path)"))
            return .waiting(reason)
        case .impossible(let reason): return .failed(reason)
        case .chain(let chain):
            missingSince = nil
            wishes.lastNetwork = chain.network
            if chain.isChained {
                losses.seenChained(at: now)
            } else {
                let before = losses.count
                losses.seenLost(at: now)
                if losses.count != before { said = [] }
                if losses.isExhausted { return .failed(defeat(chain)) }
                if losses.count > 0 {
                    say(
                        .warning(
                            "another program has taken Culvert's plugin out of the chain of \(chain.file) (\(losses.count) of at most \(losses.most) times in a row)"
                        ))
                }
            }
            let pause = losses.pause(at: now)
            // Whatever takes nothing out of somebody else's hands need not wait: a list of our own follows its network at once.
            if pause > 0 && !chain.isChained { return .resting(pause) }
            for change in chain.changes where try !folder.apply(change) { return .overtaken }
            // The plugin was in the chain for a moment at least: an opponent that is quick is noticed too.
            losses.seenChained(at: now)
            if !chain.changes.isEmpty {
                if !chain.isChained { hasChained = true }
                // What was carried out is looked at before it is believed.
                let after = ChainChoice.decide(try folder.read(), wishes)
                guard case .chain(let result) = after, result.isChained, result.changes.isEmpty else {
                    return .overtaken
                }
            }
            for note in chain.notes { say(.warning(note)) }
            say(.info(ChainWatch.success(chain)))
            return .chained(file: chain.file, chain.method)
        }
    }

    private static func success(_ chain: ChainDecision.Chain) -> String {
        switch chain.method {
        case nil:
            "chained after the network \(chain.network): \(chain.file) has Culvert's entry already, which somebody else wrote"
        case .ownList?: "chained after the network \(chain.network) by a list of our own before \(chain.file)"
        case .dropIn?:
            "chained after the network \(chain.network) by the drop-in \(chain.network)/\(ChainFileNames.dropIn)"
        case .inPlace?: "chained after the network \(chain.network) by an entry in \(chain.file)"
        }
    }

    private func defeat(_ chain: ChainDecision.Chain) -> String {
        "gave up: another program has taken Culvert's plugin out of the chain of \(chain.file) \(losses.count) times in a row. "
            + "Containers start without Culvert. With Cilium: set cni.exclusive=false, or let Cilium write the entry itself "
            + "(cni.customConf=true and cni.configMap); else find the program that writes in \(folder.path)"
    }

    /// What was said since the chain was lost last is not said again.
    private mutating func say(_ sentence: Report) {
        if said.contains(sentence) { return }
        if said.count > 20 { said.removeFirst() }
        said.append(sentence)
        report(sentence)
    }
}

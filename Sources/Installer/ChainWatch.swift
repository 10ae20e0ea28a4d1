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
    /// Since when our own list was seen to be taken away last.
    private var takenAwaySince: Double?
    /// Seconds until our own list is tried again: twice as many each time that it was in vain.
    private var trialAfter = ChainWatch.firstTrial
    /// Since when the plugin has been called by our own list without a break.
    private var ownListSince: Double?
    private var defeat: (reason: String, since: Double)?

    /// Seconds after which another network may take the place of one whose file has gone.
    public static let leaveAfter = 30.0
    /// Seconds until a list of our own that was taken away is tried again: `cni.exclusive` may be false by then.
    public static let firstTrial = ChainLosses.calm
    public static let longestTrial = 3600.0
    /// Seconds until a fight that was lost is taken up again.
    public static let restAfterDefeat = 3600.0

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
        /// Something is wrong that only an administrator can mend: the reason and the remedy. Look again when something
        /// changes.
        case obstructed(String)
        /// Something has changed while it was looked at: look again at once.
        case overtaken
        /// Another program has taken the plugin out too often: the reason and the remedy. Nothing is changed until
        /// `restAfterDefeat` has passed; then the next look begins anew.
        case defeated(String)
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
        if let lost = defeat {
            guard now - lost.since >= ChainWatch.restAfterDefeat else { return .defeated(lost.reason) }
            defeat = nil
            losses = ChainLosses(most: losses.most)
            said = []
        }
        wishes.mayLeaveNetwork = missingSince.map { now - $0 >= ChainWatch.leaveAfter } ?? false
        wishes.keepsEntryInPlace = ownListSince.map { now - $0 < ChainLosses.calm } ?? true
        let content = try folder.read()
        noticeWhetherOwnListIsTakenAway(content, now)
        switch ChainChoice.decide(content, wishes) {
        case .wait(let reason):
            if missingSince == nil { missingSince = now }
            say(.info("waiting: \(reason) in \(folder.path)"))
            return .waiting(reason)
        case .impossible(let reason): return .failed(reason)
        case .chain(let chain):
            missingSince = nil
            wishes.lastNetwork = chain.network
            return try carryOut(chain, now)
        }
    }

    /// A list of our own is tried again from time to time: where nobody takes it away any more, it is the better way.
    private mutating func noticeWhetherOwnListIsTakenAway(_ content: DirectoryContent, _ now: Double) {
        if DirectoryView(content).isOwnListPutAside {
            if !wishes.isOwnListTakenAway { takenAwaySince = now }
            wishes.isOwnListTakenAway = true
            say(
                .warning(
                    "Cilium has renamed Culvert's list to \(ChainFileNames.putAside), because cni.exclusive is true. Set cni.exclusive=false, or let Cilium write the entry itself with cni.customConf and cni.configMap. Until then, another method is tried"
                ))
        } else if wishes.isOwnListTakenAway, now - (takenAwaySince ?? now) >= trialAfter,
            losses.standing(at: now) >= ChainLosses.calm
        {
            wishes.isOwnListTakenAway = false
            trialAfter = min(trialAfter * 2, ChainWatch.longestTrial)
        }
    }

    private mutating func carryOut(
        _ chain: ChainDecision.Chain, _ now: Double
    ) throws(InstallationFailure) -> Outcome {
        if chain.isChained { losses.seenChained(at: now) }
        // Where somebody else writes the entry, nobody takes one of ours away.
        if !chain.isChained && chain.method != nil && chain.obstacle.isEmpty {
            let before = losses.count
            losses.seenLost(at: now)
            ownListSince = nil
            if losses.count != before { said = [] }
            if losses.isExhausted {
                let reason = reasonOfDefeat(chain)
                defeat = (reason, now)
                return .defeated(reason)
            }
            if losses.count > 0 {
                say(
                    .warning(
                        "another program has taken Culvert's plugin out of the chain of \(chain.file) (\(losses.count) of at most \(losses.most) times in a row)"
                    ))
            }
        }
        let pause = losses.pause(at: now)
        // A change that overwrites nothing of another program need not wait: Culvert's own list follows its network at
        // once.
        if pause > 0 && !chain.isChained { return .resting(pause) }
        for change in chain.changes where try !folder.apply(change) { return .overtaken }
        if !chain.obstacle.isEmpty {
            say(.warning(chain.obstacle))
            return .obstructed(chain.obstacle)
        }
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
        ownListSince = chain.method == .ownList ? ownListSince ?? now : nil
        if let since = ownListSince, now - since >= ChainLosses.calm { trialAfter = ChainWatch.firstTrial }
        for note in chain.notes { say(.warning(note)) }
        say(.info(ChainWatch.success(chain)))
        return .chained(file: chain.file, chain.method)
    }

    private static func success(_ chain: ChainDecision.Chain) -> String {
        switch chain.method {
        case nil:
            "chained after the network \(chain.network): \(chain.file) already has an entry for Culvert, which another program wrote"
        case .ownList?:
            "chained after the network \(chain.network) by Culvert's own list, which sorts before \(chain.file)"
        case .dropIn?:
            "chained after the network \(chain.network) by the drop-in \(chain.network)/\(ChainFileNames.dropIn)"
        case .inPlace?: "chained after the network \(chain.network) by an entry in \(chain.file)"
        }
    }

    private func reasonOfDefeat(_ chain: ChainDecision.Chain) -> String {
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

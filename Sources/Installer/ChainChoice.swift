/// How Culvert's plugin gets into a network's chain.
public enum ChainMethod: String, Equatable, Sendable, CaseIterable {
    /// A list of our own with the network's plugins and ours, under the same network name and before the network's file.
    case ownList = "own-list"
    /// A file of our own in the network's directory, which libcni 1.3 and later reads.
    case dropIn = "drop-in"
    /// An entry in the network's own file.
    case inPlace = "in-place"
}

/// What is wanted, and what is known besides the directory.
public struct ChainWishes: Equatable, Sendable {
    /// Of this network; nil: of the network whose file a runtime takes first.
    public var network: String?
    /// nil: the first one that the node allows.
    public var method: ChainMethod?
    public var entry: PluginEntry
    /// The node's runtime is known to read drop-ins. Not known is no.
    public var readsDropIns: Bool
    /// Another program has removed Culvert's own list. Cilium does this with `cni.exclusive=true`.
    public var isOwnListTakenAway: Bool
    /// The network that was chained last, if no file of the directory contains its name at the moment.
    public var lastNetwork: String?
    /// Where the file of the network that was chained last has gone, another network may take its place.
    public var mayLeaveNetwork: Bool
    /// A list of our own is not trusted yet: an entry in the network's own file stays behind it, so that nothing is lost
    /// where somebody takes the list away.
    public var keepsEntryInPlace: Bool

    public init(
        entry: PluginEntry, network: String? = nil, method: ChainMethod? = nil, readsDropIns: Bool = false,
        isOwnListTakenAway: Bool = false, lastNetwork: String? = nil, mayLeaveNetwork: Bool = false,
        keepsEntryInPlace: Bool = false
    ) {
        self.entry = entry
        self.network = network
        self.method = method
        self.readsDropIns = readsDropIns
        self.isOwnListTakenAway = isOwnListTakenAway
        self.lastNetwork = lastNetwork
        self.mayLeaveNetwork = mayLeaveNetwork
        self.keepsEntryInPlace = keepsEntryInPlace
    }
}

/// What to do with a directory so that the chain has Culvert's plugin exactly once.
public enum ChainDecision: Equatable, Sendable {
    case chain(Chain)
    /// Nothing can be done yet, and what there is stays: the reason.
    case wait(String)
    /// Nothing can be done with what is wanted: the reason and the remedy.
    case impossible(String)

    public struct Chain: Equatable, Sendable {
        public let network: String
        /// The network's own file.
        public let file: String
        /// nil: somebody else has written the entry.
        public let method: ChainMethod?
        /// Before the changes: a container that starts now gets Culvert's plugin exactly once.
        public let isChained: Bool
        /// In this order.
        public let changes: [DirectoryChange]
        /// What an administrator should know, and the remedy.
        public let notes: [String]
        /// Why the plugin is not called exactly once after the changes either, which only an administrator can mend: the
        /// reason and the remedy. Empty where it is.
        public let obstacle: String
    }
}

public enum ChainChoice {
    /// - Parameter content: of the directory, at one instant.
    public static func decide(_ content: DirectoryContent, _ wishes: ChainWishes) -> ChainDecision {
        let view = DirectoryView(content)
        let last = wishes.network ?? view.currentNetwork ?? wishes.lastNetwork
        let mayLeave = wishes.network == nil && wishes.mayLeaveNetwork
        let target: DirectoryView.Network
        switch (view.find(last), mayLeave) {
        case (.missing, false) where last != nil:
            return .wait("there is no configuration of the network \(last ?? "")")
        case (.notKnown(let reason), false): return .wait(reason)
        case (.found(let found), _) where wishes.network != nil: target = found
        default:
            // The network that a runtime takes: that of the first file.
            switch view.find(nil) {
            case .found(let first): target = first
            case .notKnown(let reason): return .wait(reason)
            case .missing: return .wait("there is no network configuration")
            }
        }
        let isTakenAway = wishes.isOwnListTakenAway || view.isOwnListPutAside
        let plan = Plan(view: view, target: target, wishes: wishes, isOwnListTakenAway: isTakenAway)
        if target.list.foreignEntries > 0 { return .chain(plan.byOthers()) }
        let obstacles = ChainMethod.allCases.map { ($0, plan.obstacle($0)) }
        let allowed = obstacles.filter { $0.1 == nil }.map(\.0)
        if let wanted = wishes.method {
            guard let obstacle = plan.obstacle(wanted) else { return .chain(plan.chain(by: wanted)) }
            return .impossible("\(target.name) cannot be chained by \(wanted.rawValue): \(obstacle)")
        }
        // What is in force stays, so that nothing is taken away from a chain that works. But each rewrite by the network's own
        // program takes an entry in its file out again: a list of our own is better, and is there before the entry goes.
        if let current = view.currentMethod(target), allowed.contains(current),
            current != .inPlace || !allowed.contains(.ownList)
        {
            return .chain(plan.chain(by: current))
        }
        guard let first = allowed.first else {
            let reasons = obstacles.map { "\($0.0.rawValue): \($0.1 ?? "")" }.joined(separator: "; ")
            return .impossible("\(target.name) of the network \(target.list.network) cannot be chained. \(reasons)")
        }
        return .chain(plan.chain(by: first))
    }

    /// How often a runtime calls Culvert's plugin for a container of the network (nil: of the first file's network); nil where
    /// no file can be used.
    ///
    /// - Parameter readsDropIns: the runtime reads them.
    public static func calls(_ content: DirectoryContent, network: String?, readsDropIns: Bool) -> Int? {
        var lists = content.files.filter { ChainFileNames.isRead($0.name) }.compactMap { file in
            file.bytes.flatMap { try? ConfigurationListFile($0, fileName: file.name) }
        }
        if let network { lists.removeAll { $0.network != network } }
        guard let first = lists.first else { return nil }
        let hasDropIn = readsDropIns && first.takesDropIns && content.dropIns[first.network] != nil
        return first.calls + (hasDropIn ? 1 : 0)
    }
}

extension DirectoryContent.File {
    var bytes: [UInt8]? {
        switch body {
        case .regular(let bytes, _), .link(let bytes): bytes
        case .unreadable: nil
        }
    }
}

/// The directory's files by whose they are.
struct DirectoryView {
    struct Network {
        let name: String
        let list: ConfigurationListFile
        let body: DirectoryContent.Body
        /// Where a runtime looks for another network's file first: its name.
        let precededBy: String?
    }
    struct OwnList {
        let name: String
        /// nil: another program has broken the file.
        let list: ConfigurationListFile?
        let body: DirectoryContent.Body
    }
    enum Search {
        case found(Network)
        case missing
        /// Some file cannot be used right now, and may be the one.
        case notKnown(String)
    }

    let content: DirectoryContent
    let ownLists: [OwnList]
    /// Files that Cilium has put aside and that are ours alone.
    let ownPutAside: [String]
    private let others:
        [(file: DirectoryContent.File, list: Result<ConfigurationListFile, ConfigurationListFile.Failure>)]

    init(_ content: DirectoryContent) {
        self.content = content
        var own: [OwnList] = []
        var others: [(DirectoryContent.File, Result<ConfigurationListFile, ConfigurationListFile.Failure>)] = []
        var aside: [String] = []
        for file in content.files {
            if ChainFileNames.isPutAside(file.name) {
                let name = String(file.name.dropLast(ChainFileNames.putAside.count))
                if DirectoryView.isOwn(name, file) { aside.append(file.name) }
                continue
            }
            if DirectoryView.isOwn(file.name, file) {
                let list = file.bytes.flatMap { try? ConfigurationListFile($0, fileName: file.name) }
                own.append(OwnList(name: file.name, list: list, body: file.body))
                continue
            }
            let list: Result<ConfigurationListFile, ConfigurationListFile.Failure>
            if case .unreadable(let why) = file.body {
                list = .failure(.init(description: "cannot be read: \(why)"))
            } else {
                let bytes = file.bytes ?? []
                list = Result { () throws(ConfigurationListFile.Failure) in
                    try ConfigurationListFile(bytes, fileName: file.name)
                }
            }
            others.append((file, list))
        }
        ownLists = own
        self.others = others
        ownPutAside = aside
    }

    /// The file has one of Culvert's names and was not written by an administrator: it has the installer's mark, or
    /// another program has broken it.
    private static func isOwn(_ name: String, _ file: DirectoryContent.File) -> Bool {
        guard ChainFileNames.ownLists.contains(name) else { return false }
        guard let bytes = file.bytes else { return true }
        guard let list = try? ConfigurationListFile(bytes, fileName: name) else { return true }
        return list.markedEntries > 0
    }

    var isOwnListPutAside: Bool { !ownPutAside.isEmpty }

    /// The network that is chained so far.
    var currentNetwork: String? {
        if let own = ownLists.compactMap(\.list).first { return own.network }
        if content.dropIns.count == 1 { return content.dropIns.first?.key }
        for other in others { if let list = try? other.list.get(), list.markedEntries > 0 { return list.network } }
        return nil
    }

    func currentMethod(_ target: Network) -> ChainMethod? {
        if ownLists.contains(where: { $0.list?.network == target.list.network }) { return .ownList }
        if content.dropIns[target.list.network] != nil { return .dropIn }
        return target.list.markedEntries > 0 ? .inPlace : nil
    }

    /// The first file of the network; of nil, the first file at all, which is the one that a runtime takes.
    func find(_ network: String?) -> Search {
        guard let first = others.first else { return .missing }
        guard let network else {
            switch first.list {
            case .success(let list):
                return .found(Network(name: first.file.name, list: list, body: first.file.body, precededBy: nil))
            case .failure(let failure): return .notKnown("\(first.file.name) \(failure.description)")
            }
        }
        for other in others {
            if let list = try? other.list.get(), list.network == network {
                let name = other.file.name
                return .found(
                    Network(
                        name: name, list: list, body: other.file.body,
                        precededBy: first.file.name == name ? nil : first.file.name))
            }
        }
        for other in others {
            if case .failure(let failure) = other.list {
                return .notKnown("\(other.file.name) \(failure.description)")
            }
        }
        return .missing
    }
}

/// The changes for each method.
private struct Plan {
    let view: DirectoryView
    let target: DirectoryView.Network
    let wishes: ChainWishes
    let isOwnListTakenAway: Bool

    /// Why a method cannot be used; nil: it can.
    func obstacle(_ method: ChainMethod) -> String? {
        switch method {
        case .ownList:
            if isOwnListTakenAway {
                return
                    "another program removes Culvert's list; Cilium does this when cni.exclusive is true: set it to false"
            }
            return ownName == nil
                ? "no file name for Culvert's own list sorts before \(target.name): rename that file" : nil
        case .dropIn:
            if !wishes.readsDropIns {
                return
                    "it is not known whether the runtime reads drop-ins (it needs libcni 1.3 or later; --runtime names the runtime's program)"
            }
            if target.list.takesDropIns { return nil }
            return target.list.isList
                ? "the file sets loadOnlyInlinedPlugins"
                : "the file configures a single plugin and not a list: make it a .conflist"
        case .inPlace:
            if !target.list.isList { return "the file configures a single plugin and not a list: make it a .conflist" }
            if case .link = target.body { return "the file is a symbolic link, which is not replaced" }
            return nil
        }
    }

    /// The name of our own list: one that is there, or the first that sorts before the network's file.
    private var ownName: String? {
        let possible = ChainFileNames.ownLists.filter { name in
            ChainFileNames.precedes(name, target.name)
                // An administrator's own file of that name stays.
                && !view.content.files.contains { file in
                    file.name == name && !view.ownLists.contains { $0.name == name }
                }
        }
        return possible.first { name in view.ownLists.contains { $0.name == name } } ?? possible.first
    }

    private var mode: UInt32 { if case .regular(_, let mode) = target.body { mode } else { 0o644 } }
    private var base: [UInt8] { target.list.withoutMarkedEntries() }
    /// The network's file without an entry of ours.
    private var cleanTarget: [DirectoryChange] {
        guard target.list.markedEntries > 0, target.list.text != base, case .regular(_, let mode) = target.body else {
            return []
        }
        return [.replace(name: target.name, expected: target.list.text, base, mode: mode)]
    }
    private func removeOwnLists(but kept: String? = nil) -> [DirectoryChange] {
        view.ownLists.filter { $0.name != kept }.map { .remove(name: $0.name) }
            + view.ownPutAside.map { .remove(name: $0) }
    }
    private func removeDropIns(but kept: String? = nil) -> [DirectoryChange] {
        view.content.dropIns.keys.sorted().filter { $0 != kept }.map { .removeDropIn(network: $0) }
    }
    /// Files of other networks, and those that no runtime reads before the network's, without entries of ours.
    private var cleanOthers: [DirectoryChange] {
        view.content.files.compactMap { file in
            guard ChainFileNames.isRead(file.name), file.name != target.name,
                !view.ownLists.contains(where: { $0.name == file.name }),
                case .regular(let bytes, let mode) = file.body,
                let list = try? ConfigurationListFile(bytes, fileName: file.name), list.withoutMarkedEntries() != bytes
            else { return nil }
            return .replace(name: file.name, expected: bytes, list.withoutMarkedEntries(), mode: mode)
        }
    }
    /// How often the plugin is called for a container that starts now.
    private var isChained: Bool {
        ChainChoice.calls(view.content, network: target.list.network, readsDropIns: wishes.readsDropIns) == 1
    }
    private var notes: [String] {
        target.precededBy.map {
            [
                "\($0) belongs to another network and sorts before \(target.name): a runtime that uses the first file does not call Culvert"
            ]
        } ?? []
    }
    private func result(
        _ method: ChainMethod?, _ changes: [DirectoryChange], _ more: [String] = [], obstacle: String = ""
    ) -> ChainDecision.Chain {
        .init(
            network: target.list.network, file: target.name, method: method, isChained: isChained,
            changes: changes + cleanOthers, notes: notes + more, obstacle: obstacle)
    }

    /// Somebody else has put the plugin into the network's file, for example Cilium itself with `cni.customConf`.
    func byOthers() -> ChainDecision.Chain {
        var more: [String] = []
        let count = target.list.foreignEntries
        let obstacle =
            count > 1
            ? "\(target.name) has \(count) entries of Culvert's plugin that somebody else wrote: remove all but one"
            : ""
        if !target.list.handsAnnotationsOver {
            more.append(
                "Culvert's entry in \(target.name) lacks the capability io.kubernetes.cri.pod-annotations: pod annotations reach the plugin only through the API server"
            )
        }
        return result(nil, cleanTarget + removeOwnLists() + removeDropIns(), more, obstacle: obstacle)
    }

    func chain(by method: ChainMethod) -> ChainDecision.Chain {
        // With a drop-in beside a list that has the entry, the plugin would be called twice: there the old goes first.
        // Everywhere else the new comes first.
        switch method {
        case .ownList:
            guard let name = ownName, let plain = try? ConfigurationListFile(base, fileName: target.name) else {
                return result(
                    method, [],
                    obstacle: "\(target.name) cannot be used without Culvert's entries in it: write it anew")
            }
            let wanted = plain.adding(wishes.entry)
            let present = view.ownLists.first { $0.name == name }
            var write: [DirectoryChange] = [.write(name: name, wanted, mode: mode)]
            if case .regular(let bytes, let bits)? = present?.body, bytes == wanted, bits == mode { write = [] }
            let clean = wishes.keepsEntryInPlace ? [] : cleanTarget
            return result(method, removeDropIns() + write + clean + removeOwnLists(but: name))
        case .dropIn:
            let network = target.list.network
            let write: [DirectoryChange] =
                view.content.dropIns[network] == wishes.entry.text
                ? [] : [.writeDropIn(network: network, wishes.entry.text)]
            return result(method, removeOwnLists() + cleanTarget + removeDropIns(but: network) + write)
        case .inPlace:
            var replace: [DirectoryChange] = []
            if !target.list.hasOnce(wishes.entry),
                let clean = try? ConfigurationListFile(base, fileName: target.name)
            {
                replace = [
                    .replace(
                        name: target.name, expected: target.list.text, clean.adding(wishes.entry), mode: mode)
                ]
            }
            return result(method, removeDropIns() + replace + removeOwnLists())
        }
    }
}

import CNftnl
import Model

/// What has to be done to the kernel's table `inet culvert`. Each is one transaction: all of it, or nothing.
public enum FirewallChange: Equatable, Sendable {
    case none
    case delete
    /// The whole table at once: there is none, or a chain or set is of another kind.
    case replace
    case edit(Edit)

    /// Chains, rules and sets that differ; everything else stays as it is, with its counters.
    public struct Edit: Equatable, Sendable {
        public enum Chain: Equatable, Sendable {
            case add(FirewallChain)
            /// All rules anew, in one go.
            case rewrite(FirewallChain)
            /// More rules behind those that are there.
            case append([FirewallRule], to: String)
            case remove(String)
        }
        public var chains: [Chain] = []
        public var newSets: [FirewallSet] = []
        public var staleSets: [String] = []
        /// Elements of sets that stay, by the set's name.
        public var added: [String: [FirewallSet.Element]] = [:]
        public var removed: [String: [FirewallSet.Element]] = [:]
        public init() {}

        public var isEmpty: Bool {
            chains.isEmpty && newSets.isEmpty && staleSets.isEmpty && added.isEmpty && removed.isEmpty
        }
        var change: FirewallChange { isEmpty ? .none : .edit(self) }

        /// Chains whose rules are made anew, and so lose their counters unless those are read before.
        var rewritesCounters: Bool {
            chains.contains {
                if case .rewrite(let chain) = $0 {
                    chain.rules.contains { $0.statements.contains(.counter) }
                } else {
                    false
                }
            }
        }
    }

    /// The commands that it stands for.
    public var operations: [String] {
        switch self {
        case .none: return []
        case .delete: return ["nft delete table inet culvert"]
        case .replace: return ["nft replace table inet culvert"]
        case .edit(let edit):
            return edit.chains.map { chain in
                switch chain {
                case .add(let chain): "nft add chain inet culvert \(chain.name)"
                case .rewrite(let chain): "nft replace rules of chain inet culvert \(chain.name)"
                case .append(let rules, let name): "nft add \(rules.count) rules to chain inet culvert \(name)"
                case .remove(let name): "nft delete chain inet culvert \(name)"
                }
            } + edit.newSets.map { "nft add set inet culvert \($0.name)" }
                + edit.staleSets.map { "nft delete set inet culvert \($0)" }
                + edit.added.sorted { $0.key < $1.key }.map { "nft add \($1.count) elements to \($0)" }
                + edit.removed.sorted { $0.key < $1.key }.map { "nft delete \($1.count) elements of \($0)" }
        }
    }

    /// From the kernel's table to the one that is wanted.
    public static func between(_ kernel: KernelFirewall?, _ wanted: FirewallTable?) -> FirewallChange {
        guard let wanted else { return kernel == nil ? .none : .delete }
        guard let kernel else { return .replace }
        var edit = Edit()
        for chain in wanted.chains {
            guard let there = kernel.chains[chain.name] else {
                edit.chains.append(.add(chain))
                continue
            }
            guard there.hook == chain.hook?.rawValue,
                chain.hook == nil || (there.kind == chain.kind.rawValue && there.priority == chain.priority)
            else { return .replace }
            let rules = chain.rules.map { rule -> String in
                guard let object = RuleExpressions.make(rule, chain: chain.name, counter: .init()) else { return "" }
                defer { nftnl_rule_free(object) }
                return RuleExpressions.text(object).text
            }
            if there.rules != rules { edit.chains.append(.rewrite(chain)) }
        }
        let names = Set(wanted.chains.map(\.name))
        edit.chains += kernel.chains.keys.filter { !names.contains($0) }.sorted().map { .remove($0) }
        for set in wanted.sets {
            guard let there = kernel.sets[set.name] else {
                edit.newSets.append(set)
                continue
            }
            guard there.flags == FirewallSocket.flags(set), there.keyLength == UInt32(set.key.bytes) else {
                return .replace
            }
            if set.dynamicSize == nil { edit.compare(set.name, there.elements, set.elements) }
        }
        let sets = Set(wanted.sets.map(\.name))
        edit.staleSets = kernel.sets.keys.filter { !sets.contains($0) }.sorted()
        return edit.change
    }

    /// The same between two tables of ours, without asking the kernel.
    public static func between(_ old: FirewallTable?, _ new: FirewallTable?) -> FirewallChange {
        guard let new else { return old == nil ? .none : .delete }
        guard let old else { return .replace }
        var edit = Edit()
        let oldChains = Dictionary(old.chains.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        for chain in new.chains {
            guard let before = oldChains[chain.name] else {
                edit.chains.append(.add(chain))
                continue
            }
            guard before.kind == chain.kind, before.hook == chain.hook, before.priority == chain.priority else {
                return .replace
            }
            if before.rules == chain.rules { continue }
            if before.rules.count < chain.rules.count, Array(chain.rules.prefix(before.rules.count)) == before.rules {
                edit.chains.append(.append(Array(chain.rules.dropFirst(before.rules.count)), to: chain.name))
            } else {
                edit.chains.append(.rewrite(chain))
            }
        }
        let names = Set(new.chains.map(\.name))
        edit.chains += old.chains.filter { !names.contains($0.name) }.map { .remove($0.name) }
        let oldSets = Dictionary(old.sets.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        for set in new.sets {
            guard let before = oldSets[set.name] else {
                edit.newSets.append(set)
                continue
            }
            guard before.key == set.key, before.interval == set.interval, before.isVerdictMap == set.isVerdictMap else {
                return .replace
            }
            if before.elements != set.elements { edit.compare(set.name, before.elements, set.elements) }
        }
        let sets = Set(new.sets.map(\.name))
        edit.staleSets = old.sets.map(\.name).filter { !sets.contains($0) }
        return edit.change
    }
}

extension FirewallChange.Edit {
    fileprivate mutating func compare(_ name: String, _ before: [FirewallSet.Element], _ after: [FirewallSet.Element]) {
        let (new, gone) = FirewallSet.difference(before, after)
        if !new.isEmpty { added[name] = new }
        if !gone.isEmpty { removed[name] = gone }
    }
}

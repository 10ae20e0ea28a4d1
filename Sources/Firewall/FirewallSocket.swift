import CLinux
import CMnl
import CNftnl
import Model
import Netlink

/// The kernel's table `inet culvert`, as far as it can be compared.
public struct KernelFirewall {
    /// A counted rule, for people.
    public struct CountedRule: Equatable, Sendable {
        public let chain: String
        public let comment: String
        public let packets: UInt64
        public let bytes: UInt64
    }
    struct Chain: Equatable {
        var kind: String
        /// nil: no base chain.
        var hook: UInt32?
        var priority: Int32
        var rules: [String] = []
    }
    struct Set: Equatable {
        var flags: UInt32
        var keyLength: UInt32
        /// In order, each once.
        var elements: [FirewallSet.Element] = []
    }
    var chains: [String: Chain] = [:]
    var sets: [String: Set] = [:]
    public var setNames: Swift.Set<String> { Swift.Set(sets.keys) }
    public internal(set) var counters: [CountedRule] = []
    /// Keyed by chain and comment, to carry counters over a replacement.
    var counterValues: [String: RuleExpressions.Counter] = [:]
}

/// nftables through libnftnl. Each change is one transaction: all of it, or nothing.
public final class FirewallSocket {
    let socket: NetlinkSocket
    /// Of the last message that was sent.
    private(set) var sequence: UInt32 = 1

    public init() throws { socket = try NetlinkSocket(bus: NETLINK_NETFILTER) }
    var portOfSocket: UInt32 { socket.port }

    // MARK: reading

    /// `nft list table inet culvert`; nil where there is none.
    public func read() throws -> KernelFirewall? {
        var exists = false
        let get = request(NFT_MSG_GETTABLE, family: UInt32(NFPROTO_INET), flags: 0, "nft list tables") {
            mnl_attr_put_strz($0, UInt16(NFTA_TABLE_NAME.rawValue), Ownership.firewallTable)
        }
        do { try socket.get(get) { _ in exists = true } } catch let error as NetlinkError {
            if error.code == ENOENT { return nil }
            if error.code == EINVAL || error.code == EOPNOTSUPP || error.code == EPROTONOSUPPORT {
                throw NetlinkError(
                    operation: "nft list tables", code: error.code,
                    kernelMessage: "this kernel has no nf_tables, and it cannot be loaded (modprobe nf_tables)")
            }
            throw error
        }
        guard exists else { return nil }
        var result = KernelFirewall()
        try socket.dump(
            request(NFT_MSG_GETCHAIN, family: UInt32(NFPROTO_INET), flags: NLM_F_DUMP, "nft list chains") { _ in },
            restart: result.chains.removeAll()
        ) { reply in
            guard let chain = nftnl_chain_alloc() else { return }
            defer { nftnl_chain_free(chain) }
            guard nftnl_chain_nlmsg_parse(reply.header, chain) == 0,
                text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TABLE.rawValue))) == Ownership.firewallTable,
                nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_FAMILY.rawValue)) == UInt32(NFPROTO_INET)
            else { return }
            result.chains[text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_NAME.rawValue)))] = KernelFirewall.Chain(
                kind: text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TYPE.rawValue))),
                hook: nftnl_chain_is_set(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue))
                    ? nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue)) : nil,
                priority: nftnl_chain_get_s32(chain, UInt16(NFTNL_CHAIN_PRIO.rawValue)))
        }
        func forgetRules() {
            for name in result.chains.keys { result.chains[name]?.rules = [] }
            (result.counters, result.counterValues) = ([], [:])
        }
        try socket.dump(ruleRequest, restart: forgetRules()) { reply in
            guard let rule = nftnl_rule_alloc() else { return }
            defer { nftnl_rule_free(rule) }
            guard nftnl_rule_nlmsg_parse(reply.header, rule) == 0,
                text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_TABLE.rawValue))) == Ownership.firewallTable,
                nftnl_rule_get_u32(rule, UInt16(NFTNL_RULE_FAMILY.rawValue)) == UInt32(NFPROTO_INET)
            else { return }
            let chain = text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue)))
            let (body, counter) = RuleExpressions.text(rule)
            result.chains[chain]?.rules.append(body)
            if let counter, let comment = RuleExpressions.comment(rule) {
                result.counters.append(
                    .init(chain: chain, comment: comment, packets: counter.packets, bytes: counter.bytes))
                result.counterValues["\(chain)/\(comment)"] = counter
            }
        }
        try socket.dump(
            request(NFT_MSG_GETSET, family: UInt32(NFPROTO_INET), flags: NLM_F_DUMP, "nft list sets") {
                mnl_attr_put_strz($0, UInt16(NFTA_SET_TABLE.rawValue), Ownership.firewallTable)
            }, restart: result.sets.removeAll()
        ) { reply in
            guard let set = nftnl_set_alloc() else { return }
            defer { nftnl_set_free(set) }
            guard nftnl_set_nlmsg_parse(reply.header, set) == 0,
                text(nftnl_set_get_str(set, UInt16(NFTNL_SET_TABLE.rawValue))) == Ownership.firewallTable
            else { return }
            result.sets[text(nftnl_set_get_str(set, UInt16(NFTNL_SET_NAME.rawValue)))] = KernelFirewall.Set(
                flags: nftnl_set_get_u32(set, UInt16(NFTNL_SET_FLAGS.rawValue)),
                keyLength: nftnl_set_get_u32(set, UInt16(NFTNL_SET_KEY_LEN.rawValue)))
        }
        for (name, set) in result.sets where set.flags & UInt32(NFT_SET_EVAL.rawValue) == 0 {
            result.sets[name]?.elements = try readElements(name, set)
        }
        return result
    }

    private var ruleRequest: NetlinkMessage {
        request(NFT_MSG_GETRULE, family: UInt32(NFPROTO_INET), flags: NLM_F_DUMP, "nft list table inet culvert") {
            mnl_attr_put_strz($0, UInt16(NFTA_RULE_TABLE.rawValue), Ownership.firewallTable)
        }
    }

    /// What counted rules have counted so far, by chain and comment. Empty where there is no table.
    private func readCounters() throws -> [String: RuleExpressions.Counter] {
        var values: [String: RuleExpressions.Counter] = [:]
        do {
            try socket.dump(ruleRequest, restart: values.removeAll()) { reply in
                guard let rule = nftnl_rule_alloc() else { return }
                defer { nftnl_rule_free(rule) }
                guard nftnl_rule_nlmsg_parse(reply.header, rule) == 0,
                    text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_TABLE.rawValue))) == Ownership.firewallTable,
                    let comment = RuleExpressions.comment(rule), let counter = RuleExpressions.text(rule).counter
                else { return }
                values["\(text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue))))/\(comment)"] = counter
            }
        } catch let error as NetlinkError where error.code == ENOENT {
            return [:]
        }
        return values
    }

    private func readElements(_ name: String, _ kernelSet: KernelFirewall.Set) throws -> [FirewallSet.Element] {
        var elements: [FirewallSet.Element] = []
        var starts: [UInt32] = []
        var ends: Set<UInt32> = []
        let isPair = kernelSet.keyLength == UInt32(FirewallSet.Key.addressPair.bytes)
        let isMap = kernelSet.flags & UInt32(NFT_SET_MAP.rawValue) != 0
        let isInterval = kernelSet.flags & UInt32(NFT_SET_INTERVAL.rawValue) != 0
        let get = request(
            NFT_MSG_GETSETELEM, family: UInt32(NFPROTO_INET), flags: NLM_F_DUMP, "nft list set inet culvert \(name)"
        ) {
            mnl_attr_put_strz($0, UInt16(NFTA_SET_ELEM_LIST_TABLE.rawValue), Ownership.firewallTable)
            mnl_attr_put_strz($0, UInt16(NFTA_SET_ELEM_LIST_SET.rawValue), name)
        }
        func forget() {
            elements.removeAll()
            starts.removeAll()
            ends.removeAll()
        }
        try socket.dump(
            get,
            restart: forget()
        ) { reply in
            guard let set = nftnl_set_alloc() else { return }
            defer { nftnl_set_free(set) }
            guard nftnl_set_elems_nlmsg_parse(reply.header, set) == 0, let iterator = nftnl_set_elems_iter_create(set)
            else { return }
            defer { nftnl_set_elems_iter_destroy(iterator) }
            while let element = nftnl_set_elems_iter_next(iterator) {
                func value(_ attribute: Int, at offset: Int) -> UInt32? {
                    var length: UInt32 = 0
                    guard let data = nftnl_set_elem_get(element, UInt16(attribute), &length), Int(length) >= offset + 4
                    else { return nil }
                    return UInt32(bigEndian: data.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
                }
                guard let key = value(Int(NFTNL_SET_ELEM_KEY), at: 0) else { continue }
                if isMap {
                    // What leads to anything but a chain of this map is none of ours, and a number that no chain has.
                    let isJump =
                        nftnl_set_elem_get_u32(element, UInt16(NFTNL_SET_ELEM_VERDICT))
                        == UInt32(bitPattern: RuleExpressions.jump)
                    let chain = text(nftnl_set_elem_get_str(element, UInt16(NFTNL_SET_ELEM_CHAIN)))
                    let number = isJump ? FirewallSet.number(ofChain: chain, map: name) : nil
                    elements.append(.init(pair: number ?? FirewallSet.noChain, first: key, last: key))
                    continue
                }
                let flags =
                    nftnl_set_elem_is_set(element, UInt16(NFTNL_SET_ELEM_FLAGS))
                    ? nftnl_set_elem_get_u32(element, UInt16(NFTNL_SET_ELEM_FLAGS)) : 0
                if isPair {
                    let first = value(Int(NFTNL_SET_ELEM_KEY), at: 4) ?? 0
                    elements.append(
                        .init(pair: key, first: first, last: value(Int(NFTNL_SET_ELEM_KEY_END), at: 4) ?? first))
                } else if isInterval {
                    if flags & UInt32(NFT_SET_ELEM_INTERVAL_END.rawValue) != 0 {
                        ends.insert(key)
                    } else {
                        starts.append(key)
                    }
                } else {
                    elements.append(.init(first: key, last: key))
                }
            }
        }
        if isInterval && !isPair {
            let sorted = ends.sorted()
            for start in starts {
                let end = sorted.first { $0 > start }
                elements.append(.init(first: start, last: end.map { $0 - 1 } ?? .max))
            }
        }
        // The kernel may list an element twice while it makes a hash table larger.
        elements.sort()
        var last: FirewallSet.Element?
        elements.removeAll { element in
            defer { last = element }
            return element == last
        }
        return elements
    }

    // MARK: writing

    /// `NFT_SET_CONCAT` (linux 5.6), which older headers lack.
    private static let concatFlag: UInt32 = 0x80

    static func flags(_ set: FirewallSet) -> UInt32 {
        if set.dynamicSize != nil { return UInt32(NFT_SET_TIMEOUT.rawValue) | UInt32(NFT_SET_EVAL.rawValue) }
        if set.isVerdictMap { return UInt32(NFT_SET_MAP.rawValue) }
        return set.interval ? UInt32(NFT_SET_INTERVAL.rawValue) | (set.key == .addressPair ? concatFlag : 0) : 0
    }

    /// Makes the change, as one transaction.
    ///
    /// - Parameters:
    ///   - counters: the kernel's table so far, whose counters go on counting.
    ///   - flows: what is put into the set `Ownership.flowsWithoutZone` when it is made, with the rules that ask it.
    public func apply(
        _ change: FirewallChange, wanted: FirewallTable?, counters: KernelFirewall? = nil,
        flowsWithoutZone flows: [[UInt8]] = []
    ) throws {
        var batch = FirewallBatch(firstSequence: sequence)
        func start(_ rule: FirewallRule, _ chain: String, _ before: [String: RuleExpressions.Counter])
            -> RuleExpressions
            .Counter
        { rule.comment.flatMap { before["\(chain)/\($0)"] } ?? .init() }
        switch change {
        case .none: return
        case .delete: batch.deleteTable(operation: "nft delete table inet culvert")
        case .replace:
            guard let wanted else { return }
            let before = try counters?.counterValues ?? readCounters()
            batch.addTable()
            batch.deleteTable(operation: "nft delete table inet culvert")
            batch.addTable()
            for chain in wanted.chains { batch.addChain(chain) }
            for set in wanted.sets { add(set, flows, &batch) }
            for chain in wanted.chains {
                for rule in chain.rules {
                    batch.addRule(rule, chain: chain.name, counter: start(rule, chain.name, before))
                }
            }
        case .edit(let edit):
            let before = edit.rewritesCounters ? try counters?.counterValues ?? readCounters() : [:]
            let sets = edit.removed.isEmpty && edit.added.isEmpty ? [] : wanted?.sets ?? []
            // Whatever names something lets go of it first: elements of verdict maps name chains, rules name sets and chains.
            for set in sets {
                if let elements = edit.removed[set.name] { batch.elements(elements, of: set, add: false) }
            }
            for chain in edit.chains {
                switch chain {
                case .rewrite(let chain): batch.deleteRules(chain.name)
                case .remove(let name): batch.deleteRules(name)
                case .add, .append: break
                }
            }
            for name in edit.staleSets { batch.deleteSet(name) }
            for case .remove(let name) in edit.chains { batch.deleteChain(name) }
            // And is made after what it names.
            for case .add(let chain) in edit.chains { batch.addChain(chain) }
            for set in edit.newSets { add(set, flows, &batch) }
            for set in sets {
                if let elements = edit.added[set.name] { batch.elements(elements, of: set, add: true) }
            }
            for chain in edit.chains {
                switch chain {
                case .add(let chain):
                    for rule in chain.rules { batch.addRule(rule, chain: chain.name, counter: .init()) }
                case .rewrite(let chain):
                    for rule in chain.rules {
                        batch.addRule(rule, chain: chain.name, counter: start(rule, chain.name, before))
                    }
                case .append(let rules, let name):
                    for rule in rules { batch.addRule(rule, chain: name, counter: .init()) }
                case .remove: break
                }
            }
        }
        try commit(&batch)
    }

    /// A connection that is older than this when it goes on is translated anew: as long as Linux remembers an idle one.
    private static let longestFlow: UInt64 = 5 * 24 * 3600

    private func add(_ set: FirewallSet, _ flows: [[UInt8]], _ batch: inout FirewallBatch) {
        batch.add(set)
        guard set.name == Ownership.flowsWithoutZone else { return }
        batch.add(flows: flows, toSet: set.name, seconds: FirewallSocket.longestFlow)
    }

    /// Sends a transaction, and waits for the kernel's word.
    ///
    /// - Throws: the kernel's error; then nothing of the transaction is done.
    func commit(_ batch: inout FirewallBatch) throws {
        let (bytes, last, operations) = batch.finish()
        sequence = batch.sequence &+ 1
        try socket.send(bytes, operation: "nft -f")
        var failure: NetlinkError?
        var done = false
        while !done {
            try socket.receive { reply in
                guard reply.type == UInt16(NLMSG_ERROR), let error = reply.fixed(nlmsgerr.self) else { return true }
                let number = reply.header.pointee.nlmsg_seq
                if error.error != 0 && failure == nil {
                    failure = NetlinkError(operation: operations[number] ?? "nft -f", code: -error.error)
                }
                // The last message is acknowledged; a transaction that fails as a whole is reported for its first.
                if number == last || (operations[number] == nil && error.error != 0) { done = true }
                return true
            }
        }
        if let failure { throw failure }
    }
}

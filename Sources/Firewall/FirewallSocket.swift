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
        var hook: UInt32
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
    public internal(set) var counters: [CountedRule] = []
    /// Keyed by chain and comment, to carry counters over a replacement.
    var counterValues: [String: RuleExpressions.Counter] = [:]
}

/// nftables through libnftnl. Each change is one transaction: all of it, or nothing.
public final class FirewallSocket {
    private let socket: NetlinkSocket
    private var sequence: UInt32 = 1

    /// nft's numbers of the data types `ipv4_addr`, and of two of them joined (six bits each).
    private static let addressType: UInt32 = 7
    private static let addressPairType: UInt32 = 7 << 6 | 7

    public init() throws { socket = try NetlinkSocket(bus: NETLINK_NETFILTER) }
    var portOfSocket: UInt32 { socket.port }

    // MARK: reading

    private func request(
        _ command: nf_tables_msg_types, flags: Int32, _ operation: String,
        _ body: (UnsafeMutablePointer<nlmsghdr>) -> Void
    )
        -> NetlinkMessage
    {
        let bytes = [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
            guard let base = buffer.baseAddress,
                let header = nftnl_nlmsg_build_hdr(
                    base, UInt16(command.rawValue), UInt16(NFPROTO_INET), UInt16(flags), 0)
            else { return }
            body(header)
            count = Int(header.pointee.nlmsg_len)
        }
        return NetlinkMessage(operation: operation, raw: bytes)
    }

    /// `nft list table inet culvert`; nil where there is none.
    public func read() throws -> KernelFirewall? {
        var exists = false
        let get = request(NFT_MSG_GETTABLE, flags: 0, "nft list tables") {
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
            request(NFT_MSG_GETCHAIN, flags: NLM_F_DUMP, "nft list chains") { _ in }, restart: result.chains.removeAll()
        ) { reply in
            guard let chain = nftnl_chain_alloc() else { return }
            defer { nftnl_chain_free(chain) }
            guard nftnl_chain_nlmsg_parse(reply.header, chain) == 0,
                text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TABLE.rawValue))) == Ownership.firewallTable,
                nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_FAMILY.rawValue)) == UInt32(NFPROTO_INET)
            else { return }
            result.chains[text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_NAME.rawValue)))] = KernelFirewall.Chain(
                kind: text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TYPE.rawValue))),
                hook: nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue)),
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
            request(NFT_MSG_GETSET, flags: NLM_F_DUMP, "nft list sets") {
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
        for (name, set) in result.sets { result.sets[name]?.elements = try readElements(name, set) }
        return result
    }

    private var ruleRequest: NetlinkMessage {
        request(NFT_MSG_GETRULE, flags: NLM_F_DUMP, "nft list table inet culvert") {
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
        let isInterval = kernelSet.flags & UInt32(NFT_SET_INTERVAL.rawValue) != 0
        let get = request(NFT_MSG_GETSETELEM, flags: NLM_F_DUMP, "nft list set inet culvert \(name)") {
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
        set.interval ? UInt32(NFT_SET_INTERVAL.rawValue) | (set.key == .addressPair ? concatFlag : 0) : 0
    }

    /// Makes the change, as one transaction.
    ///
    /// - Parameter counters: the kernel's table so far, whose counters go on counting.
    public func apply(_ change: FirewallChange, wanted: FirewallTable?, counters: KernelFirewall? = nil) throws {
        var batch = Batch(firstSequence: sequence)
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
            for set in wanted.sets { batch.add(set) }
            for chain in wanted.chains {
                batch.addChain(chain)
                for rule in chain.rules {
                    batch.addRule(rule, chain: chain.name, counter: start(rule, chain.name, before))
                }
            }
        case .edit(let edit):
            let before = edit.rewritesCounters ? try counters?.counterValues ?? readCounters() : [:]
            // Rules that are made anew let go of their sets first.
            for chain in edit.chains {
                switch chain {
                case .rewrite(let chain): batch.deleteRules(chain.name)
                case .remove(let name):
                    batch.deleteRules(name)
                    batch.deleteChain(name)
                case .add, .append: break
                }
            }
            for name in edit.staleSets { batch.deleteSet(name) }
            for set in edit.newSets { batch.add(set) }
            for set in wanted?.sets ?? [] {
                if let elements = edit.removed[set.name] { batch.elements(elements, of: set, add: false) }
                if let elements = edit.added[set.name] { batch.elements(elements, of: set, add: true) }
            }
            for chain in edit.chains {
                switch chain {
                case .add(let chain):
                    batch.addChain(chain)
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

    /// A transaction under construction.
    private struct Batch {
        private(set) var sequence: UInt32
        private var messages: [[UInt8]] = []
        private var operations: [UInt32: String] = [:]
        private let first: UInt32

        init(firstSequence: UInt32) {
            first = firstSequence
            sequence = firstSequence
        }

        private mutating func add(
            _ operation: String, _ type: nf_tables_msg_types, flags: Int32, capacity: Int = 8192,
            _ body: (UnsafeMutablePointer<nlmsghdr>) -> Void
        ) {
            sequence &+= 1
            operations[sequence] = operation
            let number = sequence
            messages.append(
                [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
                    guard let base = buffer.baseAddress,
                        let header = nftnl_nlmsg_build_hdr(
                            base, UInt16(type.rawValue), UInt16(NFPROTO_INET), UInt16(flags), number)
                    else { return }
                    body(header)
                    count = Int(header.pointee.nlmsg_len)
                })
        }

        mutating func addTable() {
            add("nft add table inet culvert", NFT_MSG_NEWTABLE, flags: NLM_F_CREATE) {
                mnl_attr_put_strz($0, UInt16(NFTA_TABLE_NAME.rawValue), Ownership.firewallTable)
            }
        }
        mutating func deleteTable(operation: String) {
            add(operation, NFT_MSG_DELTABLE, flags: 0) {
                mnl_attr_put_strz($0, UInt16(NFTA_TABLE_NAME.rawValue), Ownership.firewallTable)
            }
        }

        private mutating func delete(_ operation: String, _ type: nf_tables_msg_types, _ attributes: [(Int, String)]) {
            add(operation, type, flags: 0) { header in
                for (attribute, name) in attributes { mnl_attr_put_strz(header, UInt16(attribute), name) }
            }
        }
        /// All rules of a chain.
        mutating func deleteRules(_ chain: String) {
            delete(
                "nft flush chain inet culvert \(chain)", NFT_MSG_DELRULE,
                [
                    (Int(NFTA_RULE_TABLE.rawValue), Ownership.firewallTable), (Int(NFTA_RULE_CHAIN.rawValue), chain),
                ])
        }
        mutating func deleteChain(_ name: String) {
            delete(
                "nft delete chain inet culvert \(name)", NFT_MSG_DELCHAIN,
                [
                    (Int(NFTA_CHAIN_TABLE.rawValue), Ownership.firewallTable), (Int(NFTA_CHAIN_NAME.rawValue), name),
                ])
        }
        mutating func deleteSet(_ name: String) {
            delete(
                "nft delete set inet culvert \(name)", NFT_MSG_DELSET,
                [(Int(NFTA_SET_TABLE.rawValue), Ownership.firewallTable), (Int(NFTA_SET_NAME.rawValue), name)])
        }

        private var lastSetID: UInt32 = 0
        /// The set with its elements.
        mutating func add(_ set: FirewallSet) {
            lastSetID += 1
            addSet(set, id: lastSetID)
            elements(set.elements, of: set, add: true)
        }

        private mutating func addSet(_ set: FirewallSet, id: UInt32) {
            guard let object = nftnl_set_alloc() else { return }
            defer { nftnl_set_free(object) }
            nftnl_set_set_str(object, UInt16(NFTNL_SET_TABLE.rawValue), Ownership.firewallTable)
            nftnl_set_set_str(object, UInt16(NFTNL_SET_NAME.rawValue), set.name)
            nftnl_set_set_u32(object, UInt16(NFTNL_SET_FAMILY.rawValue), UInt32(NFPROTO_INET))
            nftnl_set_set_u32(
                object, UInt16(NFTNL_SET_KEY_TYPE.rawValue), set.key == .addressPair ? addressPairType : addressType)
            nftnl_set_set_u32(object, UInt16(NFTNL_SET_KEY_LEN.rawValue), UInt32(set.key.bytes))
            nftnl_set_set_u32(object, UInt16(NFTNL_SET_FLAGS.rawValue), FirewallSocket.flags(set))
            nftnl_set_set_u32(object, UInt16(NFTNL_SET_ID.rawValue), id)
            if set.key == .addressPair && set.interval {
                nftnl_set_set_data(object, UInt16(NFTNL_SET_DESC_CONCAT.rawValue), [UInt8(4), 4], 2)
            }
            add("nft add set inet culvert \(set.name)", NFT_MSG_NEWSET, flags: NLM_F_CREATE | NLM_F_EXCL) {
                nftnl_set_nlmsg_build_payload($0, object)
            }
        }

        mutating func elements(_ sorted: [FirewallSet.Element], of set: FirewallSet, add adding: Bool) {
            for start in stride(from: 0, to: sorted.count, by: 256) {
                guard let object = nftnl_set_alloc() else { return }
                defer { nftnl_set_free(object) }
                nftnl_set_set_str(object, UInt16(NFTNL_SET_TABLE.rawValue), Ownership.firewallTable)
                nftnl_set_set_str(object, UInt16(NFTNL_SET_NAME.rawValue), set.name)
                for element in sorted[start..<min(start + 256, sorted.count)] { put(element, set, object) }
                let verb = adding ? "add" : "delete"
                add(
                    "nft \(verb) element inet culvert \(set.name)", adding ? NFT_MSG_NEWSETELEM : NFT_MSG_DELSETELEM,
                    flags: adding ? NLM_F_CREATE : 0, capacity: 65536
                ) { nftnl_set_elems_nlmsg_build_payload($0, object) }
            }
        }

        private func put(_ element: FirewallSet.Element, _ set: FirewallSet, _ object: OpaquePointer) {
            func bytes(_ values: UInt32...) -> [UInt8] {
                values.flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * UInt32($0))) } }
            }
            func add(_ key: [UInt8], end: [UInt8]? = nil, flags: UInt32 = 0) {
                guard let item = nftnl_set_elem_alloc() else { return }
                nftnl_set_elem_set(item, UInt16(NFTNL_SET_ELEM_KEY), key, UInt32(key.count))
                if let end { nftnl_set_elem_set(item, UInt16(NFTNL_SET_ELEM_KEY_END), end, UInt32(end.count)) }
                if flags != 0 { nftnl_set_elem_set_u32(item, UInt16(NFTNL_SET_ELEM_FLAGS), flags) }
                nftnl_set_elem_add(object, item)
            }
            if set.key == .addressPair {
                add(
                    bytes(element.pair, element.first),
                    end: set.interval ? bytes(element.pair, element.last) : nil)
            } else {
                add(bytes(element.first))
                if set.interval && element.last < .max {
                    add(bytes(element.last + 1), flags: UInt32(NFT_SET_ELEM_INTERVAL_END.rawValue))
                }
            }
        }

        mutating func addChain(_ chain: FirewallChain) {
            guard let object = nftnl_chain_alloc() else { return }
            defer { nftnl_chain_free(object) }
            nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_TABLE.rawValue), Ownership.firewallTable)
            nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_NAME.rawValue), chain.name)
            nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_TYPE.rawValue), chain.kind.rawValue)
            nftnl_chain_set_u32(object, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue), chain.hook.rawValue)
            nftnl_chain_set_s32(object, UInt16(NFTNL_CHAIN_PRIO.rawValue), chain.priority)
            nftnl_chain_set_u32(object, UInt16(NFTNL_CHAIN_POLICY.rawValue), 1)  // NF_ACCEPT
            add("nft add chain inet culvert \(chain.name)", NFT_MSG_NEWCHAIN, flags: NLM_F_CREATE | NLM_F_EXCL) {
                nftnl_chain_nlmsg_build_payload($0, object)
            }
        }

        mutating func addRule(_ rule: FirewallRule, chain: String, counter: RuleExpressions.Counter) {
            guard let object = RuleExpressions.make(rule, chain: chain, counter: counter) else { return }
            defer { nftnl_rule_free(object) }
            let name = rule.comment.map { " comment \"\($0)\"" } ?? ""
            add("nft add rule inet culvert \(chain)\(name)", NFT_MSG_NEWRULE, flags: NLM_F_CREATE | NLM_F_APPEND) {
                nftnl_rule_nlmsg_build_payload($0, object)
            }
        }

        /// The whole batch, the number of the message that is acknowledged, and what each message stands for.
        mutating func finish() -> (bytes: [UInt8], last: UInt32, operations: [UInt32: String]) {
            func edge(_ build: (UnsafeMutablePointer<CChar>, UInt32) -> Void, _ number: UInt32) -> [UInt8] {
                [UInt8](unsafeUninitializedCapacity: 64) { buffer, count in
                    guard let base = buffer.baseAddress else { return }
                    UnsafeMutableRawPointer(base).withMemoryRebound(to: CChar.self, capacity: 64) { build($0, number) }
                    count = Int(UnsafeRawPointer(base).load(as: nlmsghdr.self).nlmsg_len)
                }
            }
            let last = sequence
            sequence &+= 1
            if var message = messages.popLast() {
                message.withUnsafeMutableBytes { raw in
                    raw.baseAddress?.assumingMemoryBound(to: nlmsghdr.self).pointee.nlmsg_flags |= UInt16(NLM_F_ACK)
                }
                messages.append(message)
            }
            let bytes =
                edge({ nftnl_batch_begin($0, $1) }, first) + messages.flatMap { $0 }
                + edge({ nftnl_batch_end($0, $1) }, sequence)
            return (bytes, last, operations)
        }
    }

    private func text(_ pointer: UnsafePointer<CChar>?) -> String { pointer.map { String(cString: $0) } ?? "" }
}

import CLinux
import CMnl
import CNftnl
import Model
import Netlink

/// A transaction under construction.
struct FirewallBatch {
    /// nft's numbers of the data types `ipv4_addr`, and of two of them joined (six bits each).
    private static let addressType: UInt32 = 7
    private static let addressPairType: UInt32 = 7 << 6 | 7
    /// Two of them, `inet_proto` and two of `inet_service`.
    private static let flowType: UInt32 = ((addressPairType << 6 | 12) << 6 | 13) << 6 | 13

    /// linux/netfilter/nf_tables.h: `NFT_DATA_VERDICT`.
    private static let verdictType: UInt32 = 0xFFFF_FF00

    private(set) var sequence: UInt32
    private var messages: [[UInt8]] = []
    private var operations: [UInt32: String] = [:]
    private let first: UInt32

    init(firstSequence: UInt32) {
        first = firstSequence
        sequence = firstSequence
    }

    private mutating func add(
        _ operation: String, _ type: nf_tables_msg_types, family: UInt32 = UInt32(NFPROTO_INET), flags: Int32,
        capacity: Int = 8192,
        _ body: (UnsafeMutablePointer<nlmsghdr>) -> Void
    ) {
        sequence &+= 1
        operations[sequence] = operation
        let number = sequence
        messages.append(
            [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
                guard let base = buffer.baseAddress,
                    let header = nftnl_nlmsg_build_hdr(
                        base, UInt16(type.rawValue), UInt16(family), UInt16(flags), number)
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
    /// Of another program's table.
    ///
    /// - Parameter family: `NFPROTO_…`
    mutating func deleteForeignRule(_ family: UInt32, table: String, chain: String, handle: UInt64) {
        add("nft delete rule \(table) \(chain)", NFT_MSG_DELRULE, family: family, flags: 0) {
            mnl_attr_put_strz($0, UInt16(NFTA_RULE_TABLE.rawValue), table)
            mnl_attr_put_strz($0, UInt16(NFTA_RULE_CHAIN.rawValue), chain)
            mnl_attr_put_u64($0, UInt16(NFTA_RULE_HANDLE.rawValue), handle.bigEndian)
        }
    }
    /// Of another program's table.
    mutating func deleteForeignChain(_ family: UInt32, table: String, chain: String) {
        add("nft delete chain \(table) \(chain)", NFT_MSG_DELCHAIN, family: family, flags: 0) {
            mnl_attr_put_strz($0, UInt16(NFTA_CHAIN_TABLE.rawValue), table)
            mnl_attr_put_strz($0, UInt16(NFTA_CHAIN_NAME.rawValue), chain)
        }
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
        let type: UInt32 =
            switch set.key {
            case .address, .number: Self.addressType
            case .addressPair: Self.addressPairType
            case .flow: Self.flowType
            }
        nftnl_set_set_u32(object, UInt16(NFTNL_SET_KEY_TYPE.rawValue), type)
        if let size = set.dynamicSize { nftnl_set_set_u32(object, UInt16(NFTNL_SET_DESC_SIZE.rawValue), size) }
        nftnl_set_set_u32(object, UInt16(NFTNL_SET_KEY_LEN.rawValue), UInt32(set.key.bytes))
        nftnl_set_set_u32(object, UInt16(NFTNL_SET_FLAGS.rawValue), FirewallSocket.flags(set))
        if set.isVerdictMap {
            nftnl_set_set_u32(object, UInt16(NFTNL_SET_DATA_TYPE.rawValue), Self.verdictType)
        }
        nftnl_set_set_u32(object, UInt16(NFTNL_SET_ID.rawValue), id)
        if set.key == .addressPair && set.interval {
            nftnl_set_set_data(object, UInt16(NFTNL_SET_DESC_CONCAT.rawValue), [UInt8(4), 4], 2)
        }
        add("nft add set inet culvert \(set.name)", NFT_MSG_NEWSET, flags: NLM_F_CREATE | NLM_F_EXCL) {
            nftnl_set_nlmsg_build_payload($0, object)
        }
    }

    /// Room for a message with so many elements of a set, of which it has at most 256.
    private static func room(elements count: Int) -> Int { 1024 + 256 * min(count, 256) }

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
                flags: adding ? NLM_F_CREATE : 0, capacity: Self.room(elements: sorted.count - start)
            ) { nftnl_set_elems_nlmsg_build_payload($0, object) }
        }
    }

    /// Deletes elements by their whole keys, as the kernel has listed them.
    mutating func delete(keys: ArraySlice<[UInt8]>, ofSet name: String) {
        guard let object = nftnl_set_alloc() else { return }
        defer { nftnl_set_free(object) }
        nftnl_set_set_str(object, UInt16(NFTNL_SET_TABLE.rawValue), Ownership.firewallTable)
        nftnl_set_set_str(object, UInt16(NFTNL_SET_NAME.rawValue), name)
        for key in keys {
            guard let item = nftnl_set_elem_alloc() else { return }
            nftnl_set_elem_set(item, UInt16(NFTNL_SET_ELEM_KEY), key, UInt32(key.count))
            nftnl_set_elem_add(object, item)
        }
        add(
            "nft delete element inet culvert \(name)", NFT_MSG_DELSETELEM, flags: 0,
            capacity: Self.room(elements: keys.count)
        ) { nftnl_set_elems_nlmsg_build_payload($0, object) }
    }

    /// Adds elements to a set that packets fill, by their whole keys.
    mutating func add(flows: [[UInt8]], toSet name: String, seconds: UInt64) {
        for start in stride(from: 0, to: flows.count, by: 256) {
            guard let object = nftnl_set_alloc() else { return }
            defer { nftnl_set_free(object) }
            nftnl_set_set_str(object, UInt16(NFTNL_SET_TABLE.rawValue), Ownership.firewallTable)
            nftnl_set_set_str(object, UInt16(NFTNL_SET_NAME.rawValue), name)
            for key in flows[start..<min(start + 256, flows.count)] {
                guard let item = nftnl_set_elem_alloc() else { return }
                nftnl_set_elem_set(item, UInt16(NFTNL_SET_ELEM_KEY), key, UInt32(key.count))
                nftnl_set_elem_set_u64(item, UInt16(NFTNL_SET_ELEM_TIMEOUT), seconds * 1000)
                nftnl_set_elem_add(object, item)
            }
            add(
                "nft add element inet culvert \(name)", NFT_MSG_NEWSETELEM, flags: NLM_F_CREATE,
                capacity: Self.room(elements: flows.count - start)
            ) {
                nftnl_set_elems_nlmsg_build_payload($0, object)
            }
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
        } else if set.isVerdictMap {
            guard let item = nftnl_set_elem_alloc() else { return }
            nftnl_set_elem_set(item, UInt16(NFTNL_SET_ELEM_KEY), bytes(element.first), 4)
            nftnl_set_elem_set_u32(item, UInt16(NFTNL_SET_ELEM_VERDICT), UInt32(bitPattern: RuleExpressions.jump))
            nftnl_set_elem_set_str(
                item, UInt16(NFTNL_SET_ELEM_CHAIN), FirewallSet.chain(map: set.name, number: element.pair))
            nftnl_set_elem_add(object, item)
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
        if let hook = chain.hook {
            nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_TYPE.rawValue), chain.kind.rawValue)
            nftnl_chain_set_u32(object, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue), hook.rawValue)
            nftnl_chain_set_s32(object, UInt16(NFTNL_CHAIN_PRIO.rawValue), chain.priority)
            nftnl_chain_set_u32(object, UInt16(NFTNL_CHAIN_POLICY.rawValue), 1)  // NF_ACCEPT
        }
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

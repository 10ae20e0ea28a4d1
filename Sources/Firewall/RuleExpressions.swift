import CLinux
import CNftnl
import Model

/// A rule as libnftnl's expressions, and as the text that two rules are compared by.
enum RuleExpressions {
    /// linux/netfilter/nf_tables.h: the first register.
    private static let register = UInt32(NFT_REG_1.rawValue)
    /// The 32-bit register of the nth field of a joined key, by the name that the kernel prints for it.
    private static func register(_ index: Int) -> UInt32 {
        index % 4 == 0
            ? UInt32(NFT_REG_1.rawValue) + UInt32(index / 4) : UInt32(NFT_REG32_00.rawValue) + UInt32(index)
    }

    /// linux/netfilter/nf_tables.h: `NFT_JUMP`.
    static let jump: Int32 = -3

    /// Packets and bytes of one counter.
    struct Counter: Equatable {
        var packets: UInt64 = 0
        var bytes: UInt64 = 0
    }

    /// - Parameter counter: what a counter of the rule starts with.
    static func make(_ rule: FirewallRule, chain: String, counter: Counter) -> OpaquePointer? {
        guard let object = nftnl_rule_alloc() else { return nil }
        nftnl_rule_set_str(object, UInt16(NFTNL_RULE_TABLE.rawValue), Ownership.firewallTable)
        nftnl_rule_set_str(object, UInt16(NFTNL_RULE_CHAIN.rawValue), chain)
        nftnl_rule_set_u32(object, UInt16(NFTNL_RULE_FAMILY.rawValue), UInt32(NFPROTO_INET))
        if let comment = rule.comment, let buffer = nftnl_udata_buf_alloc(256) {
            nftnl_udata_put_strz(buffer, UInt8(NFTNL_UDATA_RULE_COMMENT.rawValue), comment)
            nftnl_rule_set_data(
                object, UInt16(NFTNL_RULE_USERDATA.rawValue), nftnl_udata_buf_data(buffer), nftnl_udata_buf_len(buffer))
            nftnl_udata_buf_free(buffer)
        }
        for statement in rule.statements { add(statement, to: object, counter: counter) }
        return object
    }

    private static func expression(
        _ rule: OpaquePointer, _ name: String, _ body: (OpaquePointer) -> Void = { _ in }
    ) {
        guard let expression = nftnl_expr_alloc(name) else { return }
        body(expression)
        nftnl_rule_add_expr(rule, expression)
    }

    private static func compare(_ rule: OpaquePointer, _ bytes: [UInt8], negated: Bool = false) {
        expression(rule, "cmp") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_CMP_SREG), register)
            nftnl_expr_set_u32(
                $0, UInt16(NFTNL_EXPR_CMP_OP), UInt32((negated ? NFT_CMP_NEQ : NFT_CMP_EQ).rawValue))
            nftnl_expr_set($0, UInt16(NFTNL_EXPR_CMP_DATA), bytes, UInt32(bytes.count))
        }
    }

    private static func meta(_ rule: OpaquePointer, _ key: UInt32, into register: UInt32 = register) {
        expression(rule, "meta") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_META_KEY), key)
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_META_DREG), register)
        }
    }

    /// Clears the bits of the register that are not in the mask, and then turns those of `setting`.
    private static func mask(
        _ rule: OpaquePointer, _ bytes: [UInt8], setting: [UInt8]? = nil, in register: UInt32
    ) {
        expression(rule, "bitwise") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_BITWISE_SREG), register)
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_BITWISE_DREG), register)
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_BITWISE_OP), 0)
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_BITWISE_LEN), UInt32(bytes.count))
            nftnl_expr_set($0, UInt16(NFTNL_EXPR_BITWISE_MASK), bytes, UInt32(bytes.count))
            nftnl_expr_set(
                $0, UInt16(NFTNL_EXPR_BITWISE_XOR), setting ?? [UInt8](repeating: 0, count: bytes.count),
                UInt32(bytes.count))
        }
    }

    private static func load(_ rule: OpaquePointer, _ field: PacketField, into register: UInt32 = register) {
        let base: UInt32
        let offset: Int
        switch field {
        case .layer4Protocol: return meta(rule, UInt32(NFT_META_L4PROTO.rawValue), into: register)
        case .ipProtocol: (base, offset) = (UInt32(NFT_PAYLOAD_NETWORK_HEADER.rawValue), 9)
        case .sourceAddress: (base, offset) = (UInt32(NFT_PAYLOAD_NETWORK_HEADER.rawValue), 12)
        case .destinationAddress: (base, offset) = (UInt32(NFT_PAYLOAD_NETWORK_HEADER.rawValue), 16)
        case .icmpType: (base, offset) = (UInt32(NFT_PAYLOAD_TRANSPORT_HEADER.rawValue), 0)
        case .udpSourcePort, .sourcePort: (base, offset) = (UInt32(NFT_PAYLOAD_TRANSPORT_HEADER.rawValue), 0)
        case .udpDestinationPort, .destinationPort:
            (base, offset) = (UInt32(NFT_PAYLOAD_TRANSPORT_HEADER.rawValue), 2)
        case .tcpFlags: (base, offset) = (UInt32(NFT_PAYLOAD_TRANSPORT_HEADER.rawValue), 13)
        case .transport(let bits, _): (base, offset) = (UInt32(NFT_PAYLOAD_TRANSPORT_HEADER.rawValue), bits / 8)
        case .network(let address, let prefixLength):
            load(rule, address, into: register)
            return mask(rule, bigEndian(IPNetwork.maskV4(prefixLength), count: 4), in: register)
        }
        expression(rule, "payload") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_PAYLOAD_BASE), base)
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_PAYLOAD_OFFSET), UInt32(offset))
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_PAYLOAD_LEN), UInt32(field.bytes))
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_PAYLOAD_DREG), register)
        }
    }

    private static func interface(_ rule: OpaquePointer, key: UInt32, _ name: String, prefix: Bool, negated: Bool) {
        meta(rule, key)
        var bytes = Array(name.utf8)
        if !prefix { bytes += [UInt8](repeating: 0, count: max(0, 16 - bytes.count)) }
        compare(rule, bytes, negated: negated)
    }

    private static func verdict(_ rule: OpaquePointer, _ value: Int32) {
        expression(rule, "immediate") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_IMM_DREG), UInt32(NFT_REG_VERDICT.rawValue))
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_IMM_VERDICT), UInt32(bitPattern: value))
        }
    }

    private static func immediate(_ rule: OpaquePointer, _ bytes: [UInt8]) {
        expression(rule, "immediate") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_IMM_DREG), register)
            nftnl_expr_set($0, UInt16(NFTNL_EXPR_IMM_DATA), bytes, UInt32(bytes.count))
        }
    }

    /// Loads what connection tracking knows of the packet.
    private static func connection(_ rule: OpaquePointer, _ key: nft_ct_keys) {
        expression(rule, "ct") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_CT_KEY), key.rawValue)
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_CT_DREG), register)
        }
    }

    private static func changeMark(_ rule: OpaquePointer, clearing: UInt32, setting: UInt32) {
        meta(rule, UInt32(NFT_META_MARK.rawValue))
        mask(rule, native(~clearing), setting: native(setting), in: register)
        expression(rule, "meta") {
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_META_KEY), UInt32(NFT_META_MARK.rawValue))
            nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_META_SREG), register)
        }
    }

    /// Registers have marks and states in the machine's own byte order.
    private static func native(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

    private static func bigEndian(_ value: UInt32, count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * UInt32(count - 1 - $0))) }
    }

    private static func add(_ statement: FirewallStatement, to rule: OpaquePointer, counter: Counter) {
        switch statement {
        case .ipv4Only:
            meta(rule, UInt32(NFT_META_NFPROTO.rawValue))
            compare(rule, [UInt8(NFPROTO_IPV4)])
        case .incoming(let name, let prefix, let negated):
            interface(rule, key: UInt32(NFT_META_IIFNAME.rawValue), name, prefix: prefix, negated: negated)
        case .outgoing(let name, let prefix, let negated):
            interface(rule, key: UInt32(NFT_META_OIFNAME.rawValue), name, prefix: prefix, negated: negated)
        case .match(let field, let value, let negated):
            load(rule, field)
            compare(rule, bigEndian(value, count: field.bytes), negated: negated)
        case .tcpSyn:
            load(rule, .layer4Protocol)
            compare(rule, [6])
            load(rule, .tcpFlags)
            mask(rule, [0x06], in: register)
            compare(rule, [0x02])
        case .lookup(let fields, let set, let negated):
            for (index, field) in fields.enumerated() { load(rule, field, into: register(index)) }
            expression(rule, "lookup") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_LOOKUP_SREG), register)
                nftnl_expr_set_str($0, UInt16(NFTNL_EXPR_LOOKUP_SET), set)
                nftnl_expr_set_u32(
                    $0, UInt16(NFTNL_EXPR_LOOKUP_FLAGS), negated ? UInt32(NFT_LOOKUP_F_INV.rawValue) : 0)
            }
        case .lookUpChain(let fields, let map):
            for (index, field) in fields.enumerated() { load(rule, field, into: register(index)) }
            expression(rule, "lookup") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_LOOKUP_SREG), register)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_LOOKUP_DREG), UInt32(NFT_REG_VERDICT.rawValue))
                nftnl_expr_set_str($0, UInt16(NFTNL_EXPR_LOOKUP_SET), map)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_LOOKUP_FLAGS), 0)
            }
        case .update(let fields, let set, let seconds):
            for (index, field) in fields.enumerated() { load(rule, field, into: register(index)) }
            expression(rule, "dynset") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_DYNSET_SREG_KEY), register)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_DYNSET_OP), UInt32(NFT_DYNSET_OP_UPDATE.rawValue))
                nftnl_expr_set_u64($0, UInt16(NFTNL_EXPR_DYNSET_TIMEOUT), seconds * 1000)
                nftnl_expr_set_str($0, UInt16(NFTNL_EXPR_DYNSET_SET_NAME), set)
            }
        case .tcpFlags(let value, let flags):
            load(rule, .layer4Protocol)
            compare(rule, [6])
            load(rule, .tcpFlags)
            mask(rule, [flags.rawValue], in: register)
            compare(rule, [value.rawValue])
        case .connectionState(let states):
            connection(rule, NFT_CT_STATE)
            mask(rule, native(states.rawValue), in: register)
            compare(rule, native(0), negated: true)
        case .comesByNoRouteBack:
            expression(rule, "fib") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_FIB_DREG), register)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_FIB_RESULT), NFT_FIB_RESULT_OIF.rawValue)
                nftnl_expr_set_u32(
                    $0, UInt16(NFTNL_EXPR_FIB_FLAGS),
                    NFTA_FIB_F_SADDR.rawValue | NFTA_FIB_F_MARK.rawValue | NFTA_FIB_F_IIF.rawValue
                        | NFTA_FIB_F_PRESENT.rawValue)
            }
            compare(rule, native(0))
        case .originalDirection:
            connection(rule, NFT_CT_DIRECTION)
            compare(rule, [0])  // IP_CT_DIR_ORIGINAL
        case .destinationTranslated:
            connection(rule, NFT_CT_STATUS)
            mask(rule, native(0x20), in: register)  // IPS_DST_NAT
            compare(rule, native(0), negated: true)
        case .originalZone(let zone):
            immediate(rule, withUnsafeBytes(of: zone) { Array($0) })
            expression(rule, "ct") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_CT_KEY), NFT_CT_ZONE.rawValue)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_CT_SREG), register)
                nftnl_expr_set_u8($0, UInt16(NFTNL_EXPR_CT_DIR), 0)  // IP_CT_DIR_ORIGINAL
            }
        case .marked(let bits, let negated):
            meta(rule, UInt32(NFT_META_MARK.rawValue))
            mask(rule, native(bits), in: register)
            compare(rule, native(negated ? 0 : bits))
        case .counter:
            expression(rule, "counter") {
                nftnl_expr_set_u64($0, UInt16(NFTNL_EXPR_CTR_PACKETS), counter.packets)
                nftnl_expr_set_u64($0, UInt16(NFTNL_EXPR_CTR_BYTES), counter.bytes)
            }
        case .accept: verdict(rule, 1)  // NF_ACCEPT
        case .drop: verdict(rule, 0)  // NF_DROP
        case .notrack: expression(rule, "notrack")
        case .setMark(let bits): changeMark(rule, clearing: bits, setting: bits)
        case .clearMark(let bits): changeMark(rule, clearing: bits, setting: 0)
        case .goBack: verdict(rule, -5)  // NFT_RETURN
        case .jump(let chain):
            expression(rule, "immediate") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_IMM_DREG), UInt32(NFT_REG_VERDICT.rawValue))
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_IMM_VERDICT), UInt32(bitPattern: jump))
                nftnl_expr_set_str($0, UInt16(NFTNL_EXPR_IMM_CHAIN), chain)
            }
        case .snat(let address):
            immediate(rule, address.bytes)
            expression(rule, "nat") {
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_NAT_TYPE), UInt32(NFT_NAT_SNAT.rawValue))
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_NAT_FAMILY), UInt32(NFPROTO_IPV4))
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_NAT_REG_ADDR_MIN), register)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_NAT_REG_ADDR_MAX), register)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_NAT_FLAGS), 1)  // NF_NAT_RANGE_MAP_IPS
            }
        case .clampMSS(let size):
            immediate(rule, bigEndian(UInt32(size), count: 2))
            expression(rule, "exthdr") {
                nftnl_expr_set_u8($0, UInt16(NFTNL_EXPR_EXTHDR_TYPE), 2)  // TCPOPT_MAXSEG
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_EXTHDR_OFFSET), 2)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_EXTHDR_LEN), 2)
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_EXTHDR_OP), UInt32(NFT_EXTHDR_OP_TCPOPT.rawValue))
                nftnl_expr_set_u32($0, UInt16(NFTNL_EXPR_EXTHDR_SREG), register)
            }
        }
    }

    /// The rule's expressions in libnftnl's notation, counters without their values.
    static func text(_ rule: OpaquePointer) -> (text: String, counter: Counter?) {
        var lines: [String] = []
        var counter: Counter?
        guard let iterator = nftnl_expr_iter_create(rule) else { return ("", nil) }
        defer { nftnl_expr_iter_destroy(iterator) }
        var buffer = [CChar](repeating: 0, count: 1024)
        while let expression = nftnl_expr_iter_next(iterator) {
            let name = nftnl_expr_get_str(expression, UInt16(NFTNL_EXPR_NAME)).map { String(cString: $0) } ?? ""
            if name == "counter" {
                counter = Counter(
                    packets: nftnl_expr_get_u64(expression, UInt16(NFTNL_EXPR_CTR_PACKETS)),
                    bytes: nftnl_expr_get_u64(expression, UInt16(NFTNL_EXPR_CTR_BYTES)))
                lines.append("counter")
                continue
            }
            let length = nftnl_expr_snprintf(
                &buffer, buffer.count, expression, UInt32(NFTNL_OUTPUT_DEFAULT.rawValue), 0)
            let used = buffer.prefix(max(0, min(Int(length), buffer.count))).map { UInt8(bitPattern: $0) }
            lines.append("\(name) \(String(decoding: used.filter { $0 != 0 }, as: UTF8.self))")
        }
        return (lines.joined(separator: "; "), counter)
    }

    static func comment(_ rule: OpaquePointer) -> String? {
        var length: UInt32 = 0
        guard let data = nftnl_rule_get_data(rule, UInt16(NFTNL_RULE_USERDATA.rawValue), &length), length > 2 else {
            return nil
        }
        let bytes = UnsafeRawBufferPointer(start: data, count: Int(length))
        // Type, length, text with its NUL (libnftnl's udata attributes); the comment is the only one we write.
        guard bytes[0] == UInt8(NFTNL_UDATA_RULE_COMMENT.rawValue), Int(bytes[1]) + 2 <= bytes.count else { return nil }
        return String(decoding: bytes[2..<(2 + Int(bytes[1]))].filter { $0 != 0 }, as: UTF8.self)
    }
}

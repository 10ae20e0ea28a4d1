import CLinux
import Model

extension NetlinkSocket {
    /// `ip -4 rule show`, ours. (The kernel takes no filter for rules.)
    public func ownRules() throws -> [Rule] {
        var rules: [Rule] = []
        var header = fib_rule_hdr()
        header.family = UInt8(AF_INET)
        let request = NetlinkMessage(
            "ip -4 rule show", type: UInt16(RTM_GETRULE), flags: UInt16(NLM_F_DUMP), header: header)
        try dump(request) { reply in
            guard let header = reply.fixed(fib_rule_hdr.self) else { return }
            var priority: UInt32 = 0
            var source: IPAddress?
            var incoming: String?
            var table = UInt32(header.table)
            var ours = false
            for attribute in reply.attributes(after: MemoryLayout<fib_rule_hdr>.size) {
                switch attribute.type {
                case Int(FRA_PRIORITY): priority = attribute.u32
                case Int(FRA_SRC): source = attribute.address
                case Int(FRA_IIFNAME): incoming = attribute.string
                case Int(FRA_TABLE): table = attribute.u32
                case Int(FRA_PROTOCOL): ours = attribute.u8 == Ownership.routeProtocol
                default: break
                }
            }
            guard ours else { return }
            rules.append(
                Rule(
                    priority: priority, source: source.map { IPNetwork($0, prefixLength: Int(header.src_len)) },
                    incoming: incoming, table: table))
        }
        return rules
    }
}

public enum RuleRequest {
    /// `ip rule add …`
    public static func add(_ rule: Rule) -> NetlinkMessage {
        message("add", type: RTM_NEWRULE, flags: NLM_F_CREATE | NLM_F_EXCL, rule)
    }
    /// `ip rule del …`
    public static func delete(_ rule: Rule) -> NetlinkMessage { message("del", type: RTM_DELRULE, flags: 0, rule) }

    private static func message(_ verb: String, type: Int, flags: Int32, _ rule: Rule) -> NetlinkMessage {
        var header = fib_rule_hdr()
        header.family = UInt8(AF_INET)
        header.action = UInt8(FR_ACT_TO_TBL)
        header.table = rule.table < 256 ? UInt8(rule.table) : 0
        header.src_len = UInt8(rule.source?.prefixLength ?? 0)
        let what = (rule.source.map { "from \($0)" } ?? "") + (rule.incoming.map { "iif \($0)" } ?? "")
        return NetlinkMessage(
            "ip rule \(verb) priority \(rule.priority) \(what) lookup \(rule.table)", type: UInt16(type),
            flags: UInt16(flags), header: header, capacity: 256
        ) { attributes in
            attributes.u32(FRA_PRIORITY, rule.priority)
            attributes.u32(FRA_TABLE, rule.table)
            attributes.u8(FRA_PROTOCOL, Ownership.routeProtocol)
            if let source = rule.source { attributes.address(FRA_SRC, source.address) }
            if let incoming = rule.incoming { attributes.string(FRA_IIFNAME, incoming) }
        }
    }
}

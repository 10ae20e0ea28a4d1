import CLinux
import Model

extension NetlinkSocket {
    /// `ip rule show` and `ip -6 rule show`: Culvert's rules, each once. (The kernel has no filter for rules.)
    ///
    /// While another program inserts a rule, the kernel may list a rule twice, or leave one out, without an error. A
    /// rule that is listed twice is returned once. If one is left out, the kernel answers EEXIST when it is added.
    public func ownRules() throws -> [Rule] {
        var found: Set<Rule> = []
        var rules: [Rule] = []
        for family in [AF_INET, AF_INET6] {
            var header = fib_rule_hdr()
            header.family = UInt8(family)
            let request = NetlinkMessage(
                family == AF_INET ? "ip -4 rule show" : "ip -6 rule show", type: UInt16(RTM_GETRULE),
                flags: UInt16(NLM_F_DUMP), header: header)
            do {
                try dump(request) { reply in
                    guard let rule = Rule(reply, family: family), found.insert(rule).inserted else { return }
                    rules.append(rule)
                }
            } catch let error as NetlinkError
                where family == AF_INET6 && [EAFNOSUPPORT, EOPNOTSUPP].contains(error.code)
            {
                // This kernel has no IPv6, or none with rules.
            }
        }
        return rules
    }

    /// Priority of the first rule of IPv4 that asks the local table; nil: there is none. The kernel's own has 0, and Cilium moves
    /// it to 100.
    public func localRulePriority() throws -> UInt32? {
        var priorities: [UInt32] = []
        var header = fib_rule_hdr()
        header.family = UInt8(AF_INET)
        let request = NetlinkMessage(
            "ip rule show table local", type: UInt16(RTM_GETRULE), flags: UInt16(NLM_F_DUMP), header: header)
        try dump(request, restart: priorities.removeAll()) { reply in
            guard let header = reply.fixed(fib_rule_hdr.self) else { return }
            var table = UInt32(header.table)
            // The kernel leaves a priority of 0 out.
            var priority: UInt32 = 0
            for attribute in reply.attributes(after: MemoryLayout<fib_rule_hdr>.size) {
                switch attribute.type {
                case Int(FRA_TABLE): table = attribute.u32
                case Int(FRA_PRIORITY): priority = attribute.u32
                default: break
                }
            }
            if table == UInt32(RT_TABLE_LOCAL.rawValue) { priorities.append(priority) }
        }
        return priorities.min()
    }
}

extension Rule {
    /// nil: not ours, or of another family.
    public init?(_ reply: NetlinkReply, family: Int32) {
        guard let header = reply.fixed(fib_rule_hdr.self), Int32(header.family) == family else { return nil }
        var priority: UInt32 = 0
        var source: IPAddress?
        var incoming: String?
        var table = UInt32(header.table)
        var ours = false
        var mark: UInt32?
        var mask: UInt32?
        var ipProtocol: UInt8 = 0
        var port: UInt16?
        for attribute in reply.attributes(after: MemoryLayout<fib_rule_hdr>.size) {
            switch attribute.type {
            case Int(FRA_PRIORITY): priority = attribute.u32
            case Int(FRA_SRC): source = attribute.address
            case Int(FRA_IIFNAME): incoming = attribute.string
            case Int(FRA_TABLE): table = attribute.u32
            case Int(FRA_PROTOCOL): ours = attribute.u8 == Ownership.routeProtocol
            case Int(FRA_FWMARK): mark = attribute.u32
            case Int(FRA_FWMASK): mask = attribute.u32
            case Int(FRA_IP_PROTO): ipProtocol = attribute.u8
            // struct fib_rule_port_range: first and last, in the machine's own byte order.
            case Int(FRA_DPORT_RANGE): port = UInt16(truncatingIfNeeded: attribute.u32)
            default: break
            }
        }
        guard ours else { return nil }
        self.init(
            priority: priority, source: source.map { IPNetwork($0, prefixLength: Int(header.src_len)) },
            incoming: incoming, mark: mask.map { .init(value: mark ?? 0, mask: $0) },
            udpPort: ipProtocol == UInt8(IPPROTO_UDP) ? port : nil,
            action: Int(header.action) == Int(FR_ACT_UNREACHABLE) ? .unreachable : .lookup(table))
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
        header.family = UInt8(rule.family == .v4 ? AF_INET : AF_INET6)
        let table = rule.table ?? 0
        header.action = UInt8(rule.table == nil ? FR_ACT_UNREACHABLE : FR_ACT_TO_TBL)
        header.table = table < 256 ? UInt8(table) : 0
        header.src_len = UInt8(rule.source?.prefixLength ?? 0)
        return NetlinkMessage(
            rule.command(verb), type: UInt16(type), flags: UInt16(flags), header: header, capacity: 256
        ) { attributes in
            attributes.u32(FRA_PRIORITY, rule.priority)
            if rule.table != nil { attributes.u32(FRA_TABLE, table) }
            attributes.u8(FRA_PROTOCOL, Ownership.routeProtocol)
            if let source = rule.source { attributes.address(FRA_SRC, source.address) }
            if let incoming = rule.incoming { attributes.string(FRA_IIFNAME, incoming) }
            if let mark = rule.mark {
                attributes.u32(FRA_FWMARK, mark.value)
                attributes.u32(FRA_FWMASK, mark.mask)
            }
            if let port = rule.udpPort {
                attributes.u8(FRA_IP_PROTO, UInt8(IPPROTO_UDP))
                attributes.u32(FRA_DPORT_RANGE, UInt32(port) << 16 | UInt32(port))
            }
        }
    }
}

extension Rule {
    /// The `ip` command with this verb.
    public func command(_ verb: String) -> String {
        "ip \(family == .v4 ? "" : "-6 ")rule \(verb) priority \(priority) \(selector) "
            + (table.map { "lookup \($0)" } ?? "unreachable")
    }
}

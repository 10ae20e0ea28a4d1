import CLinux
import CMnl
import CNftnl
import Model
import Netlink

/// What other tables drop of forwarded packets, as far as it concerns pods with a policy. Nothing in our table can overrule it.
public final class ForeignForwardChains {
    private let socket: NetlinkSocket

    /// - Throws: where a netlink socket cannot be had.
    public init() throws { socket = try NetlinkSocket(bus: NETLINK_NETFILTER) }

    /// Chains that drop forwarded packets by default, or what connection tracking calls invalid: nft's own and those of
    /// `iptables-nft`. (Those of the older `iptables-legacy` are not to be seen here.)
    public func read() throws -> [ForwardDrop] {
        struct Table: Hashable {
            let family: UInt32
            let name: String
        }
        var tables: [Table: Set<String>] = [:]
        var drops: Set<ForwardDrop> = []
        var otherHooks: [Table: Set<String>] = [:]
        func restart() {
            tables = [:]
            drops = []
            otherHooks = [:]
        }
        let chains = request(NFT_MSG_GETCHAIN, family: UInt32(NFPROTO_UNSPEC), flags: NLM_F_DUMP, "nft list chains")
        try socket.dump(chains, restart: restart()) { reply in
            guard let chain = nftnl_chain_alloc() else { return }
            defer { nftnl_chain_free(chain) }
            guard nftnl_chain_nlmsg_parse(reply.header, chain) == 0 else { return }
            let table = Table(
                family: nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_FAMILY.rawValue)),
                name: text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TABLE.rawValue))))
            guard Self.families[table.family] != nil, table.name != Ownership.firewallTable else { return }
            guard nftnl_chain_is_set(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue)) else { return }
            let name = text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_NAME.rawValue)))
            guard
                nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue)) == FirewallChain.Hook.forward.rawValue
            else {
                otherHooks[table, default: []].insert(name)
                return
            }
            tables[table, default: []].insert(name)
            if nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_POLICY.rawValue)) == 0 {  // NF_DROP
                drops.insert(ForwardDrop(table: Self.title(table.family, table.name), chain: name, what: .byDefault))
            }
        }
        for table in tables.keys {
            let rules = request(NFT_MSG_GETRULE, family: table.family, flags: NLM_F_DUMP, "nft list table") {
                mnl_attr_put_strz($0, UInt16(NFTA_RULE_TABLE.rawValue), table.name)
            }
            try socket.dump(rules) { reply in
                guard let rule = nftnl_rule_alloc() else { return }
                defer { nftnl_rule_free(rule) }
                guard nftnl_rule_nlmsg_parse(reply.header, rule) == 0 else { return }
                let chain = text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue)))
                guard otherHooks[table]?.contains(chain) != true, Self.dropsInvalid(rule) else { return }
                drops.insert(ForwardDrop(table: Self.title(table.family, table.name), chain: chain, what: .invalid))
            }
        }
        return drops.sorted { ($0.table, $0.chain, $0.what.rawValue) < ($1.table, $1.chain, $1.what.rawValue) }
    }

    private static let families: [UInt32: String] = [UInt32(NFPROTO_INET): "inet", UInt32(NFPROTO_IPV4): "ip"]
    private static func title(_ family: UInt32, _ name: String) -> String { "\(families[family] ?? "?") \(name)" }

    /// The rule asks for packets that connection tracking calls invalid, and ends in a drop.
    private static func dropsInvalid(_ rule: OpaquePointer) -> Bool {
        guard let iterator = nftnl_expr_iter_create(rule) else { return false }
        defer { nftnl_expr_iter_destroy(iterator) }
        var asksState = false
        var asksInvalid = false
        while let expression = nftnl_expr_iter_next(iterator) {
            switch text(nftnl_expr_get_str(expression, UInt16(NFTNL_EXPR_NAME))) {
            case "ct":
                asksState = nftnl_expr_get_u32(expression, UInt16(NFTNL_EXPR_CT_KEY)) == NFT_CT_STATE.rawValue
            case "bitwise" where asksState:
                let mask = number(expression, UInt16(NFTNL_EXPR_BITWISE_MASK), at: 0)
                if mask & ConnectionState.invalid.rawValue != 0 { asksInvalid = true }
                asksState = false
            case "match" where text(nftnl_expr_get_str(expression, UInt16(NFTNL_EXPR_MT_NAME))) == "conntrack":
                // linux/netfilter/xt_conntrack.h, struct xt_conntrack_mtinfo3: state_mask.
                let mask = number(expression, UInt16(NFTNL_EXPR_MT_INFO), at: 150) & 0xFFFF
                if mask & ConnectionState.invalid.rawValue != 0 { asksInvalid = true }
            case "immediate" where asksInvalid:
                if nftnl_expr_get_u32(expression, UInt16(NFTNL_EXPR_IMM_DREG)) == NFT_REG_VERDICT.rawValue,
                    nftnl_expr_get_u32(expression, UInt16(NFTNL_EXPR_IMM_VERDICT)) == 0
                {
                    return true
                }
            default: break
            }
        }
        return false
    }

    /// A number in the machine's own byte order; 0 where the attribute is shorter.
    private static func number(_ expression: OpaquePointer, _ attribute: UInt16, at offset: Int) -> UInt32 {
        var length: UInt32 = 0
        guard let data = nftnl_expr_get(expression, attribute, &length), Int(length) >= offset + 4 else { return 0 }
        return data.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
    }
}

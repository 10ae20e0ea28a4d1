import CLinux
import CMnl
import CNftnl
import Netlink

/// What Kilo adds to the tables of iptables, as nf_tables has them (`iptables-nft`): the chains KILO-NAT and KILO-IPIP, and
/// rules of other chains, each with a comment that begins with "Kilo: " (pkg/mesh/routes.go, pkg/encapsulation). What the older
/// iptables-legacy has made is not to be seen here.
public final class KiloChains {
    private let firewall: FirewallSocket
    private static let tables = ["nat", "filter"]
    private static let chains = ["KILO-NAT", "KILO-IPIP"]

    /// - Throws: where a netlink socket cannot be had.
    public init() throws { firewall = try FirewallSocket() }

    /// Removes the rules first, since they lead to the chains.
    ///
    /// - Returns: what was removed, line by line.
    /// - Throws: what the kernel refuses.
    public func remove() throws -> [String] {
        var done: [String] = []
        for (family, command) in [(UInt32(NFPROTO_IPV4), "iptables"), (UInt32(NFPROTO_IPV6), "ip6tables")] {
            for table in Self.tables {
                let rules = try rules(family, table)
                let chains = try chains(family, table)
                if rules.isEmpty && chains.isEmpty { continue }
                // All of them, or none.
                var batch = FirewallBatch(firstSequence: firewall.sequence)
                for rule in rules {
                    batch.deleteForeignRule(family, table: table, chain: rule.chain, handle: rule.handle)
                }
                for chain in chains { batch.deleteForeignChain(family, table: table, chain: chain) }
                try firewall.commit(&batch)
                done += rules.isEmpty ? [] : ["\(command) -t \(table): \(rules.count) rules of Kilo's"]
                done += chains.map { "\(command) -t \(table) -X \($0)" }
            }
        }
        return done
    }

    private func rules(_ family: UInt32, _ table: String) throws -> [(chain: String, handle: UInt64)] {
        var found: [(chain: String, handle: UInt64)] = []
        let list = request(NFT_MSG_GETRULE, family: family, flags: NLM_F_DUMP, "nft list table \(table)") {
            mnl_attr_put_strz($0, UInt16(NFTA_RULE_TABLE.rawValue), table)
        }
        do {
            try firewall.socket.dump(list, restart: found.removeAll()) { reply in
                guard let rule = nftnl_rule_alloc() else { return }
                defer { nftnl_rule_free(rule) }
                guard nftnl_rule_nlmsg_parse(reply.header, rule) == 0,
                    text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_TABLE.rawValue))) == table
                else { return }
                let chain = text(nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue)))
                guard Self.chains.contains(chain) || Self.bearsKilosComment(reply.header) else { return }
                found.append((chain, nftnl_rule_get_u64(rule, UInt16(NFTNL_RULE_HANDLE.rawValue))))
            }
        } catch let error as NetlinkError where error.code == ENOENT { return [] }
        return found
    }

    /// The comment is in a match of its own, or in the rule's user data, as iptables-nft of this or that release puts it.
    private static func bearsKilosComment(_ header: UnsafePointer<nlmsghdr>) -> Bool {
        let bytes = UnsafeRawBufferPointer(start: header, count: Int(header.pointee.nlmsg_len))
        let wanted = Array("Kilo: ".utf8)
        guard bytes.count >= wanted.count else { return false }
        return (0...bytes.count - wanted.count).contains { start in
            bytes[start] == wanted[0] && bytes[start..<start + wanted.count].elementsEqual(wanted)
        }
    }

    private func chains(_ family: UInt32, _ table: String) throws -> [String] {
        var found: [String] = []
        let list = request(NFT_MSG_GETCHAIN, family: family, flags: NLM_F_DUMP, "nft list chains")
        do {
            try firewall.socket.dump(list, restart: found.removeAll()) { reply in
                guard let chain = nftnl_chain_alloc() else { return }
                defer { nftnl_chain_free(chain) }
                guard nftnl_chain_nlmsg_parse(reply.header, chain) == 0,
                    text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TABLE.rawValue))) == table
                else { return }
                let name = text(nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_NAME.rawValue)))
                if Self.chains.contains(name) { found.append(name) }
            }
        } catch let error as NetlinkError where error.code == ENOENT { return [] }
        return found
    }
}

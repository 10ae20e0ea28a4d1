import Jansson
import Model

/// A firewall table as `nft -j list table` prints it, without metainfo, handles and counters.
enum NFTablesJSON {
    static func render(_ table: FirewallTable) -> [JSON] {
        let name = Ownership.firewallTable
        var list: [JSON] = [.make(("table", .make(("family", .string("inet")), ("name", .string(name)))))]
        for chain in table.chains {
            list.append(
                .make(
                    (
                        "chain",
                        .make(
                            ("family", .string("inet")), ("table", .string(name)), ("name", .string(chain.name)),
                            ("type", chain.hook.map { _ in .string(chain.kind.rawValue) }),
                            ("hook", chain.hook.map { .string($0.name) }),
                            ("prio", chain.hook.map { _ in .integer(Int64(chain.priority)) }),
                            ("policy", chain.hook.map { _ in .string("accept") }))
                    )))
        }
        for set in table.sets { list.append(.make((set.isVerdictMap ? "map" : "set", render(set)))) }
        for chain in table.chains {
            for rule in chain.rules {
                list.append(
                    .make(
                        (
                            "rule",
                            .make(
                                ("family", .string("inet")), ("table", .string(name)), ("chain", .string(chain.name)),
                                ("comment", rule.comment.map { .string($0) }),
                                ("expr", .array(render(rule.statements))))
                        )))
            }
        }
        return list
    }

    private static func render(_ set: FirewallSet) -> JSON {
        let pair: [JSON] = [.string("ipv4_addr"), .string("ipv4_addr")]
        let type: JSON =
            switch set.key {
            case .address, .number: .string("ipv4_addr")
            case .addressPair: .array(pair)
            case .flow: .array(pair + [.string("inet_proto"), .string("inet_service"), .string("inet_service")])
            }
        let flags = set.interval ? "interval" : set.dynamicSize == nil ? nil : "timeout"
        let elements = set.elements.map { element -> JSON in
            let value = range(element.first, element.last)
            if set.isVerdictMap {
                let chain = FirewallSet.chain(map: set.name, number: element.pair)
                return .array([value, .make(("jump", .make(("target", .string(chain)))))])
            }
            return set.key == .addressPair
                ? .make(("concat", .array([.string("\(IPAddress(v4: element.pair))"), value]))) : value
        }
        return .make(
            ("family", .string("inet")), ("name", .string(set.name)), ("table", .string(Ownership.firewallTable)),
            ("type", type), ("map", set.isVerdictMap ? .string("verdict") : nil),
            ("size", set.dynamicSize.map { .integer(Int64($0)) }),
            ("flags", flags.map { .array([.string($0)]) }),
            ("elem", elements.isEmpty ? nil : .array(elements)))
    }

    private static func range(_ first: UInt32, _ last: UInt32) -> JSON {
        if first == last { return .string("\(IPAddress(v4: first))") }
        let size = UInt64(last) - UInt64(first) + 1
        if size & (size - 1) == 0, UInt64(first) % size == 0 {
            return .make(
                (
                    "prefix",
                    .make(
                        ("addr", .string("\(IPAddress(v4: first))")),
                        ("len", .integer(Int64(32 - size.trailingZeroBitCount))))
                ))
        }
        return .make(
            ("range", .array([.string("\(IPAddress(v4: first))"), .string("\(IPAddress(v4: last))")])))
    }

    private static func match(
        _ left: JSON, _ right: JSON, negated: Bool = false, operation: String = "=="
    ) -> JSON {
        .make(("match", .make(("op", .string(negated ? "!=" : operation)), ("left", left), ("right", right))))
    }

    private static var mark: JSON { .make(("meta", .make(("key", .string("mark"))))) }

    private static func connection(_ key: String) -> JSON { .make(("ct", .make(("key", .string(key))))) }

    /// A later statement joins a flow's fields, whose names imply the protocols.
    private static func hasFlowKey(_ statements: ArraySlice<FirewallStatement>) -> Bool {
        statements.contains { statement in
            switch statement {
            case .lookup(let fields, _, _), .update(let fields, _, _): fields.contains(.sourcePort)
            default: false
            }
        }
    }

    /// One field, or several joined. nft names ports by the protocol that a statement before has asked for.
    private static func key(_ fields: [PacketField], after statements: ArraySlice<FirewallStatement>) -> JSON {
        var name = "th"
        for statement in statements {
            if case .tcpFlags = statement { name = "tcp" }
            if case .match(.layer4Protocol, let number, false) = statement { name = number == 6 ? "tcp" : "udp" }
        }
        let parts = fields.map { field -> JSON in
            switch field {
            case .sourcePort: .make(("payload", .make(("protocol", .string(name)), ("field", .string("sport")))))
            case .destinationPort: .make(("payload", .make(("protocol", .string(name)), ("field", .string("dport")))))
            default: render(field)
            }
        }
        return parts.count == 1 ? parts[0] : .make(("concat", .array(parts)))
    }

    /// Names of TCP flags; several of them as a list.
    private static func names(_ flags: TCPFlags) -> JSON {
        let names = [(TCPFlags.fin, "fin"), (.syn, "syn"), (.rst, "rst"), (.ack, "ack")]
            .filter { flags.contains($0.0) }.map { JSON.string($0.1) }
        return names.count == 1 ? names[0] : .array(names)
    }

    private static func render(_ field: PacketField) -> JSON {
        func payload(_ name: String, _ part: String) -> JSON {
            .make(("payload", .make(("protocol", .string(name)), ("field", .string(part)))))
        }
        switch field {
        case .ipProtocol: return payload("ip", "protocol")
        case .sourceAddress: return payload("ip", "saddr")
        case .destinationAddress: return payload("ip", "daddr")
        case .layer4Protocol: return .make(("meta", .make(("key", .string("l4proto")))))
        case .udpSourcePort: return payload("udp", "sport")
        case .udpDestinationPort: return payload("udp", "dport")
        case .sourcePort: return payload("th", "sport")
        case .destinationPort: return payload("th", "dport")
        case .icmpType: return payload("icmp", "type")
        case .tcpFlags: return payload("tcp", "flags")
        case .transport(let offset, let bits):
            return .make(
                (
                    "payload",
                    .make(
                        ("base", .string("th")), ("offset", .integer(Int64(offset))), ("len", .integer(Int64(bits))))
                ))
        case .network(let address, let prefixLength):
            return .make(("&", .array([render(address), .integer(Int64(IPNetwork.maskV4(prefixLength)))])))
        }
    }

    private static func render(_ statements: [FirewallStatement]) -> [JSON] {
        var result: [JSON] = []
        for (index, statement) in statements.enumerated() {
            switch statement {
            case .ipv4Only:
                // nft leaves out what a following match of an IPv4 field implies.
                let implied = statements.dropFirst(index + 1).first.map { next -> Bool in
                    if case .match(.destinationAddress, _, _) = next { return true }
                    if case .match(.sourceAddress, _, _) = next { return true }
                    if case .lookup(let fields, _, _) = next {
                        return fields == [.sourceAddress] || fields == [.destinationAddress]
                    }
                    if case .lookUpChain = next { return true }
                    if case .match(.layer4Protocol, 1, _) = next { return true }
                    return false
                }
                if implied != true, !hasFlowKey(statements[index...]) {
                    result.append(match(.make(("meta", .make(("key", .string("nfproto"))))), .string("ipv4")))
                }
            case .incoming(let name, let prefix, let negated):
                result.append(
                    match(
                        .make(("meta", .make(("key", .string("iifname"))))), .string(prefix ? name + "*" : name),
                        negated: negated))
            case .outgoing(let name, let prefix, let negated):
                result.append(
                    match(
                        .make(("meta", .make(("key", .string("oifname"))))), .string(prefix ? name + "*" : name),
                        negated: negated))
            case .match(let part, let value, let negated):
                // The port implies the protocol, and a type that of ICMP.
                if part == .layer4Protocol, value == 17, index + 1 < statements.count,
                    case .match(.udpDestinationPort, _, _) = statements[index + 1]
                {
                    continue
                }
                if part == .layer4Protocol, value == 1 || hasFlowKey(statements[index...]) { continue }
                let right: JSON
                switch part {
                case .icmpType: right = .string(value == 8 ? "echo-request" : "echo-reply")
                case .sourceAddress, .destinationAddress: right = .string("\(IPAddress(v4: value))")
                // As /etc/protocols has them: 4 is not "ipip" there.
                case .ipProtocol: right = .string(value == 47 ? "gre" : "ipencap")
                default: right = .integer(Int64(value))
                }
                result.append(match(render(part), right, negated: negated))
            case .tcpSyn:
                result.append(
                    match(
                        .make(
                            (
                                "&",
                                .array([render(.tcpFlags), .array([.string("syn"), .string("rst")])])
                            )), .string("syn")))
            case .lookup(let fields, let set, let negated):
                result.append(match(key(fields, after: statements[..<index]), .string("@\(set)"), negated: negated))
            case .lookUpChain(let fields, let map):
                let key = key(fields, after: statements[..<index])
                result.append(.make(("vmap", .make(("key", key), ("data", .string("@\(map)"))))))
            case .update(let fields, let set, let seconds):
                let element = JSON.make(
                    ("val", key(fields, after: statements[..<index])), ("timeout", .integer(Int64(seconds))))
                result.append(
                    .make(
                        (
                            "set",
                            .make(
                                ("op", .string("update")), ("elem", .make(("elem", element))),
                                ("set", .string("@\(set)")))
                        )))
            case .tcpFlags(let value, let mask):
                let left = JSON.make(("&", .array([render(.tcpFlags), names(mask)])))
                result.append(match(left, names(value)))
            case .connectionState(let states):
                let names = [
                    (ConnectionState.invalid, "invalid"), (.established, "established"), (.untracked, "untracked"),
                ].filter { states.contains($0.0) }.map { JSON.string($0.1) }
                result.append(
                    match(connection("state"), names.count == 1 ? names[0] : .array(names), operation: "in"))
            case .comesByNoRouteBack:
                let flags = ["saddr", "mark", "iif"].map { JSON.string($0) }
                result.append(
                    match(
                        .make(("fib", .make(("result", .string("oif")), ("flags", .array(flags))))), .bool(false)))
            case .originalDirection: result.append(match(connection("direction"), .string("original")))
            case .destinationTranslated:
                result.append(match(connection("status"), .string("dnat"), operation: "in"))
            case .originalZone(let zone):
                let key = JSON.make(("ct", .make(("key", .string("zone")), ("dir", .string("original")))))
                result.append(.make(("mangle", .make(("key", key), ("value", .integer(Int64(zone)))))))
            case .marked(let bits, let negated):
                result.append(
                    match(
                        .make(("&", .array([mark, .integer(Int64(bits))]))), .integer(negated ? 0 : Int64(bits))))
            case .counter: result.append(.make(("counter", .null)))
            case .accept: result.append(.make(("accept", .null)))
            case .drop: result.append(.make(("drop", .null)))
            case .notrack: result.append(.make(("notrack", .null)))
            case .setMark(let bits):
                result.append(
                    .make(
                        (
                            "mangle",
                            .make(
                                ("key", mark), ("value", .make(("|", .array([mark, .integer(Int64(bits))])))))
                        )))
            case .clearMark(let bits):
                result.append(
                    .make(
                        (
                            "mangle",
                            .make(
                                ("key", mark), ("value", .make(("&", .array([mark, .integer(Int64(~bits))])))))
                        )))
            case .goBack: result.append(.make(("return", .null)))
            case .jump(let chain): result.append(.make(("jump", .make(("target", .string(chain))))))
            case .snat(let address):
                result.append(
                    .make(("snat", .make(("family", .string("ip")), ("addr", .string("\(address)"))))))
            case .clampMSS(let size):
                result.append(
                    .make(
                        (
                            "mangle",
                            .make(
                                (
                                    "key",
                                    .make(
                                        (
                                            "tcp option",
                                            .make(("name", .string("maxseg")), ("field", .string("size")))
                                        ))
                                ), ("value", .integer(Int64(size))))
                        )))
            }
        }
        return result
    }
}

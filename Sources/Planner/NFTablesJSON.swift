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
                            ("type", .string(chain.kind.rawValue)), ("hook", .string(chain.hook.name)),
                            ("prio", .integer(Int64(chain.priority))), ("policy", .string("accept")))
                    )))
        }
        for set in table.sets { list.append(.make(("set", render(set)))) }
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
        let type: JSON =
            set.key == .addressPair ? .array([.string("ipv4_addr"), .string("ipv4_addr")]) : .string("ipv4_addr")
        let elements = set.elements.map { element -> JSON in
            let value = range(element.first, element.last)
            return set.key == .addressPair
                ? .make(("concat", .array([.string("\(IPAddress(v4: element.pair))"), value]))) : value
        }
        return .make(
            ("family", .string("inet")), ("name", .string(set.name)), ("table", .string(Ownership.firewallTable)),
            ("type", type), ("flags", set.interval ? .array([.string("interval")]) : nil),
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

    private static func match(_ left: JSON, _ right: JSON, negated: Bool = false) -> JSON {
        .make(
            (
                "match",
                .make(("op", .string(negated ? "!=" : "==")), ("left", left), ("right", right))
            ))
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
        case .udpDestinationPort: return payload("udp", "dport")
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
                    return false
                }
                if implied != true {
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
                // The port implies the protocol.
                if part == .layer4Protocol, value == 17, index + 1 < statements.count,
                    case .match(.udpDestinationPort, _, _) = statements[index + 1]
                {
                    continue
                }
                let right: JSON
                switch part {
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
                let left = fields.count == 1 ? render(fields[0]) : .make(("concat", .array(fields.map { render($0) })))
                result.append(match(left, .string("@\(set)"), negated: negated))
            case .counter: result.append(.make(("counter", .null)))
            case .accept: result.append(.make(("accept", .null)))
            case .drop: result.append(.make(("drop", .null)))
            case .notrack: result.append(.make(("notrack", .null)))
            case .setMark(let bits):
                let mark = JSON.make(("meta", .make(("key", .string("mark")))))
                result.append(
                    .make(
                        (
                            "mangle",
                            .make(
                                ("key", mark), ("value", .make(("|", .array([mark, .integer(Int64(bits))])))))
                        )))
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

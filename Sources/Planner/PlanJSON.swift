import Jansson
import Model

/// A plan as JSON, in the words of `ip -j` and `nft -j` where they print the same thing.
public enum PlanJSON {
    public static func render(_ plan: Plan) -> JSON {
        let hops = Dictionary(plan.host.nextHops.map { ($0.id, $0.target) }, uniquingKeysWith: { first, _ in first })
        return .make(
            ("links", .array(plan.host.links.map(link))),
            ("addresses", .array(plan.host.links.map(address))),
            ("nexthops", .array(plan.host.nextHops.map(nextHop))),
            ("routes", .array(plan.host.routes.map { route($0, hops: hops) })),
            ("rules", .array(plan.host.rules.map(rule))),
            ("neighbours", plan.host.neighbours.isEmpty ? nil : .array(plan.host.neighbours.map(neighbour))),
            (
                "fou",
                plan.host.fouPorts.isEmpty
                    ? nil
                    : .array(
                        plan.host.fouPorts.map {
                            .make(
                                ("port", .integer(Int64($0.port))), ("ipproto", .integer(Int64($0.ipProtocol))),
                                ("family", .string("inet")), ("local", .string("\($0.local)")))
                        })
            ),
            ("nftables", .array(plan.host.firewall.map(NFTablesJSON.render) ?? [])),
            ("wireguard", .array(plan.host.wireGuard.map { [wireGuard($0)] } ?? [])),
            (PlanField.attachments.rawValue, .array(plan.attachments.map(attachment))),
            ("policies", .array(plan.policies.map(policy))),
            ("warnings", .array(plan.warnings.map { .string($0) })))
    }

    /// `ip -j -d link show`
    static func link(_ link: Link) -> JSON {
        var data: [(String, JSON?)]
        func fou(_ port: UInt16?) -> JSON? {
            port.map {
                .make(
                    ("type", .string("fou")), ("sport", .integer(0)), ("dport", .integer(Int64($0))))
            }
        }
        switch link.kind {
        case .ipip(let local, let remote, let port):
            data = [
                ("proto", .string("ipip")), ("remote", .string(remote?.description ?? "any")),
                ("local", .string("\(local)")), ("encap", fou(port)),
            ]
        case .gre(let local, let remote, let key, let port):
            data = [
                ("remote", .string(remote?.description ?? "any")), ("local", .string("\(local)")),
                ("ikey", .string("\(IPAddress(v4: key))")), ("okey", .string("\(IPAddress(v4: key))")),
                ("encap", fou(port)),
            ]
        case .wireguard: data = []
        case .vxlan(let local, let vni, let port, _):
            data = [
                ("id", .integer(Int64(vni))), ("local", .string("\(local)")), ("port", .integer(Int64(port))),
                ("learning", .bool(false)),
            ]
        }
        let mac = link.kind.macAddress.map { JSON.string("\($0)") }
        return .make(
            ("ifname", .string(link.name)), ("mtu", .integer(Int64(link.mtu))), ("address", mac),
            ("ifalias", .string(Ownership.linkAlias)),
            (
                "linkinfo",
                .make(
                    ("info_kind", .string(link.kind.name)),
                    ("info_data", .object(data.compactMap { key, value in value.map { JSON.Member(key, $0) } })))
            ),
            ("rp_filter", .integer(Int64(link.reversePathFilter))), ("forwarding", .integer(1)))
    }

    /// In the words of wg(8). A preshared key is never shown.
    public static func wireGuard(_ device: WireGuardDevice) -> JSON {
        .make(
            ("interface", .string(device.name)), ("publicKey", .string(device.publicKey.text)),
            ("listenPort", .integer(Int64(device.listenPort))),
            (
                "peers",
                .array(
                    device.peers.map { peer in
                        .make(
                            ("publicKey", .string(peer.publicKey.text)),
                            ("presharedKey", peer.presharedKey == nil ? nil : .string("(hidden)")),
                            ("endpoint", peer.endpoint.map { .string("\($0)") } ?? .null),
                            ("allowedIPs", .array(peer.allowedIPs.map { .string("\($0)") })),
                            ("persistentKeepalive", .integer(Int64(peer.persistentKeepalive))))
                    })
            ))
    }

    /// `ip -j address show`
    static func address(_ link: Link) -> JSON {
        .make(
            ("ifname", .string(link.name)),
            (
                "addr_info",
                .array([
                    .make(
                        ("family", .string("inet")), ("local", .string("\(link.address)")), ("prefixlen", .integer(32)),
                        ("scope", .string("global")), ("label", .string(link.name)))
                ])
            ))
    }

    /// `ip -j nexthop show`
    static func nextHop(_ hop: NextHop) -> JSON {
        switch hop.target {
        case .device(let device):
            return .make(
                ("id", .integer(Int64(hop.id))), ("dev", .string(device)), ("scope", .string("link")),
                ("protocol", .string("\(Ownership.routeProtocol)")), ("flags", .array([])))
        case .via(let gateway, let device):
            return .make(
                ("id", .integer(Int64(hop.id))), ("gateway", .string("\(gateway)")), ("dev", .string(device)),
                ("scope", .string("link")), ("protocol", .string("\(Ownership.routeProtocol)")),
                ("flags", .array([.string("onlink")])))
        case .group(let member):
            return .make(
                ("id", .integer(Int64(hop.id))), ("group", .array([.make(("id", .integer(Int64(member))))])),
                ("protocol", .string("\(Ownership.routeProtocol)")), ("flags", .array([])))
        case .pair(let used, let named):
            return .make(
                ("id", .integer(Int64(hop.id))),
                (
                    "group",
                    .array(
                        [.make(("id", .integer(Int64(used))), ("weight", named == nil ? nil : .integer(255)))]
                            + (named.map { [.make(("id", .integer(Int64($0))))] } ?? []))
                ), ("type", .string("resilient")), ("protocol", .string("\(Ownership.routeProtocol)")),
                ("flags", .array([])))
        case .blackhole:
            return .make(
                ("id", .integer(Int64(hop.id))), ("blackhole", .null),
                ("protocol", .string("\(Ownership.routeProtocol)")), ("flags", .array([])))
        }
    }

    /// `ip -d -j route show table all`
    static func route(_ route: Route, hops: [UInt32: NextHop.Target]) -> JSON {
        var type = "unicast"
        var id: UInt32?
        var target: NextHop.Target?
        var scope = "global"
        switch route.kind {
        case .nextHop(let number):
            id = number
            target = hops[number]
            if let used = target?.members.first { target = hops[used] }
            if case .blackhole? = target { type = "blackhole" }
        case .device(let device):
            target = .device(device)
            scope = "link"
        case .via(let gateway, let device): target = .via(gateway, device: device)
        case .throwOn: type = "throw"
        case .unreachable: type = "unreachable"
        }
        var gateway: JSON?
        var device: JSON?
        var flags: [JSON] = []
        switch target {
        case .device(let name)?: device = .string(name)
        case .via(let address, let name)?:
            gateway = .string("\(address)")
            device = .string(name)
            flags = [.string("onlink")]
        default: break
        }
        return .make(
            ("type", .string(type)), ("dst", .string(route.destination.routeText)),
            ("nhid", id.map { .integer(Int64($0)) }), ("gateway", gateway), ("dev", device),
            ("table", .string(tableName(route.table))), ("protocol", .string("\(Ownership.routeProtocol)")),
            ("scope", .string(scope)), ("prefsrc", route.source.map { .string("\($0)") }),
            ("metric", route.metric == 0 ? nil : .integer(Int64(route.metric))),
            ("flags", .array(flags)))
    }

    private static func tableName(_ table: UInt32) -> String { table == Rule.mainTable ? "main" : "\(table)" }

    /// `ip -j rule show`
    static func rule(_ rule: Rule) -> JSON {
        func hexadecimal(_ number: UInt32) -> JSON { .string(number == 0 ? "0" : "0x" + String(number, radix: 16)) }
        return .make(
            ("priority", .integer(Int64(rule.priority))),
            ("src", .string(rule.source.map { "\($0.address)" } ?? "all")),
            ("srclen", rule.source.flatMap { $0.isHost ? nil : .integer(Int64($0.prefixLength)) }),
            ("fwmark", rule.mark.map { hexadecimal($0.value) }), ("fwmask", rule.mark.map { hexadecimal($0.mask) }),
            ("iif", rule.incoming.map { .string($0) }), ("ipproto", rule.udpPort.map { _ in .string("udp") }),
            ("dport", rule.udpPort.map { .integer(Int64($0)) }), ("table", rule.table.map { .string(tableName($0)) }),
            ("action", rule.action == .unreachable ? .string("unreachable") : nil),
            ("protocol", .string("\(Ownership.routeProtocol)")))
    }

    static func neighbour(_ neighbour: Neighbour) -> JSON {
        .make(
            ("dst", .string("\(neighbour.peer)")), ("dev", .string(neighbour.device)),
            ("lladdr", .string("\(neighbour.mac)")), ("remote", .string("\(neighbour.remote)")),
            ("vni", neighbour.vni.map { .integer(Int64($0)) }), ("state", .array([.string("PERMANENT")])))
    }

    public static func attachment(_ entry: AttachmentPlan) -> JSON {
        let attachment = entry.attachment
        return AttachmentField.object(
            (.containerID, .string(attachment.containerID)), (.ifname, .string(attachment.interfaceName)),
            (.namespace, .string(attachment.podNamespace)), (.name, .string(attachment.podName)),
            (.uid, .string(attachment.podUID)),
            (.addresses, .array(attachment.addresses.map { .string("\($0.address)") })),
            (
                .policies,
                .array(
                    entry.policies.map {
                        AttachmentPolicyField.object(
                            (.name, .string($0.name)), (.gateway, $0.gateway.map { .string($0) } ?? .null),
                            (.egressAddress, $0.egressAddress.map { .string("\($0)") } ?? .null))
                    })
            ),
            (.table, entry.table.map { .integer(Int64($0)) } ?? .null),
            (.mtu, entry.mtu.map { .integer(Int64($0)) } ?? .null), (.adopted, .bool(attachment.adopted)),
            (.adoption, entry.adoption.map { .string($0.key) }),
            (.adoptionReason, entry.adoption.map { .string($0.text) }),
            (.refused, entry.refusal.isEmpty ? nil : .string(entry.refusal)),
            (.held, entry.isHeld ? .bool(true) : nil),
            (.holds, entry.holds.isEmpty ? nil : .array(entry.holds.map { .string($0) })),
            (.uncovered, entry.uncovered.isEmpty ? nil : .array(entry.uncovered.map { .string("\($0)") })))
    }

    public static func policy(_ policy: PolicyPlan) -> JSON {
        PolicyField.object(
            (.name, .string(policy.name)), (.kind, .string(policy.source.rawValue)),
            (.gateway, policy.gateway.map { .string($0) } ?? .null),
            (.candidates, .array(policy.candidates.map { .string($0) })),
            (.isLocalGateway, .bool(policy.isLocalGateway)),
            (.egressAddress, policy.egressAddress.map { .string("\($0)") } ?? .null),
            (.destinationCIDRs, .array(policy.destinations.map { .string("\($0)") })),
            (.attachments, .integer(Int64(policy.attachments))), (.problem, .string(policy.problem)))
    }
}

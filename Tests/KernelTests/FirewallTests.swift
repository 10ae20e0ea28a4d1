import Firewall
import Foundation
import Inventory
import Jansson
import Model
import Planner
import TestSupport
import Testing

@testable import Agent
@testable import Reconcile

extension KernelNamespace {
    struct FirewallTests {
        /// What `nft -j` prints, without metainfo, handles and counters' values.
        func nftList() throws -> [JSON] {
            let result = Shell.run("nft -j list table inet culvert")
            #expect(result.status == 0, "\(result.errors)")
            let list = try #require(result.json?["nftables"]?.elements)
            return list.filter { $0["metainfo"] == nil }.map(strip)
        }

        private func strip(_ value: JSON) -> JSON {
            switch value {
            case .object(let members):
                .object(
                    members.filter { $0.key != "handle" }.map { member in
                        switch member.key {
                        case "counter": JSON.Member("counter", .null)
                        // A hash table has no order.
                        case "elem":
                            JSON.Member(
                                "elem",
                                .array((member.value.elements ?? []).map(strip).sorted { $0.text() < $1.text() }))
                        default: JSON.Member(member.key, strip(member.value))
                        }
                    }.sorted { $0.key < $1.key })
            case .array(let elements): .array(elements.map(strip))
            default: value
            }
        }

        @Test(arguments: Configuration.TunnelProtocol.allCases)
        func planPrintsItsFirewallAsNftDoes(_ tunnelProtocol: Configuration.TunnelProtocol) throws {
            let plan = TestCluster.plan(node: "n3", tunnelProtocol: tunnelProtocol)
            let firewall = try FirewallSocket()
            try firewall.apply(.replace, wanted: plan.host.firewall)
            defer { try? firewall.apply(.delete, wanted: nil) }
            let expected = (PlanJSON.render(plan)["nftables"]?.elements ?? []).map(strip)
            let actual = try nftList()
            func texts(_ list: [JSON]) -> Set<String> { Set(list.map { $0.text() }) }
            #expect(texts(expected).subtracting(texts(actual)).sorted() == [])
            #expect(texts(actual).subtracting(texts(expected)).sorted() == [])
            // And the kernel's own dump equals it.
            #expect(FirewallChange.between(try firewall.read(), plan.host.firewall) == .none)
        }

        @Test(arguments: ["remote_pods", "tunnel_peers_24", "tunnel_outer"])
        func anElementMoreIsAddedWithoutReplacingTheTable(_ name: String) throws {
            let plan = TestCluster.plan(node: "n3", tunnelProtocol: .ipip)
            var wanted = try #require(plan.host.firewall)
            let firewall = try FirewallSocket()
            try firewall.apply(.replace, wanted: wanted)
            defer { try? firewall.apply(.delete, wanted: nil) }
            let index = try #require(wanted.sets.firstIndex { $0.name == name })
            let set = wanted.sets[index]
            let more = FirewallSet.Element(
                pair: set.key == .addressPair ? 0x0AF4_0201 : 0, first: 0xC0A8_0000,
                last: set.interval ? 0xC0A8_00FF : 0xC0A8_0000)
            wanted.sets[index] = FirewallSet(
                name: name, key: set.key, interval: set.interval, elements: set.elements.dropFirst() + [more])
            let change = FirewallChange.between(try firewall.read(), wanted)
            var edit = FirewallChange.Edit()
            edit.added = [name: [more]]
            edit.removed = [name: [set.elements[0]]]
            #expect(change == .edit(edit))
            try firewall.apply(change, wanted: wanted)
            #expect(FirewallChange.between(try firewall.read(), wanted) == .none)
        }

        /// Pods with one policy each; of the first two the same destinations are claimed.
        private func firewall(pods: [Int]) throws -> FirewallTable {
            let destinations = ["0.0.0.0/0", "0.0.0.0/0", "203.0.113.0/24", "198.51.100.0/24"]
            var inventory = TestCluster.inventory
            inventory.policies = destinations.enumerated().map { number, destination in
                TestCluster.policy("p\(number)", app: "p\(number)", destinations: [destination])
            }
            let attachments = pods.map { number in
                Attachment(
                    containerID: "c\(number)", interfaceName: "eth0", podNamespace: "default", podName: "p\(number)",
                    addresses: [IPNetwork(host: IPAddress(v4: 0x0AF4_0140 + UInt32(number)))],
                    labels: ["app": "p\(number)"])
            }
            let plan = Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: attachments)
            return try #require(plan.host.firewall)
        }

        /// Whatever pods come and go: chains and sets that stay are not made anew, and each change is one transaction that the
        /// kernel takes.
        @Test func aPodOfAnotherPolicyChangesElementsOnly() throws {
            let socket = try FirewallSocket()
            var before = try firewall(pods: [0])
            try socket.apply(.replace, wanted: before)
            defer { try? socket.apply(.delete, wanted: nil) }
            for pods in [[0, 1], [0, 1, 2], [1, 2], [1, 2, 3], [3], [0, 3], [0], [], [2]] {
                let wanted = try firewall(pods: pods)
                let change = FirewallChange.between(before, wanted)
                guard case .edit(let edit) = change else {
                    Issue.record("\(pods): \(change.operations)")
                    return
                }
                for chain in edit.chains {
                    switch chain {
                    case .rewrite(let chain): Issue.record("\(pods): the rules of \(chain.name) are made anew")
                    case .append(_, let name): Issue.record("\(pods): \(name) gets another rule")
                    case .add, .remove: break
                    }
                }
                if pods == [0, 1] {
                    #expect(edit.chains == [] && edit.newSets == [], "the two pods' destinations are the same")
                    #expect(edit.added.values.allSatisfy { $0.count == 1 } && edit.removed.isEmpty)
                }
                try socket.apply(change, wanted: wanted)
                #expect(FirewallChange.between(try socket.read(), wanted) == .none, "\(pods)")
                before = wanted
            }
        }

        /// An element of a verdict map that leads elsewhere is found and put right.
        @Test func aPodThatIsLedToAnotherChainIsDriftAndRepaired() throws {
            let wanted = try firewall(pods: [0, 2])
            let socket = try FirewallSocket()
            try socket.apply(.replace, wanted: wanted)
            defer { try? socket.apply(.delete, wanted: nil) }
            let map = try #require(wanted.sets.first { $0.isVerdictMap })
            let pod = "\(IPAddress(v4: map.elements[0].first))"
            for verdict in ["accept", "jump \(FirewallSet.chain(map: map.name, number: map.elements[1].pair))"] {
                let command =
                    "nft 'delete element inet culvert \(map.name) { \(pod) }; add element inet culvert \(map.name) { \(pod) : \(verdict) }'"
                let result = Shell.run(command)
                #expect(result.status == 0, "\(result.errors)")
                let change = FirewallChange.between(try socket.read(), wanted)
                #expect(
                    change.operations == ["nft add 1 elements to \(map.name)", "nft delete 1 elements of \(map.name)"])
                try socket.apply(change, wanted: wanted)
                #expect(FirewallChange.between(try socket.read(), wanted) == .none)
            }
        }

        /// By nft and by `iptables-nft`; what drops elsewhere than in forward chains is no matter.
        @Test func othersThatDropForwardedPacketsAreFound() throws {
            let chains = try ForeignForwardChains()
            #expect(try chains.read() == [])
            defer { Shell.run("nft delete table inet fw; iptables -P FORWARD ACCEPT; iptables -F; iptables -X") }
            let made = Shell.run(
                """
                set -e; nft -f - <<'N'
                table inet fw {
                    chain in { type filter hook input priority 0; policy drop; ct state invalid drop; }
                    chain between { type filter hook forward priority 0; policy accept; ct state established,related accept; jump more; }
                    chain more { ct state invalid counter drop; }
                }
                N
                iptables -P FORWARD DROP && iptables -N ufw-forward && iptables -A FORWARD -j ufw-forward &&
                iptables -A ufw-forward -m conntrack --ctstate INVALID -j DROP &&
                iptables -A ufw-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
                """)
            #expect(made.status == 0, "\(made.errors)")
            let found = try chains.read()
            #expect(
                found == [
                    ForwardDrop(table: "inet fw", chain: "more", what: .invalid),
                    ForwardDrop(table: "ip filter", chain: "FORWARD", what: .byDefault),
                    ForwardDrop(table: "ip filter", chain: "ufw-forward", what: .invalid),
                ])
        }

        @Test func aForeignRuleInOurTableIsDriftAndRepaired() throws {
            let plan = TestCluster.plan(node: "n3", tunnelProtocol: .ipip)
            let firewall = try FirewallSocket()
            try firewall.apply(.replace, wanted: plan.host.firewall)
            defer { try? firewall.apply(.delete, wanted: nil) }
            #expect(Shell.run("nft insert rule inet culvert input accept").status == 0)
            let change = FirewallChange.between(try firewall.read(), plan.host.firewall)
            #expect(change.operations == ["nft replace rules of chain inet culvert input"])
            try firewall.apply(change, wanted: plan.host.firewall, counters: try firewall.read())
            #expect(FirewallChange.between(try firewall.read(), plan.host.firewall) == .none)
        }
    }
}

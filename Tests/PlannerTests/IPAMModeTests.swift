import Inventory
import Model
import TestSupport
import Testing

@testable import Planner

/// What each of Cilium's IPAM modes says of a node, from its objects to what a gateway lets in.
struct IPAMModeTests {
    struct Mode: Sendable, CustomTestStringConvertible {
        let name: String
        /// Of the Node.
        var podCIDRs = "[]"
        /// `spec.ipam` of the CiliumNode; empty: there is no CiliumNode.
        let ipam: String
        let networks: [String]
        var testDescription: String { name }
    }

    static let modes = [
        // Host scope: the Node's, which the CiliumNode repeats.
        Mode(
            name: "kubernetes", podCIDRs: "[10.244.7.0/24, \"fd00:7::/64\"]",
            ipam: "{podCIDRs: [10.244.7.0/24, \"fd00:7::/64\"]}", networks: ["10.244.7.0/24", "fd00:7::/64"]),
        Mode(
            name: "kubernetes, without CiliumNodes", podCIDRs: "[10.244.7.0/24]", ipam: "",
            networks: ["10.244.7.0/24"]),
        // The operator's, whatever Kubernetes' own controller gave the Node.
        Mode(
            name: "cluster-pool", podCIDRs: "[192.168.7.0/24]", ipam: "{podCIDRs: [10.0.7.0/24, 10.1.7.0/25]}",
            networks: ["10.0.7.0/24", "10.1.7.0/25"]),
        Mode(
            name: "multi-pool", podCIDRs: "[192.168.7.0/24]",
            ipam:
                "{pools: {requested: [{pool: default, needed: {ipv4-addrs: 10}}], allocated: [{pool: default, cidrs: [10.10.0.32/27, \"fd00:10::/96\"]}, {pool: mars, cidrs: [10.20.0.0/27, 10.20.0.64/27]}]}}",
            networks: ["10.10.0.32/27", "fd00:10::/96", "10.20.0.0/27", "10.20.0.64/27"]),
        Mode(
            name: "crd", ipam: "{pool: {10.30.0.9: {}, 10.30.0.5: {owner: default/a}}}",
            networks: ["10.30.0.5/32", "10.30.0.9/32"]),
        Mode(
            name: "eni", podCIDRs: "[10.244.7.0/24]",
            ipam:
                "{pre-allocate: 8, pool: {172.31.5.10: {resource: eni-0a}, 172.31.5.11: {resource: eni-0a}, 172.31.6.1: {resource: eni-0b}}}",
            networks: ["172.31.5.10/32", "172.31.5.11/32", "172.31.6.1/32"]),
        // ENI with IPv6: networks of one family, addresses of the other.
        Mode(
            name: "eni, dual stack", ipam: "{podCIDRs: [\"fd00:8::/80\"], pool: {172.31.5.10: {resource: eni-0a}}}",
            networks: ["fd00:8::/80", "172.31.5.10/32"]),
        Mode(
            name: "azure", ipam: "{available: {10.40.0.4: {resource: /subscriptions/x}, 10.40.0.5: {}}}",
            networks: ["10.40.0.4/32", "10.40.0.5/32"]),
    ]

    @Test(arguments: modes) func aNodesPodsAreKnownInEveryMode(_ mode: Mode) throws {
        let ciliumNode =
            mode.ipam.isEmpty
            ? ""
            : """
            ---
            apiVersion: cilium.io/v2
            kind: CiliumNode
            metadata: {name: x7}
            spec:
              addresses: [{type: InternalIP, ip: 10.0.0.17}, {type: CiliumInternalIP, ip: 10.99.0.7}]
              ipam: \(mode.ipam)
            """
        let text = """
            apiVersion: v1
            kind: Node
            metadata: {name: x7, annotations: {network.cilium.io/ipv4-cilium-host: 10.99.0.7}}
            spec: {podCIDRs: \(mode.podCIDRs)}
            status: {addresses: [{type: InternalIP, address: 10.0.0.17}]}
            \(ciliumNode)
            """
        guard case .success(let objects) = Manifests.parse(text, file: "x7.yaml") else {
            Issue.record("\(Manifests.parse(text, file: "x7.yaml"))")
            return
        }
        var node: Node?
        var cilium: CiliumNode?
        for object in objects {
            if case .node(let found) = object { node = found }
            if case .ciliumNode(let found) = object { cilium = found }
        }
        let merged = try #require(NodeMerge.merge(node, cilium: cilium).node)
        #expect(merged.podCIDRs.map(\.description) == mode.networks)

        // A gateway lets in what its pods send, and nothing else by its tunnel; a source leaves their packets to Cilium.
        var inventory = TestCluster.inventory
        inventory.nodes["x7"] = merged
        let gateway = TestCluster.plan(node: "n3", inventory: inventory)
        let outer = try #require(IPAddress("10.99.0.7")).v4Value
        var allowed: Set<String> = []
        for set in gateway.host.firewall?.sets ?? [] where set.name.hasPrefix("tunnel_peers_") {
            for element in set.elements where element.pair == outer {
                allowed.insert("\(IPAddress(v4: element.first))/\(set.name.dropFirst(13))")
            }
        }
        let v4 = Set(mode.networks.filter { !$0.contains(":") })
        #expect(allowed == v4.union(["10.0.0.17/32", "10.99.0.7/32"]))
        let source = TestCluster.plan(node: "n1", inventory: inventory)
        let thrown = source.host.routes.filter { $0.kind == .throwOn }.map(\.destination)
        for network in allowed.compactMap({ IPNetwork($0) }) {
            #expect(thrown.contains { $0.contains(network) }, "\(network)")
        }
    }
}

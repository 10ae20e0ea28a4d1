import Inventory
import Model
import Planner

/// The lab's cluster as an inventory: nodes n1, n2, n3; pods a and b on n1, c on n3.
public enum TestCluster {
    public static func node(_ number: Int) -> Node {
        var node = Node(name: "n\(number)")
        node.labels = ["zone": "z\(number)"]
        node.internalIPs = [IPAddress(v4: 0x0A00_000A + UInt32(number))]
        node.overlayAddresses = [IPAddress(v4: 0x0AF4_0001 + UInt32(number) << 8)]
        node.podCIDRs = [IPNetwork(IPAddress(v4: 0x0AF4_0000 + UInt32(number) << 8), prefixLength: 24)]
        return node
    }

    public static func policy(
        _ name: String, app: String = "shop", destinations: [String] = ["0.0.0.0/0"], exclusions: [String] = [],
        gateway: String = "z3", egress: EgressPolicy.Egress = .defaultAddress, source: EgressPolicy.Source = .cilium
    ) -> EgressPolicy {
        var policy = EgressPolicy(name: name, source: source)
        policy.selectors = [.init(pod: LabelSelector(matchLabels: ["app": app]))]
        policy.destinations = destinations.compactMap { IPNetwork($0) }
        policy.exclusions = exclusions.compactMap { IPNetwork($0) }
        policy.gatewaySelector = LabelSelector(matchLabels: ["zone": gateway])
        policy.egress = egress
        return policy
    }

    public static func pod(_ name: String, node: String, address: String, labels: [String: String]) -> Pod {
        var pod = Pod(namespace: "default", name: name, uid: "uid-\(name)")
        pod.nodeName = node
        pod.labels = labels
        pod.addresses = [IPAddress(address)].compactMap { $0 }
        return pod
    }

    public static var inventory: Inventory {
        var inventory = Inventory()
        for number in 1...3 { inventory.nodes["n\(number)"] = node(number) }
        inventory.policies = [
            policy("shop", exclusions: ["203.0.113.99/32"]),
            policy(
                "shop-bank", destinations: ["198.51.100.0/24"], egress: .address(IPAddress(v4: 0xC000_021F))),
        ]
        inventory.pods = [
            pod("a", node: "n1", address: "10.244.1.10", labels: ["app": "shop"]),
            pod("b", node: "n1", address: "10.244.1.11", labels: ["app": "other"]),
            pod("c", node: "n3", address: "10.244.3.12", labels: ["app": "shop"]),
        ]
        inventory.namespaces["default"] = ["team": "shop"]
        inventory.cilium = CiliumSettings(data: ["enable-endpoint-routes": "true"])
        return inventory
    }

    public static func plan(
        node: String, tunnelProtocol: Configuration.TunnelProtocol = .ipip, inventory: Inventory = inventory,
        previousIDs: AssignedIDs = AssignedIDs()
    ) -> Plan {
        var configuration = Configuration()
        configuration.tunnelProtocol = tunnelProtocol
        return Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: node), inventory: inventory,
            attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: node, attached: []),
            previousIDs: previousIDs)
    }
}

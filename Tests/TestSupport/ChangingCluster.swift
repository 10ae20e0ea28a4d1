import Model
import Planner

/// A cluster in which everything changes, drawn at random: pods, policies, gateways, nodes; refused and half-known ones too.
public enum ChangingCluster {
    /// One state of the world, from which a plan is made.
    public struct World: Sendable {
        public var configuration = Configuration()
        public var inventory = Inventory()
        public var facts = LocalFacts(nodeName: "n1")
        public var attachments: [Attachment] = []
        /// Pods whose ADD is about to come.
        public var expected: [Attachment] = []

        /// Keeps with each pod what the plan has given it, as the helper does.
        public mutating func remember(_ plan: Plan) {
            for entry in plan.attachments {
                if let place = attachments.firstIndex(where: { $0.id == entry.attachment.id }) {
                    attachments[place].assignment = entry.assigned
                }
            }
        }
    }

    static let addresses = ["203.0.113.10", "203.0.113.77", "198.51.100.5", "192.0.2.200", "8.8.8.8", "10.9.9.9"]
    /// Destinations to look at.
    public static let probes = addresses.compactMap { IPAddress($0) }
    static let blocks = [
        "0.0.0.0/0", "203.0.113.0/24", "203.0.113.0/25", "203.0.113.64/26", "198.51.100.0/24", "192.0.2.0/24",
        "8.0.0.0/8",
        "10.9.0.0/16", "10.0.0.0/8",
    ]

    public static func world(_ random: inout SeededGenerator) -> World {
        func chance(_ part: Int) -> Bool { Int.random(in: 0..<part, using: &random) == 0 }
        var world = World()
        world.inventory = Inventory()
        for number in 1...5 where number == 1 || !chance(5) {
            var node = TestCluster.node(number)
            node.labels["zone"] = "z\(Int.random(in: 2...5, using: &random))"
            if chance(8) { node.externalIPs = [IPAddress(v4: 0xCB00_710A + UInt32(number))] }
            if number > 1, chance(8) { node.overlayAddresses = [] }
            world.inventory.nodes[node.name] = node
        }
        for index in 0..<Int.random(in: 0...4, using: &random) {
            // A policy of either kind, with one gateway or with several.
            var policy = TestCluster.policy(
                "p\(index)", app: "a\(Int.random(in: 0...2, using: &random))",
                destinations: (0..<Int.random(in: 1...3, using: &random)).map { _ in
                    blocks.randomElement(using: &random)!
                },
                exclusions: (0..<Int.random(in: 0...2, using: &random)).map { _ in blocks.randomElement(using: &random)!
                },
                gateway: "z\(Int.random(in: 2...6, using: &random))",
                egress: chance(3) ? .address(IPAddress(v4: 0xC000_0200 + UInt32(index))) : .defaultAddress,
                source: chance(2) ? .culvert : .cilium)
            if chance(2) {
                policy.gatewaySelector = LabelSelector(matchExpressions: [
                    .init(
                        key: "zone", operation: .isIn,
                        values: (0..<3).map { _ in "z\(Int.random(in: 2...5, using: &random))" })
                ])
            }
            if chance(3) {
                policy.gatewayEntries.append(
                    .init(
                        LabelSelector(matchLabels: ["zone": "z\(Int.random(in: 2...5, using: &random))"]),
                        egress: policy.egress))
                policy.hasGatewayList = true
            }
            if policy.source == .culvert {
                policy.mode = chance(2) ? .spread : .activeStandby
                policy.failBack = chance(2) ? Bool.random(using: &random) : nil
                if chance(6) { policy.healthChecks.targets = [HealthTarget("192.0.2.1:443")!] }
            }
            if chance(6) {
                policy.refusal = "spec.later is not supported"
                policy.hasUnknownSelectors = chance(3)
                policy.hasUnknownDestinations = chance(3)
            }
            world.inventory.policies.append(policy)
        }
        if chance(10) { world.facts.overlayAddress = IPAddress("10.244.1.7") }
        if chance(4) {
            world.facts.reversePathFilterAll = 1
            world.facts.underlayDevice = "eth0"
        } else {
            world.facts.underlayDevice = "eth0"
        }
        world.facts.interfaces = [
            .init(
                name: "eth0", addresses: [IPNetwork("10.0.0.11/32")!], hostAddresses: [IPAddress("10.0.0.11")!],
                gateway: IPAddress("10.0.0.1"))
        ]
        world.inventory.namespaces["default"] = [:]
        world.inventory.cilium = CiliumSettings(data: ["enable-endpoint-routes": "true"])
        return world
    }

    /// The world a while later: pods come, go and change their labels.
    public static func pods(_ random: inout SeededGenerator, before: [Attachment]) -> [Attachment] {
        var pods: [Attachment] = []
        for number in 0..<4 {
            if let known = before.first(where: { $0.containerID == "c\(number)" }),
                Int.random(in: 0...3, using: &random) > 0
            {
                var pod = known
                if Int.random(in: 0...2, using: &random) == 0 {
                    pod.labels = ["app": "a\(Int.random(in: 0...3, using: &random))"]
                }
                pods.append(pod)
            } else if Bool.random(using: &random) {
                pods.append(
                    Attachment(
                        containerID: "c\(number)", interfaceName: "eth0",
                        addresses: [IPNetwork("10.244.1.\(20 + number)/32")!, IPNetwork("fd00::\(number + 1)/128")!],
                        labels: ["app": "a\(Int.random(in: 0...3, using: &random))"]))
            }
        }
        return pods
    }

    /// Some of the pods that are not there: their ADD is about to come, or never comes.
    public static func expected(_ random: inout SeededGenerator, besides pods: [Attachment]) -> [Attachment] {
        (0..<4).compactMap { number in
            if pods.contains(where: { $0.containerID == "c\(number)" }) || Bool.random(using: &random) { return nil }
            return Attachment(
                containerID: "expected\(number)", interfaceName: "eth0", addresses: [],
                labels: ["app": "a\(Int.random(in: 0...3, using: &random))"])
        }
    }

    /// What a plan promises one pod about one destination.
    public struct Promise: Sendable {
        public let isClaimed: Bool
        /// Ends of tunnels to gateways that are assigned.
        public let ends: Set<IPAddress>
    }

    public static func promise(_ plan: Plan, _ world: World, _ pod: Attachment, _ destination: IPAddress) -> Promise {
        let assigned = plan.attachments.first { $0.attachment.id == pod.id }?.assigned ?? []
        // What keeps its normal path is claimed by nobody.
        for node in world.inventory.nodes.values
        where node.addresses.contains(destination) || node.podCIDRs.contains(where: { $0.contains(destination) }) {
            return Promise(isClaimed: false, ends: [])
        }
        var ends: Set<IPAddress> = []
        var isClaimed = false
        for policy in assigned {
            guard policy.destinations.contains(where: { $0.contains(destination) }),
                !policy.exclusions.contains(where: { $0.contains(destination) })
            else { continue }
            isClaimed = true
            for gateway in policy.candidates.map(\.node) {
                if let end = gateway == "n1"
                    ? world.facts.overlayAddress ?? world.inventory.nodes["n1"]?.overlayV4
                    : world.inventory.nodes[gateway]?.overlayV4
                {
                    ends.insert(end)
                }
            }
        }
        return Promise(isClaimed: isClaimed, ends: ends)
    }
}

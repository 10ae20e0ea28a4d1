import Model
import TestSupport
import Testing

@testable import Planner

struct NodeIndexTests {
    /// Nodes come, go, change and are made anew, a few or many at a time: what was kept from plan to plan changes none.
    @Test(arguments: 0..<40 as Range<UInt64>) func aPlanIsTheSameWhateverIndexItIsGiven(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var inventory = TestCluster.inventory
        var configuration = Configuration()
        configuration.tunnelProtocol = .vxlan
        configuration.mesh.enabled = seed % 4 == 0
        var index = PlannerMemory()
        func number() -> UInt32 { UInt32.random(in: 1...120, using: &random) }
        func node(_ n: UInt32) -> Node {
            var node = Node(name: "x\(n)")
            node.labels = ["zone": "z\(UInt32.random(in: 1...6, using: &random))"]
            node.internalIPs = [IPAddress(v4: 0x0A01_0000 + n)]
            if Bool.random(using: &random) { node.externalIPs = [IPAddress(v4: 0xC633_6400 + number())] }
            if n % 7 != 0 { node.overlayAddresses = [IPAddress(v4: 0x0AF5_0001 + number() << 8)] }
            node.podCIDRs = [
                IPNetwork(IPAddress(v4: 0x0AF5_0000 + n << 8), prefixLength: n % 5 == 0 ? 26 : 24)
            ]
            if n % 11 == 0 { node.podCIDRs.append(IPNetwork("fd00::/64")!) }
            return node
        }
        for _ in 0..<30 {
            switch Int.random(in: 0...6, using: &random) {
            case 0: for _ in 0..<60 { inventory.nodes["x\(number())"] = nil }
            case 1:
                for _ in 0..<80 {
                    let n = number()
                    inventory.nodes["x\(n)"] = node(n)
                }
            case 2: inventory.nodes["n3"]?.labels["zone"] = Bool.random(using: &random) ? "z3" : "z9"
            case 3: inventory.policies[0].gatewaySelector = LabelSelector(matchLabels: ["zone": "z\(seed % 6 + 1)"])
            case 4: inventory.nodes["x\(number())"] = nil
            default:
                let n = number()
                inventory.nodes["x\(n)"] = node(n)
            }
            for name in ["n1", "n3"] {
                let attachments = Planner.adoptedAttachments(inventory: inventory, nodeName: name, attached: [])
                let kept = Planner.plan(
                    configuration: configuration, localFacts: LocalFacts(nodeName: name), inventory: inventory,
                    attachments: attachments, memory: &index)
                let fresh = Planner.plan(
                    configuration: configuration, localFacts: LocalFacts(nodeName: name), inventory: inventory,
                    attachments: attachments)
                #expect(kept == fresh)
                if seed % 2 == 0 { break }
            }
        }
    }
}

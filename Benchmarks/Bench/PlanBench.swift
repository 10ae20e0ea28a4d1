import Model
import Planner

/// How long a plan takes after a pod has come or gone, with all that the helper keeps from one plan to the next.
extension Bench {
    /// - Parameter only: nodes, policies and candidates; empty: several.
    static func plans(only: [Int] = []) {
        print("\nA plan after one pod has come or gone, 100 pods, p50 of 200")
        let sizes =
            only.count == 3
            ? [(only[0], only[1], only[2])]
            : [(3, 1, 1), (5_000, 1, 1), (3, 1_000, 1), (5_000, 1_000, 1), (53, 2, 1), (53, 2, 50)]
        for (nodes, policies, gateways) in sizes {
            var configuration = Configuration()
            configuration.tunnelProtocol = .vxlan
            var inventory = Bench.inventory(nodes: nodes, locations: 3)
            for number in 0..<gateways { inventory.nodes["n\(number + 2)"]?.labels = ["gateway": "yes"] }
            for number in 0..<policies {
                var policy = EgressPolicy(name: "p\(number)", source: .cilium)
                policy.selectors = [.init(pod: LabelSelector(matchLabels: ["app": "p\(number)"]))]
                policy.destinations = [.everythingV4]
                policy.gatewaySelector = LabelSelector(matchLabels: ["gateway": "yes"])
                inventory.policies.append(policy)
            }
            func pod(_ number: Int) -> Attachment {
                Attachment(
                    containerID: "c\(number)", interfaceName: "eth0", podNamespace: "default", podName: "a\(number)",
                    addresses: [IPNetwork(host: IPAddress(v4: 0x6400_000A + UInt32(number)))],
                    labels: ["app": "p\(number % policies)"])
            }
            let pods = (0..<100).map { pod($0) }
            for (title, extra) in [
                ("beside others", pod(policies > 100 ? policies : 100)), ("first of its policy", pod(500)),
            ] {
                var memory = PlannerMemory()
                var ids = AssignedIDs()
                var previous = GatewayActivation.Previous()
                var times: [Double] = []
                for round in 0..<410 {
                    let attachments = pods + (round % 2 == 0 ? [] : [extra])
                    let time = milliseconds {
                        let plan = Planner.plan(
                            configuration: configuration, localFacts: LocalFacts(nodeName: "n0"), inventory: inventory,
                            attachments: attachments, previous: previous, previousIDs: ids, memory: &memory)
                        // As fail-over keeps in mind what it has decided.
                        previous.decided = Dictionary(
                            plan.liveness.slots.map { ($0.key, $0.planned) }, uniquingKeysWith: { first, _ in first })
                        previous.places = Dictionary(
                            plan.liveness.slots.compactMap { slot in slot.planned.candidate.map { (slot.place, $0) } },
                            uniquingKeysWith: { first, _ in first })
                        ids = plan.ids
                        ids.retired = .init()
                        precondition(plan.attachments.count == attachments.count)
                    }
                    if round >= 10 { times.append(time) }
                }
                print(
                    "  \(nodes) nodes, \(policies) policies, \(gateways) candidates, \(title):",
                    "\(text(percentile(times, 0.5) * 1000)) us")
            }
        }
    }
}

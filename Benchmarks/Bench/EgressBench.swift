import Model
import Planner

/// How long the plan of a node takes that is a gateway and has a pod with a policy: it needs every other node twice.
extension Bench {
    static func egress() {
        var configuration = Configuration()
        configuration.tunnelProtocol = .vxlan
        var inventory = Bench.inventory(nodes: 5_000, locations: 50)
        inventory.nodes["n0"]?.labels = ["gateway": "yes"]
        var policy = EgressPolicy(name: "shop", source: .cilium)
        policy.selectors = [.init(pod: LabelSelector(matchLabels: ["app": "shop"]))]
        policy.destinations = [.everythingV4]
        policy.gatewaySelector = LabelSelector(matchLabels: ["gateway": "yes"])
        inventory.policies = [policy]
        let pod = Attachment(
            containerID: "c", interfaceName: "eth0", podNamespace: "default", podName: "a",
            addresses: [IPNetwork(host: IPAddress(v4: 0x6400_000A))], labels: ["app": "shop"])
        var times: [Double] = []
        for _ in 0..<50 {
            times.append(
                milliseconds {
                    let plan = Planner.plan(
                        configuration: configuration, localFacts: LocalFacts(nodeName: "n0"), inventory: inventory,
                        attachments: [pod])
                    precondition(!plan.host.routes.isEmpty)
                })
        }
        print(
            "\nThe plan of a gateway with a pod that has a policy, 5,000 nodes: p50 \(text(percentile(times, 0.5))) ms")
    }
}

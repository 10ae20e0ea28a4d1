import Foundation
import TestSupport
import Testing

/// The helpers with a real etcd, filled as Cilium does, as the source of their nodes.
@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root and CULVERT_LAB=1"))
struct EtcdProgramTests {
    /// Starts an etcd of a node's own, on its loopback; `lab.sh down` ends it.
    private func startStore(_ lab: Lab, _ node: String) {
        Shell.run(
            """
            (exec ip netns exec \(lab.prefix)-\(node) etcd --data-dir \(lab.directory)/\(node).etcd --listen-client-urls http://127.0.0.1:2379 \
                --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
                > \(lab.directory)/\(node).etcd.log 2>&1 < /dev/null) & echo $! > \(lab.directory)/\(node).etcd.pid
            """)
        for _ in 0..<100 where ctl(lab, node, "endpoint health").status != 0 { usleep(100_000) }
    }
    @discardableResult
    private func ctl(_ lab: Lab, _ node: String, _ command: String, input: String? = nil) -> CommandResult {
        Shell.run("ip netns exec \(lab.prefix)-\(node) env ETCDCTL_API=3 etcdctl \(command)", input: input)
    }
    private func put(_ lab: Lab, _ node: String, _ n: Int, zone: String) {
        ctl(
            lab, node, "put cilium/state/nodes/v1/default/n\(n)",
            input:
                "{\"Name\":\"n\(n)\",\"Cluster\":\"default\",\"IPAddresses\":[{\"Type\":\"InternalIP\",\"IP\":\"10.0.0.1\(n)\"},{\"Type\":\"CiliumInternalIP\",\"IP\":\"10.244.\(n).1\"}],\"IPv4AllocCIDR\":{\"IP\":\"10.244.\(n).0\",\"Mask\":\"////AA==\"},\"Labels\":{\"zone\":\"\(zone)\"}}"
        )
    }

    @Test func nodesAreThoseOfTheStoreAndOfTheDiskWhileItIsDown() throws {
        let lab = try Lab("et", configuration: "inventory: {source: etcd, endpoints: [\"http://127.0.0.1:2379\"]}\n")
        Shell.run("rm \(lab.directory)/inventory/node-*.yaml")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        for node in ["n1", "n2", "n3"] {
            startStore(lab, node)
            for n in 1...3 { put(lab, node, n, zone: "z\(n)") }
        }
        try lab.start("n1", "n2", "n3")
        for routing in Lab.Routing.allCases {
            let pod = routing == .stack ? "a" : "b"
            try lab.pod(pod, on: "n1", last: routing == .stack ? 10 : 11, labels: "app:shop", routing: routing)
            #expect(lab.pings(pod, "203.0.113.10"))
        }
        #expect(lab.seen("pings") == ["10.0.0.13 > 203.0.113.10": 2])
        let cache = "\(lab.directory)/n1/state/etcd-nodes.json"
        #expect(lab.eventually { Shell.run("stat -c %a \(cache)").output == "600\n" })
        // The store goes, and then the helper: the next one goes on from disk, and says so.
        let pid = (try? String(contentsOfFile: "\(lab.directory)/n1.etcd.pid", encoding: .utf8)) ?? ""
        Shell.run("kill -9 \(pid)")
        lab.kill("n1")
        try lab.start("n1")
        #expect(lab.ctl("n1", "diff").output == "[]\n")
        #expect(lab.ctl("n1", "status").output.contains("NOT REACHED: from disk"), "\(lab.ctl("n1", "status").output)")
        for pod in ["a", "b"] { #expect(lab.pings(pod, "203.0.113.10")) }
        // It comes back, and the gateway is another node.
        startStore(lab, "n1")
        for node in ["n1", "n2", "n3"] {
            put(lab, node, 3, zone: "z9")
            put(lab, node, 2, zone: "z3")
        }
        #expect(
            lab.eventually {
                lab.forgetSeen()
                return lab.pings("a", "203.0.113.10") && lab.seen("pings") == ["10.0.0.12 > 203.0.113.10": 1]
            })
        #expect(lab.eventually { !lab.ctl("n1", "status").output.contains("NOT REACHED") })
    }
}

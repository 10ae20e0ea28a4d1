import CLinux
import Foundation
import Jansson
import TestSupport
import Testing

/// Pods that never stop sending, while everything about them changes. The outside host is the judge: whatever it sees
/// with an address that is no assigned gateway's is a leak.
@Suite(
    .serialized,
    .enabled(if: Lab.isPossible, "needs root and the tools of install/test.sh, which runs it natively and in the VM"))
struct TransitionTests {
    static let isVM = ProcessInfo.processInfo.environment["CULVERT_LAB_PROTOCOL"] != nil
    static let isWhole = ProcessInfo.processInfo.environment["CULVERT_WHOLE"] == "1"
    /// In an emulated VM each command takes a second, and each pod a dozen of them.
    static let pods = isShort ? 5 : 20
    static let rate = isShort ? 50 : isVM ? 25 : 200
    static let world = "203.0.113.10"
    /// In an emulated VM only what depends on the protocol most.
    static let isShort = isVM && !isWhole
    /// How long a change is given, seconds.
    static let pause = isVM ? 2.0 : 1.0

    /// A lab with its traffic.
    final class Traffic: Sendable {
        let lab: Lab

        init(_ routing: Lab.Routing) throws {
            let lab = try Lab(routing == .stack ? "ts" : "te", routing: routing)
            try lab.inventory("policy.yaml", Traffic.policy())
            try lab.inventory("pods.yaml", Traffic.manifests("shop"))
            try lab.start("n1", "n2", "n3")
            for number in 0..<pods {
                try lab.pod(
                    "t\(number)", on: "n1", last: 10 + number,
                    extra: [
                        "LAB_CNI_ARGS":
                            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=t\(number);K8S_POD_UID=u\(number)"
                    ])
            }
            self.lab = lab
            let binary = "\(lab.directory)/traffic"
            let built = Shell.run("gcc -O2 -o \(binary) \(Shell.packageRoot)/Tests/Lab/traffic.c")
            guard built.status == 0 else { throw Lab.Failure(description: built.errors) }
            let namespaces = (0..<pods).map { "/run/netns/\(lab.prefix)-t\($0)" }.joined(separator: " ")
            let started = Shell.run(
                "(exec \(binary) \(rate) 3600 \(world) 9000 \(namespaces) > \(lab.directory)/traffic.out 2>&1 < /dev/null) & echo $! > \(lab.directory)/traffic.pid"
            )
            guard started.status == 0, flows() else {
                throw Lab.Failure(description: "no datagram arrives: \(lab.seen("datagrams"))")
            }
        }

        /// One for each kind of routing, made once. It ends with its lab.
        private static let made = Lab.Routing.both { try Traffic($0) }
        static func of(_ routing: Lab.Routing) throws -> Traffic { try #require(made[routing]).get() }

        static func policy(
            destinations: String = "[0.0.0.0/0]", zone: String = "z3", more: String = "", app: String = "shop"
        ) -> String {
            Lab.policy("shop", app: app, destinations: destinations, zone: zone, more: more)
                + Lab.policy("bank", app: "bank", zone: "z2")
        }

        static func manifests(_ app: String) -> String {
            (0..<pods).map {
                """
                ---
                apiVersion: v1
                kind: Pod
                metadata: {name: t\($0), namespace: default, uid: u\($0), labels: {app: \(app)}}
                spec: {nodeName: n1}

                """
            }.joined()
        }

        /// Whether datagrams of every pod arrive by one of these gateways.
        func flows(by gateways: Set<String> = ["10.0.0.13"]) -> Bool {
            lab.eventually(20) {
                lab.forgetSeen()
                usleep(400_000)
                return gateways.contains { (lab.seen("datagrams")["\($0) > \(world)"] ?? 0) > pods }
            }
        }

        /// Makes a change while the pods send, and counts what has left with an address that is none of these.
        func during(
            _ what: String, allowing gateways: Set<String> = ["10.0.0.13"], _ body: () throws -> Void
        ) rethrows {
            usleep(200_000)
            lab.forgetSeen()
            try body()
            usleep(UInt32(pause * 1_000_000))
            let seen = lab.seen("datagrams")
            let wrong = seen.filter { entry in !gateways.contains { entry.key == "\($0) > \(world)" } }
            let total = seen.values.reduce(0, +)
            let count = wrong.values.reduce(0, +)
            print("TransitionTests: \(lab.routing.rawValue): \(what): \(count) of \(total) wrong")
            #expect(wrong.isEmpty, "\(lab.routing): \(what): \(wrong)")
        }
    }

    @Test(arguments: Lab.Routing.allCases)
    func noDatagramLeavesWithAWrongAddressWhileAnythingChanges(_ routing: Lab.Routing) throws {
        let traffic = try Traffic.of(routing)
        let lab = traffic.lab
        let n2 = "10.0.0.12"
        let n3 = "10.0.0.13"

        if !Self.isShort { try refuseThePolicies(traffic) }
        for round in 0..<(Self.isVM ? 1 : 4) {
            try traffic.during(
                "a second policy selects the pods, and does not any more (\(round))", allowing: [n2, n3]
            ) {
                try lab.inventory(
                    "second.yaml", Lab.policy("half", app: "shop", destinations: "[203.0.113.0/24]", zone: "z2"))
                usleep(UInt32(Self.pause * 500_000))
                Shell.run("rm \(lab.directory)/inventory/second.yaml")
            }
        }
        #expect(traffic.flows())
        try traffic.during("the gateway moves, and back", allowing: [n2, n3]) {
            try lab.inventory("policy.yaml", Traffic.policy(zone: "z2"))
            usleep(UInt32(Self.pause * 1_000_000))
            try lab.inventory("policy.yaml", Traffic.policy())
        }
        #expect(traffic.flows())
        if !Self.isShort {
            try changeDestinationsAndLabels(traffic)
            try damageTheInventory(traffic)
            try startWithoutAnInventory(traffic)
        }
        changeTheKernel(traffic)
        if Self.isShort { try endTheHelpers(traffic) }
    }

    private func refuseThePolicies(_ traffic: Traffic) throws {
        let lab = traffic.lab
        try traffic.during("a refused policy selects the pods too") {
            try lab.inventory("refused.yaml", Lab.policy("bad", app: "shop", zone: "z2", more: "later: {}"))
        }
        #expect(
            lab.eventually {
                lab.ctl("n1", "status").output.hasPrefix("DEGRADED: ")
                    || lab.ctl("n1", "status").output.hasPrefix("HELD: ")
            })
        #expect(lab.ctl("n1", "status").status == 1)
        #expect(traffic.flows(), "the good policy stays in force")
        try traffic.during("the pods' own policy gets a field that is not known") {
            try lab.inventory("policy.yaml", Traffic.policy(more: "later: {}"))
        }
        #expect(traffic.flows(), "the pods keep what they had")
        try traffic.during("both are mended") {
            try lab.inventory("policy.yaml", Traffic.policy())
            Shell.run("rm \(lab.directory)/inventory/refused.yaml")
        }
    }

    private func changeDestinationsAndLabels(_ traffic: Traffic) throws {
        let lab = traffic.lab
        try traffic.during("the destinations are narrowed and widened") {
            try lab.inventory("policy.yaml", Traffic.policy(destinations: "[203.0.113.0/25]"))
            usleep(UInt32(Self.pause * 1_000_000))
            try lab.inventory("policy.yaml", Traffic.policy(destinations: "[203.0.113.10/32, 198.51.100.0/24]"))
            usleep(UInt32(Self.pause * 1_000_000))
            try lab.inventory("policy.yaml", Traffic.policy())
        }
        #expect(traffic.flows())
        try traffic.during(
            "the pods' labels change to another policy's, and back", allowing: ["10.0.0.12", "10.0.0.13"]
        ) {
            try lab.inventory("pods.yaml", Traffic.manifests("bank"))
            usleep(UInt32(Self.pause * 1_000_000))
            try lab.inventory("pods.yaml", Traffic.manifests("shop"))
        }
        #expect(traffic.flows())

    }

    private func damageTheInventory(_ traffic: Traffic) throws {
        let lab = traffic.lab
        try traffic.during("the policy's file is cut off, and whole again") {
            try lab.inventory(
                "policy.yaml", "apiVersion: cilium.io/v2\nkind: CiliumEgressGatewayPolicy\nmetadata: {name: sh")
            usleep(UInt32(Self.pause * 1_000_000))
            try lab.inventory("policy.yaml", Traffic.policy())
        }
        traffic.during("the inventory directory is gone, and back") {
            Shell.run("mv \(lab.directory)/inventory \(lab.directory)/elsewhere")
            usleep(UInt32(Self.pause * 1_000_000))
            Shell.run("mv \(lab.directory)/elsewhere \(lab.directory)/inventory")
        }
        #expect(traffic.flows())
    }

    private func startWithoutAnInventory(_ traffic: Traffic) throws {
        let lab = traffic.lab
        try traffic.during("the helper starts while the inventory directory is missing") {
            lab.kill("n1")
            Shell.run("mv \(lab.directory)/inventory \(lab.directory)/elsewhere")
            lab.startUnready("n1")
            #expect(
                lab.eventually { lab.ctl("n1", "status").output.hasPrefix("HELD: no pod can start") },
                "\(lab.ctl("n1", "status").output)")
            usleep(UInt32(Self.pause * 1_000_000))
            let refused = lab.plugin("n1", "ADD", "t0", extra: ["LAB_TIMEOUT": "2"])
            #expect(
                refused.output.contains("\"code\": 11") || refused.output.contains("\"code\":11"), "\(refused.output)")
            Shell.run("mv \(lab.directory)/elsewhere \(lab.directory)/inventory")
            try lab.waitUntilReady("n1")
        }
        try traffic.during("the helper starts while a file of the inventory is cut off") {
            lab.kill("n1")
            try lab.inventory(
                "policy.yaml", "apiVersion: cilium.io/v2\nkind: CiliumEgressGatewayPolicy\nmetadata: {name: sh")
            lab.startUnready("n1")
            #expect(
                lab.eventually { lab.ctl("n1", "status").output.contains("policy.yaml") },
                "\(lab.ctl("n1", "status").output)")
            usleep(UInt32(Self.pause * 1_000_000))
            try lab.inventory("policy.yaml", Traffic.policy())
            try lab.waitUntilReady("n1")
        }
        #expect(traffic.flows())

    }

    /// What others do to the kernel.
    private func changeTheKernel(_ traffic: Traffic) {
        let lab = traffic.lab
        traffic.during("somebody deletes the pods' first rules, again and again") {
            for _ in 0..<(Self.isVM ? 3 : 20) {
                lab.run(in: "n1", "bash -c 'for n in $(seq \(Self.pods)); do ip rule del priority 106; done'")
                usleep(50_000)
            }
        }
        #expect(lab.eventually { lab.ctl("n1", "diff").status == 0 })
        #expect(lab.ctl("n1", "status").output.contains("Put back"), "\(lab.ctl("n1", "status").output)")
        traffic.during("the firewall table is deleted on the gateway, where nothing else translates") {
            lab.run(in: "n3", "nft flush chain ip cilium_standin postrouting")
            for _ in 0..<(Self.isVM ? 3 : 20) {
                lab.run(in: "n3", "nft delete table inet culvert")
                usleep(50_000)
            }
        }
        #expect(traffic.flows())
        let tunnels = (lab.api("n1", "/v1/plan")?["links"]?.elements ?? []).compactMap { $0["ifname"]?.string }
        traffic.during("the tunnels are set down, and up") {
            for name in tunnels { lab.run(in: "n1", "ip link set \(name) down") }
            for name in tunnels { lab.run(in: "n1", "ip link set \(name) up") }
        }
        traffic.during("the tunnels are deleted") {
            for name in tunnels { lab.run(in: "n1", "ip link del \(name)") }
        }
        #expect(traffic.flows())
        if Self.isShort { return }
        /// As Cilium's agent would: the address, and the routes that name it.
        func overlayAddress(_ new: Int, instead old: Int) {
            lab.run(in: "n1", "ip addr add 10.244.1.\(new)/32 dev cilium_host")
            lab.run(in: "n1", "ip addr del 10.244.1.\(old)/32 dev cilium_host")
            for peer in 2...3 {
                lab.run(
                    in: "n1",
                    "ip route replace 10.244.\(peer).0/24 encap ip id 6 dst 10.0.0.1\(peer) via 10.244.\(peer).1 dev cilium_vxlan src 10.244.1.\(new) mtu 1450 onlink"
                )
            }
        }
        traffic.during("the overlay address of the node changes") {
            overlayAddress(7, instead: 1)
            #expect(lab.eventually { Shell.run("grep 10.244.1.7 \(lab.directory)/n1/published/n1.yaml").status == 0 })
            Shell.run("cp \(lab.directory)/n1/published/n1.yaml \(lab.directory)/inventory/told.yaml")
        }
        #expect(traffic.flows())
        traffic.during("the overlay address changes back") {
            overlayAddress(1, instead: 7)
            Shell.run("rm \(lab.directory)/inventory/told.yaml")
        }
        #expect(traffic.flows())
    }

    private func endTheHelpers(_ traffic: Traffic, round: Int = 0) throws {
        let ends = [("n1", SIGKILL), ("n3", SIGTERM), ("n1", SIGTERM), ("n3", SIGKILL)]
        for (node, signal) in Self.isShort ? Array(ends.prefix(2)) : ends {
            try traffic.during("helper of \(node) ended by \(signal), and started (\(round))") {
                traffic.lab.kill(node, signal: signal)
                try traffic.lab.start(node)
            }
        }
    }

    @Test(arguments: Lab.Routing.allCases)
    func aHelperThatStartsOrDiesLeaksNothingAndBreaksNoConnection(_ routing: Lab.Routing) throws {
        let traffic = try Traffic.of(routing)
        let lab = traffic.lab
        let rounds = Self.isWhole ? 50 : Self.isVM ? 1 : 5
        // One connection of every fourth pod, for as long as this lasts.
        let seconds = rounds * (Self.isVM ? 60 : 12)
        Shell.run(
            "(exec ip netns exec \(lab.prefix)-out socat TCP-LISTEN:7100,fork,reuseaddr EXEC:cat > /dev/null 2>&1 < /dev/null) & echo $! > \(lab.directory)/echo.pid; sleep 0.5"
        )
        for number in stride(from: 0, to: Self.pods, by: 4) {
            Shell.run(
                "(exec ip netns exec \(lab.prefix)-t\(number) /usr/bin/python3 \(Shell.packageRoot)/Tests/Lab/steady.py \(Self.world) 7100 \(seconds) > \(lab.directory)/steady\(number) 2>&1 < /dev/null) & echo $! > \(lab.directory)/steady\(number).pid"
            )
        }
        // Others write tables and rules meanwhile.
        Shell.run(
            """
            touch \(lab.directory)/noise
            (while [ -e \(lab.directory)/noise ]; do for n in n1 n3; do
                ip netns exec \(lab.prefix)-$n nft 'add table ip noise; add chain ip noise c; add rule ip noise c counter; delete table ip noise'
                ip -n \(lab.prefix)-$n rule add priority 900 to 192.0.2.250 lookup main; ip -n \(lab.prefix)-$n rule del priority 900
            done; done) > /dev/null 2>&1 < /dev/null &
            """)
        defer { Shell.run("rm -f \(lab.directory)/noise") }
        for round in 0..<rounds {
            try endTheHelpers(traffic, round: round)
        }
        Shell.run("rm -f \(lab.directory)/noise")
        for number in stride(from: 0, to: Self.pods, by: 4) {
            let path = "\(lab.directory)/steady\(number)"
            #expect(
                lab.eventually(Double(seconds) + 20) { Shell.run("cat \(path)").output.contains("lines") },
                "a connection broke: \(Shell.run("cat \(path)").output)")
            #expect(!Shell.run("cat \(path)").output.contains("closed"), "\(Shell.run("cat \(path)").output)")
        }
        for node in ["n1", "n3"] { #expect(lab.eventually { lab.ctl(node, "diff").status == 0 }) }
    }
}

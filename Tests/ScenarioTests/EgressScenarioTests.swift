import Foundation
import Jansson
import TestSupport
import Testing

/// One cluster per kind of routing, with everything that the scenarios need, made once.
enum Clusters {
    private static let made = Lab.Routing.both { try make($0) }

    static func lab(_ routing: Lab.Routing) throws -> Lab { try #require(made[routing]).get() }

    static func make(_ routing: Lab.Routing) throws -> Lab {
        let lab = try Lab(routing == .stack ? "s" : "e", routing: routing)
        try lab.inventory(
            "policies.yaml",
            Lab.policy("shop", app: "shop", excluded: "[203.0.113.99/32]")
                + Lab.policy("bank", app: "bank", egress: "egressIP: 192.0.2.31")
                + Lab.policy("post", app: "post", destinations: "[203.0.113.0/24]", egress: "egressIP: 192.0.2.32")
                + Lab.policy("lost", app: "lost", zone: "nowhere"))
        if Lab.tunnelProtocol == "fou" {
            // What Cilium's host firewall lets in.
            let rules = """
                nft 'add table inet hostfw; add chain inet hostfw input { type filter hook input priority -50; policy drop; }; \
                add rule inet hostfw input iifname lo accept; add rule inet hostfw input meta l4proto { tcp, udp, icmp } accept'
                """
            for node in ["n1", "n2", "n3"] {
                let result = lab.run(in: node, rules)
                guard result.status == 0 else { throw Lab.Failure(description: result.errors) }
            }
        }
        try lab.start("n1", "n2", "n3")
        try lab.pod("shop", on: "n1", last: 10, labels: "app:shop")
        try lab.pod("other", on: "n1", last: 11, labels: "app:other")
        try lab.pod("bank", on: "n1", last: 12, labels: "app:bank")
        try lab.pod("post", on: "n1", last: 13, labels: "app:post")
        try lab.pod("lost", on: "n1", last: 14, labels: "app:lost")
        try lab.pod("gate", on: "n3", last: 15, labels: "app:shop")
        try lab.pod("gatebank", on: "n3", last: 16, labels: "app:bank")
        try lab.pod("peer", on: "n2", last: 17, labels: "app:other")
        return lab
    }
}

@Suite(
    .serialized,
    .enabled(if: Lab.isPossible, "needs root and the tools of install/test.sh, which runs it natively and in the VM"))
struct EgressScenarioTests {
    let world = "203.0.113.10"

    /// What a pod without a policy looks like outside: under eBPF the stand-in does not masquerade (README, "The lab").
    func plainAddress(_ routing: Lab.Routing, pod: String, node: Int) -> String {
        routing == .stack ? "10.0.0.1\(node)" : pod
    }

    @Test(arguments: Lab.Routing.allCases)
    func aPodsEchoLeavesThroughItsGatewayAndIsAnswered(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        #expect(lab.pings("shop", world))
        #expect(lab.seen("pings") == ["10.0.0.13 > \(world)": 1])
        #expect(lab.droppedByRouter() == 0)
    }

    @Test(arguments: Lab.Routing.allCases)
    func aPodWithoutAPolicyKeepsItsNormalPath(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        #expect(lab.pings("other", world))
        #expect(lab.seen("pings") == ["\(plainAddress(routing, pod: "10.244.1.11", node: 1)) > \(world)": 1])
    }

    @Test(arguments: Lab.Routing.allCases)
    func exclusionsTheClusterAndTheMetadataServiceKeepTheirPaths(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        lab.run(in: "r", "nft flush set inet cloud metadata")
        #expect(lab.pings("shop", "203.0.113.99"))
        #expect(lab.seen("pings") == ["\(plainAddress(routing, pod: "10.244.1.10", node: 1)) > 203.0.113.99": 1])
        #expect(lab.pings("shop", "10.244.2.17"))
        #expect(lab.pings("shop", "10.0.0.12"))
        #expect(lab.pings("shop", "169.254.169.254"))
        let metadata = lab.run(in: "r", "nft list set inet cloud metadata").output
        #expect(metadata.contains("\(plainAddress(routing, pod: "10.244.1.10", node: 1)) counter"))
        #expect(!metadata.contains("10.0.0.13"))
    }

    /// The node's kernel translates Services, as with kube-proxy; under eBPF host routing Cilium does.
    @Test func aPodWhosePolicyClaimsEverythingReachesAServiceByItsNetwork() throws {
        // It does not depend on the protocol, and an emulated VM is slow.
        guard Lab.tunnelProtocol == "vxlan" else { return }
        let lab = try Clusters.lab(.stack)
        lab.run(
            in: "n1",
            "nft 'add table ip proxy; add chain ip proxy services { type nat hook prerouting priority dstnat; }; add rule ip proxy services ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.2.17:5353'"
        )
        let server = """
            import socket
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.bind(("10.244.2.17", 5353)); s.settimeout(60)
            while True:
                data, sender = s.recvfrom(100)
                if data == b"end": break
                s.sendto(b"answer", sender)
            """
        let client = """
            import socket, sys
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.settimeout(2); s.connect((sys.argv[1], int(sys.argv[2]))); s.send(sys.argv[3].encode())
            if sys.argv[3] != "end": print(s.recv(100).decode())
            """
        try server.write(toFile: "\(lab.directory)/server.py", atomically: true, encoding: .utf8)
        try client.write(toFile: "\(lab.directory)/client.py", atomically: true, encoding: .utf8)
        lab.run(in: "peer", "sh -c 'timeout 90 python3 \(lab.directory)/server.py > /dev/null 2>&1 < /dev/null &'")
        defer {
            lab.run(in: "n2", "python3 \(lab.directory)/client.py 10.244.2.17 5353 end")
            lab.run(in: "n1", "nft delete table ip proxy")
            unlink("\(lab.directory)/inventory/services.yaml")
        }
        func asks(_ pod: String) -> String {
            lab.run(in: pod, "python3 \(lab.directory)/client.py 10.96.0.10 53 question").output
        }
        #expect(lab.eventually { asks("other") == "answer\n" }, "the Service answers a pod without a policy")
        func warns() -> Bool {
            lab.api("n1", "/v1/status")?["warnings"]?.text().contains("Services are not known") == true
        }
        #expect(asks("shop") == "" && warns(), "the network is not known")
        try lab.inventory(
            "services.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/16]}\n"
        )
        #expect(lab.eventually { asks("shop") == "answer\n" })
        #expect(!warns())
        #expect(lab.api("n1", "/v1/status")?["serviceNetworks"]?.elements?.compactMap(\.string) == ["10.96.0.0/16"])
    }

    @Test(arguments: Lab.Routing.allCases)
    func aPodOnTheGatewayItselfLeavesTranslated(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        // The underlay's reverse-path filter is strict, and the replies come in by it.
        #expect(lab.run(in: "n3", "sysctl -n net.ipv4.conf.eth0.rp_filter").output == "1\n")
        #expect(lab.pings("gate", world))
        #expect(lab.pings("gatebank", world))
        #expect(lab.seen("pings") == ["10.0.0.13 > \(world)": 1, "192.0.2.31 > \(world)": 1])
    }

    @Test(arguments: Lab.Routing.allCases)
    func policiesWithOverlappingDestinationsAndOtherAddressesKeepApart(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        #expect(lab.pings("bank", world))
        #expect(lab.pings("post", world))
        #expect(lab.pings("shop", world))
        #expect(
            lab.seen("pings") == ["192.0.2.31 > \(world)": 1, "192.0.2.32 > \(world)": 1, "10.0.0.13 > \(world)": 1])
        #expect(lab.droppedByRouter() == 0)
    }

    @Test(arguments: Lab.Routing.allCases)
    func withoutAGatewayNothingLeaves(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        let result = lab.run(in: "lost", "ping -n -c 3 -i 0.2 -W 1 \(world)")
        #expect(result.status != 0)
        #expect(lab.seen("pings") == [:])
        switch routing {
        case .stack: #expect(result.output.contains("Destination Host Unreachable"))
        case .ebpf:
            let drops = lab.run(in: "n1", "tc -s -j qdisc show dev lxclost clsact").json?.elements?
                .first { $0["kind"]?.string == "clsact" }?["drops"]?.integer
            #expect((drops ?? 0) >= 3)
        }
    }

    @Test(arguments: Lab.Routing.allCases)
    func theLargestPromisedPacketPassesAndTCPRunsAtFullSize(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        let attachments = lab.api("n1", "/v1/attachments")?.elements ?? []
        for pod in ["shop", "bank"] {
            let entry = try #require(attachments.first { $0["containerID"]?.string == "\(lab.prefix)-\(pod)" })
            let mtu = Int(try #require(entry["mtu"]?.integer))
            #expect(mtu == promisedMTU(keyed: pod == "bank"))
            #expect(lab.pings(pod, world, size: mtu - 28, extra: "-M do"), "\(pod): \(mtu)")
            #expect(!lab.pings(pod, world, size: mtu - 27, extra: "-M do"), "\(pod): \(mtu + 1) must not be promised")
        }
        lab.forgetSeen()
        let bytes = 2_000_000
        let receiver = Shell.run(
            """
            ip netns exec \(lab.prefix)-out timeout 40 socat -u TCP-LISTEN:7000,reuseaddr OPEN:/tmp/\(lab.prefix).tcp,creat,trunc &
            sleep 1.5; head -c \(bytes) /dev/zero | ip netns exec \(lab.prefix)-shop timeout 40 socat -u - TCP:\(world):7000; wait; stat -c %s /tmp/\(lab.prefix).tcp; rm -f /tmp/\(lab.prefix).tcp
            """, timeout: 90)
        #expect(receiver.output.trimmingCharacters(in: .whitespacesAndNewlines) == "\(bytes)", "\(receiver.errors)")
        #expect(lab.seen("connections").keys.sorted() == ["10.0.0.13 > \(world)"])
    }

    /// Underlay 1500, VXLAN 50, then the tunnel; without an Ethernet header 10 more (design.md, "MTU").
    func promisedMTU(keyed: Bool) -> Int {
        switch Lab.tunnelProtocol {
        case "ipip": 1450 - (keyed ? 28 : 20) - 10
        case "fou": 1450 - (keyed ? 36 : 28) - 10
        default: 1450 - 50
        }
    }

    @Test(arguments: Lab.Routing.allCases)
    func theTunnelSetDownAndUpLeaksNothingAndComesBack(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.forgetSeen()
        let tunnel = Lab.tunnelProtocol == "vxlan" ? "cni-culvert0" : "cni-culvert-1"
        let names = (lab.api("n1", "/v1/plan")?["links"]?.elements ?? []).compactMap { $0["ifname"]?.string }
        #expect(names.contains(tunnel))
        let ping = Shell.run(
            """
            ip netns exec \(lab.prefix)-shop ping -n -q -c 40 -i 0.1 -W 1 \(world) > /dev/null &
            sleep 1; for n in \(names.joined(separator: " ")); do ip -n \(lab.prefix)-n1 link set $n down; done; sleep 0.5
            for n in \(names.joined(separator: " ")); do ip -n \(lab.prefix)-n1 link set $n up; done; wait
            """)
        #expect(ping.status == 0)
        #expect(lab.seen("pings").keys.sorted() == ["10.0.0.13 > \(world)"])
        #expect(lab.eventually { lab.ctl("n1", "diff").status == 0 })
        #expect(lab.pings("shop", world))
    }

    @Test(arguments: Lab.Routing.allCases)
    func plansAndKernelsAreEqual(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        for node in ["n1", "n2", "n3"] {
            let diff = lab.ctl(node, "diff")
            #expect(diff.status == 0)
            #expect(diff.output == "[]\n")
        }
    }

    @Test(arguments: Lab.Routing.allCases)
    func strictReversePathFilteringOnTheGatewayDoesNoHarmAndOnASourceIsReported(_ routing: Lab.Routing) throws {
        let lab = try Clusters.lab(routing)
        lab.run(in: "n3", "sysctl -qw net.ipv4.conf.all.rp_filter=1")
        #expect(lab.pings("shop", world))
        #expect(lab.pings("gate", world))
        lab.run(in: "n3", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
        lab.run(in: "n1", "sysctl -qw net.ipv4.conf.all.rp_filter=1")
        // Facts are read again with the next event.
        lab.run(in: "n1", "ip addr add 192.0.2.99/32 dev lo")
        #expect(lab.eventually { lab.ctl("n1", "status").output.contains("rp_filter is 1") })
        lab.run(in: "n1", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
        lab.run(in: "n1", "ip addr del 192.0.2.99/32 dev lo")
    }

    @Test func spoofedTunnelPacketsAreDroppedAndCounted() throws {
        let lab = try Clusters.lab(.stack)
        let name = Lab.tunnelProtocol == "vxlan" ? "vxlan" : "ipip"
        let spoof = Shell.packageRoot + "/Tests/Lab/spoof.py"
        func before(_ comment: String) -> Int { lab.counted("n3", "\(name): \(comment)") }
        let wrongInner = before("inner source or header not allowed")
        let wrongOuter = before("outer source is no peer")
        let wrongInterface = before("wrong interface")
        lab.forgetSeen()
        // From n2's overlay address, with the inner source of a pod of n1.
        lab.run(in: "n2", "python3 \(spoof) \(Lab.tunnelProtocol) 10.244.2.1 10.244.3.1 10.244.1.10 \(world)")
        // From an outer source that is no node's overlay address.
        lab.run(in: "n2", "python3 \(spoof) \(Lab.tunnelProtocol) 10.244.2.200 10.244.3.1 10.244.2.17 \(world)")
        // With right addresses, but past the overlay.
        // (The underlay's strict reverse-path filter would drop it even before our rule.)
        lab.run(in: "n3", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0")
        defer { lab.run(in: "n3", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1") }
        lab.run(in: "n2", "ip route add 10.244.3.1/32 via 10.0.0.1 dev eth0 onlink")
        lab.run(in: "r", "nft flush chain inet cloud forward")
        lab.run(in: "n2", "python3 \(spoof) \(Lab.tunnelProtocol) 10.244.2.1 10.244.3.1 10.244.2.17 \(world)")
        lab.run(in: "n2", "ip route del 10.244.3.1/32 via 10.0.0.1 dev eth0")
        lab.run(
            in: "r",
            "nft 'add rule inet cloud forward ip protocol 4 counter name ipip drop; add rule inet cloud forward ip protocol 47 counter name gre drop'"
        )
        #expect(lab.eventually(5) { before("inner source or header not allowed") == wrongInner + 1 })
        #expect(before("outer source is no peer") == wrongOuter + 1)
        #expect(before("wrong interface") == wrongInterface + 1)
        #expect(lab.seen("pings") == [:])
    }

    /// A cluster that routes its pods itself, and has nothing of Cilium's: the node's own address is the tunnel's end.
    @Test(arguments: Lab.Routing.allCases)
    func withoutAnOverlayTheNodesAddressesCarryTheTunnels(_ routing: Lab.Routing) throws {
        // Of the protocols that the router lets through, the one that every kernel has; so it is shown natively only.
        guard Lab.tunnelProtocol == "vxlan" else { return }
        let lab = try Lab(
            routing == .stack ? "ns" : "ne", routing: routing,
            configuration: "encapsulation: {protocol: vxlan, overlay: none}\n")
        unlink("\(lab.directory)/inventory/cilium-config.yaml")
        for number in 1...3 {
            for command in [
                "ip link del cilium_vxlan", "ip link del cilium_host", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0",
                // The pods' router.
                "ip addr add 10.244.\(number).1/32 dev lo",
            ] {
                lab.run(in: "n\(number)", command)
            }
            // Replies come from the gateway with the world's addresses as sources: the network must take them.
            lab.run(in: "r", "sysctl -qw net.ipv4.conf.to-n\(number).rp_filter=0")
            for peer in 1...3 where peer != number {
                lab.run(in: "n\(number)", "ip route replace 10.244.\(peer).0/24 via 10.0.0.1 dev eth0")
            }
            try lab.inventory(
                "node-n\(number).yaml",
                """
                apiVersion: v1
                kind: Node
                metadata: {name: n\(number), labels: {kubernetes.io/hostname: n\(number), zone: z\(number)}}
                spec: {podCIDRs: [10.244.\(number).0/24]}
                status: {addresses: [{type: InternalIP, address: 10.0.0.1\(number)}]}

                """)
        }
        try lab.inventory(
            "policies.yaml",
            Lab.policy("shop", app: "shop") + Lab.policy("bank", app: "bank", egress: "egressIP: 192.0.2.31"))
        try lab.start("n1", "n2", "n3")
        try lab.pod("shop", on: "n1", last: 10, labels: "app:shop")
        try lab.pod("bank", on: "n1", last: 12, labels: "app:bank")
        try lab.pod("gate", on: "n3", last: 15, labels: "app:shop")
        try lab.pod("peer", on: "n2", last: 17, labels: "app:other")
        #expect(lab.pings("shop", world) && lab.pings("bank", world) && lab.pings("gate", world))
        #expect(lab.seen("pings") == ["10.0.0.13 > \(world)": 2, "192.0.2.31 > \(world)": 1])
        #expect(lab.pings("shop", "10.244.2.17"), "pods keep their own routes")
        #expect(lab.droppedByRouter() == 0)
        func candidates() -> String { lab.api("n1", "/v1/gateways")?["slots"]?.text() ?? "" }
        #expect(lab.eventually { candidates().contains("\"state\":\"up\"") }, "\(candidates())")
        lab.run(in: "n3", "ip link set eth0 down")
        #expect(
            lab.eventually { candidates().contains("\"state\":\"down\"") },
            "echoes tell of a dead gateway: \(candidates())")
        lab.forgetSeen()
        #expect(!lab.pings("shop", world))
        #expect(lab.seen("pings") == [:])
    }
}

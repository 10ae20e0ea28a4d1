import Foundation
import TestSupport
import Testing

/// Connections from outside to pods that a catch-all policy selects: answered on the way they came, while what the pods start
/// themselves leaves by the gateway.
@Suite(
    .serialized,
    .enabled(if: Lab.isPossible, "needs root and the tools of install/test.sh, which runs it natively"))
struct InboundTests {
    static let stack = Result { try make(.stack) }
    static let ebpf = Result { try make(.ebpf) }
    static func lab(_ routing: Lab.Routing) throws -> Lab { try (routing == .stack ? stack : ebpf).get() }
    let world = "203.0.113.10"

    /// kube-proxy's way with nft: a node port on every node, its own packets masqueraded where the pod is elsewhere; and what it
    /// drops in the forward chain.
    static func kubeProxy(pod: String, masquerade: Bool) -> String {
        """
        table ip kube-proxy {
            chain nat-prerouting {
                type nat hook prerouting priority -100;
                fib daddr type local tcp dport 30080 \(masquerade ? "meta mark set mark or 0x4000 " : "")dnat to \(pod):80
                ip daddr 10.96.0.9 tcp dport 7000 dnat to 203.0.113.10:7000
                fib daddr type local udp dport 30081 \(masquerade ? "meta mark set mark or 0x4000 " : "")dnat to \(pod):81
            }
            chain nat-postrouting {
                type nat hook postrouting priority 100;
                meta mark & 0x4000 == 0x4000 masquerade
            }
            chain filter-forward {
                type filter hook forward priority 0;
                ct state invalid drop
            }
        }
        """
    }

    static func make(_ routing: Lab.Routing) throws -> Lab {
        let lab = try Lab(
            routing == .stack ? "is" : "ie", routing: routing,
            configuration: "cluster: {serviceCIDRs: [10.96.0.0/12]}\n")
        try lab.inventory("policies.yaml", Lab.policy("shop", app: "shop"))
        for node in ["n1", "n2", "n3"] {
            // Strict, the request is lost before Culvert sees it: `aStrictUplinkIsReported`.
            lab.run(in: node, "sysctl -qw net.ipv4.conf.eth0.rp_filter=2")
        }
        // As Docker and many administrators have it.
        lab.run(in: "n2", "iptables -P FORWARD DROP")
        lab.run(in: "n2", "iptables -A FORWARD ! -d 10.244.2.20 -j ACCEPT")
        try lab.start("n1", "n2", "n3")
        try lab.pod("shop", on: "n1", last: 10, labels: "app:shop")
        try lab.pod("gate", on: "n3", last: 15, labels: "app:shop")
        try lab.pod("walled", on: "n2", last: 20, labels: "app:shop")
        for (node, pod, masquerade) in [
            ("n1", "10.244.1.10", false), ("n2", "10.244.1.10", true), ("n3", "10.244.3.15", false),
        ] {
            let file = "\(lab.directory)/kube-proxy-\(node).nft"
            try kubeProxy(pod: pod, masquerade: masquerade).write(toFile: file, atomically: true, encoding: .utf8)
            let result = lab.run(in: node, "nft -f \(file)")
            guard result.status == 0 else { throw Lab.Failure(description: result.errors) }
        }
        // What comes to the outside host's own servers from a pod's own address.
        lab.run(in: "out", "nft add set inet watch leaks '{ type ipv4_addr; flags dynamic; counter; }'")
        lab.run(
            in: "out",
            "nft add rule inet watch in ip saddr 10.244.0.0/16 tcp dport { 7000, 7001 } add @leaks '{ ip saddr }'")
        for pod in ["shop", "gate"] {
            lab.background(in: pod, "socat TCP-LISTEN:80,fork,reuseaddr SYSTEM:'echo hello; cat'")
            lab.background(in: pod, "socat UDP-RECVFROM:81,fork,reuseaddr SYSTEM:'cat'")
        }
        lab.background(in: "out", "socat -u UDP-RECV:5353 OPEN:/dev/null")
        lab.background(in: "out", "socat UDP-RECVFROM:53,fork,reuseaddr SYSTEM:'cat'")
        lab.background(in: "out", "socat TCP-LISTEN:7000,fork,reuseaddr SYSTEM:'cat'")
        usleep(300_000)
        return lab
    }

    private func connects(_ lab: Lab, _ target: String) -> Bool {
        lab.run(in: "out", "sh -c \"(sleep 0.3; echo more; sleep 0.3) | socat -t2 - TCP:\(target),connect-timeout=2\"")
            .output == "hello\nmore\n"
    }
    private func exchanges(_ lab: Lab, _ target: String, from namespace: String = "out", options: String = "") -> Bool {
        lab.run(in: namespace, "sh -c 'echo hi | socat -t2 - UDP:\(target)\(options)'").output == "hi\n"
    }
    private func opens(_ lab: Lab, _ pod: String) -> Bool {
        lab.run(in: pod, "sh -c 'echo hi | socat -t2 - TCP:\(world):7000,connect-timeout=2'").output == "hi\n"
    }

    @Test func whatComesInIsAnsweredOnTheWayItCame() throws {
        let lab = try Self.lab(.stack)
        lab.forgetSeen()
        #expect(connects(lab, "10.0.0.11:30080"), "node port, on the pod's own node")
        #expect(connects(lab, "10.0.0.12:30080"), "node port, on another node")
        #expect(connects(lab, "10.0.0.13:30080"), "node port, on the gateway")
        #expect(connects(lab, "10.244.1.10:80"), "routed pod address")
        #expect(connects(lab, "10.244.3.15:80"), "routed pod address, on the gateway")
        #expect(exchanges(lab, "10.0.0.11:30081"), "node port, UDP")
        #expect(exchanges(lab, "10.0.0.12:30081"), "node port on another node, UDP")
        #expect(exchanges(lab, "10.244.1.10:81"), "routed pod address, UDP")
        #expect(lab.pings("out", "10.244.1.10", count: 3))
        #expect(lab.pings("out", "10.244.3.15", count: 3))
        // Nobody listens: the answer is a refusal, not silence.
        let refused = lab.run(in: "out", "socat - TCP:10.244.1.10:99,connect-timeout=2")
        #expect(refused.errors.contains("refused"), "\(refused.errors)")
        // And what the pods start themselves goes by the gateway, meanwhile and after.
        for pod in ["shop", "gate"] {
            #expect(opens(lab, pod))
            #expect(lab.pings(pod, world))
        }
        #expect(lab.seen("connections") == ["10.0.0.13 > \(world)": 2])
        #expect(lab.seen("pings") == ["10.0.0.13 > \(world)": 2])
    }

    @Test func aHostPortOfTheRealPortmapPluginWorks() throws {
        let lab = try Self.lab(.stack)
        let configuration = """
            {"cniVersion": "1.0.0", "name": "cilium", "type": "portmap", "snat": true, "runtimeConfig": {"portMappings": \
            [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 8081, "containerPort": 81, "protocol": "udp"}]}, \
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/\(lab.prefix)-shop"}], \
            "ips": [{"address": "10.244.1.10/32", "interface": 0}]}}
            """
        func portmap(_ verb: String) -> CommandResult {
            Shell.run(
                """
                ip netns exec \(lab.prefix)-n1 env CNI_COMMAND=\(verb) CNI_CONTAINERID=\(lab.prefix)-shop CNI_IFNAME=eth0 \
                CNI_NETNS=/run/netns/\(lab.prefix)-shop CNI_PATH=/usr/lib/cni /usr/lib/cni/portmap <<'J'
                \(configuration)
                J
                """)
        }
        let added = portmap("ADD")
        #expect(added.status == 0, "\(added.output) \(added.errors)")
        defer { _ = portmap("DEL") }
        #expect(connects(lab, "10.0.0.11:8080"))
        #expect(exchanges(lab, "10.0.0.11:8081"))
    }

    /// Datagrams from one port of the pod to one port outside, while an outsider sends to just that port of the pod.
    @Test func whatAPodStartedIsNeverTakenForAnAnswer() throws {
        let lab = try Self.lab(.stack)
        lab.forgetSeen()
        let from = ",sourceport=40000,reuseaddr"
        #expect(exchanges(lab, "\(world):53", from: "shop", options: from))
        // Past the overlay, straight to the pod: by address and ports this is the pod's own flow.
        lab.run(in: "out", "sh -c 'echo evil | socat -t0.1 - UDP:10.244.1.10:40000,sourceport=53,reuseaddr'")
        #expect(exchanges(lab, "\(world):53", from: "shop", options: from))
        // TCP: a SYN from the server's own port into a connection that is open.
        let script = """
            (sleep 0.5; echo one; sleep 1.5; echo two; sleep 0.5) | socat -t2 - TCP:\(world):7000,sourceport=41000,reuseaddr
            """
        let client = lab.start(in: "shop", "sh -c '\(script)'")
        usleep(1_000_000)
        lab.run(in: "out", "python3 \(Shell.packageRoot)/Tests/Lab/syn.py \(world) 7000 10.244.1.10 41000")
        #expect(client.wait().output == "one\ntwo\n")
        #expect(lab.seen("datagrams").keys.filter { $0.hasSuffix(" > \(world)") } == ["10.0.0.13 > \(world)"])
        #expect(lab.seen("connections") == ["10.0.0.13 > \(world)": 1])
        #expect(!lab.leaks)
    }

    /// With raw sockets a pod can have its node forward a datagram "from outside" to itself.
    @Test func aPodCannotPassItsOwnFlowsOffAsAnswers() throws {
        let lab = try Self.lab(.stack)
        lab.run(in: "out", "nft flush set inet watch datagrams")
        // Where reverse-path filtering is off, as Cilium has it, nobody else stops it.
        lab.run(in: "n1", "sysctl -qw net.ipv4.conf.lxcshop.rp_filter=0")
        defer { lab.run(in: "n1", "sysctl -qw net.ipv4.conf.lxcshop.rp_filter=1") }
        let link = lab.run(in: "n1", "ip -j link show dev lxcshop").json?.elements?.first
        let mac = try #require(link?["address"]?.string)
        let spoofed = lab.run(
            in: "shop",
            "python3 \(Shell.packageRoot)/Tests/Lab/spoof_self.py \(world) 5353 10.244.1.10 46000 \(mac)")
        #expect(spoofed.status == 0, "\(spoofed.errors)")
        for _ in 0..<3 {
            lab.run(in: "shop", "sh -c 'echo x | socat -u - UDP:\(world):5353,sourceport=46000,reuseaddr'")
        }
        #expect(lab.seen("datagrams").filter { $0.key.hasSuffix(" > \(world)") } == ["10.0.0.13 > \(world)": 3])
    }

    /// The answers come from the end of the Service, and have to be translated back to its address.
    @Test func aServiceWhoseEndIsOutsideWorks() throws {
        let lab = try Self.lab(.stack)
        lab.forgetSeen()
        let answer = lab.run(in: "shop", "sh -c 'echo hi | socat -t2 - TCP:10.96.0.9:7000,connect-timeout=2'")
        #expect(answer.output == "hi\n", "\(answer.errors)")
        #expect(lab.seen("connections") == ["10.0.0.13 > \(world)": 1])
    }

    @Test func underEBPFInboundIsReportedAndNothingLeavesWithAWrongAddress() throws {
        let lab = try Self.lab(.ebpf)
        lab.forgetSeen()
        #expect(lab.ctl("n1", "status").output.contains("connections from outside to pods with a policy"))
        _ = connects(lab, "10.244.1.10:80")
        #expect(opens(lab, "shop"))
        #expect(lab.pings("shop", world))
        #expect(lab.seen("connections") == ["10.0.0.13 > \(world)": 1])
        #expect(lab.seen("pings") == ["10.0.0.13 > \(world)": 1])
    }

    @Test func aStrictUplinkIsReported() throws {
        let lab = try Self.lab(.stack)
        #expect(!lab.ctl("n1", "status").output.contains("eth0.rp_filter"))
        lab.run(in: "n1", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
        defer { lab.run(in: "n1", "sysctl -qw net.ipv4.conf.eth0.rp_filter=2") }
        lab.run(in: "n1", "ip addr add 192.0.2.99/32 dev lo")
        defer { lab.run(in: "n1", "ip addr del 192.0.2.99/32 dev lo") }
        #expect(lab.eventually { lab.ctl("n1", "status").output.contains("eth0.rp_filter=2") })
        #expect(!connects(lab, "10.244.1.10:80"))
    }

    /// The real `firewall` plugin accepts what a pod sends, and what connection tracking knows as the answer to it.
    @Test func aForwardChainThatDropsIsNamedAndWhatItNeedsHelps() throws {
        let lab = try Self.lab(.stack)
        let configuration = """
            {"cniVersion": "1.0.0", "name": "cilium", "type": "firewall", "backend": "iptables", \
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/\(lab.prefix)-walled"}], \
            "ips": [{"address": "10.244.2.20/32", "interface": 0}]}}
            """
        let added = Shell.run(
            """
            ip netns exec \(lab.prefix)-n2 env CNI_COMMAND=ADD CNI_CONTAINERID=\(lab.prefix)-walled CNI_IFNAME=eth0 \
            CNI_NETNS=/run/netns/\(lab.prefix)-walled CNI_PATH=/usr/lib/cni /usr/lib/cni/firewall <<'J'
            \(configuration)
            J
            """)
        #expect(added.status == 0, "\(added.output) \(added.errors)")
        // Under eBPF host routing nobody asks the chain.
        #expect(!lab.pings("walled", world))
        #expect(
            lab.eventually {
                lab.ctl("n2", "status").output.contains("chain FORWARD of table ip filter drops forwarded")
            })
        #expect(!lab.ctl("n1", "status").output.contains("of table ip filter"))
        lab.run(in: "n2", "iptables -A FORWARD -d 10.244.2.20 -j ACCEPT")
        #expect(lab.pings("walled", world))
        #expect(opens(lab, "walled"))
    }

    /// What connection tracking calls invalid on the gateway is not translated, and so must not leave.
    @Test(arguments: Lab.Routing.allCases)
    func whatTheGatewayCannotTranslateDoesNotLeave(_ routing: Lab.Routing) throws {
        let lab = try Self.lab(routing)
        let device = Lab.tunnelProtocol == "vxlan" ? "cni-culvert0" : "cni-culvert"
        // kube-proxy would drop them before we see them.
        lab.run(in: "n3", "nft flush chain ip kube-proxy filter-forward")
        defer { lab.run(in: "n3", "nft add rule ip kube-proxy filter-forward ct state invalid drop") }
        let before = lab.notTranslated("n3", device)
        for flags in ["R", "F", "SA"] {
            let sent = lab.run(
                in: "shop",
                "python3 \(Shell.packageRoot)/Tests/Lab/syn.py 10.244.1.10 45123 \(world) 7001 \(flags)")
            #expect(sent.status == 0, "\(sent.errors)")
        }
        usleep(200_000)
        #expect(!lab.leaks)
        #expect(lab.notTranslated("n3", device) > before)
    }

    @Test(arguments: Lab.Routing.allCases)
    func aPodWithANewPolicyGoesOnWithItsEgressAddress(_ routing: Lab.Routing) throws {
        let lab = try Self.lab(routing)
        lab.run(in: "out", "nft flush set inet watch datagrams")
        // One flow that never stops: the same ports all the time.
        let script = "while true; do echo x; sleep 0.1; done | socat -u - UDP:\(world):5353,sourceport=42000"
        let flow = lab.start(in: "shop", "timeout -s KILL 8 sh -c '\(script)'")
        #expect(lab.eventually(3) { lab.seen("datagrams")["10.0.0.13 > \(world)"] ?? 0 > 5 })
        try lab.inventory("policies.yaml", Lab.policy("shop", app: "shop", egress: "egressIP: 192.0.2.31"))
        defer { try? lab.inventory("policies.yaml", Lab.policy("shop", app: "shop")) }
        #expect(lab.eventually(3) { lab.seen("datagrams")["192.0.2.31 > \(world)"] ?? 0 > 5 })
        let old = lab.seen("datagrams")["10.0.0.13 > \(world)"] ?? 0
        usleep(500_000)
        #expect(lab.seen("datagrams")["10.0.0.13 > \(world)"] ?? 0 == old)
        #expect(Set(lab.seen("datagrams").keys) == ["10.0.0.13 > \(world)", "192.0.2.31 > \(world)"])
        _ = flow.wait()
    }

    /// A connection from outside goes on, and what the pod starts leaves by the gateway, while everything around changes.
    @Test func connectionsFromOutsideOutliveRestartsAndChanges() throws {
        let lab = try Self.lab(.stack)
        lab.forgetSeen()
        func client(_ target: String) -> Lab.Running {
            lab.start(
                in: "out",
                "sh -c '(for i in $(seq 120); do echo $i; sleep 0.1; done) | socat -t5 - TCP:\(target),connect-timeout=2'"
            )
        }
        let clients = [client("10.0.0.11:30080"), client("10.244.1.10:80")]
        let own = lab.start(
            in: "shop",
            "sh -c 'for i in $(seq 700); do echo x; sleep 0.02; done | socat -u - UDP:\(world):5353,sourceport=44000'")
        usleep(1_000_000)
        lab.kill("n1")
        try lab.start("n1")
        try lab.inventory("policies.yaml", Lab.policy("shop", app: "shop", destinations: "[203.0.113.0/24]"))
        usleep(500_000)
        try lab.inventory("policies.yaml", Lab.policy("shop", app: "shop"))
        usleep(500_000)
        lab.kill("n1", signal: SIGTERM)
        try lab.start("n1")
        let lines = "hello\n" + (1...120).map { "\($0)\n" }.joined()
        for running in clients { #expect(running.wait().output == lines) }
        // What is known of open connections goes with the table; what the pod starts is translated all the same.
        lab.run(in: "n1", "nft delete table inet culvert")
        #expect(lab.eventually(5) { lab.run(in: "n1", "nft list table inet culvert").status == 0 })
        _ = own.wait()
        let seen = lab.seen("datagrams").filter { $0.key.hasSuffix(" > \(world)") }
        #expect(Set(seen.keys) == ["10.0.0.13 > \(world)"], "\(seen)")
        #expect((seen.values.first ?? 0) > 450)
    }

    /// Of a gateway's connections echoes are few: only those that prove the translation are tracked.
    @Test(arguments: Lab.Routing.allCases)
    func echoesAreNotTrackedOnTheGateway(_ routing: Lab.Routing) throws {
        let lab = try Self.lab(routing)
        #expect(lab.pings("shop", world))
        usleep(4_000_000)
        let entries = lab.run(in: "n3", "grep -c 'dport=3785 ' /proc/net/nf_conntrack").output
        // Fresh source ports come every second, and an entry lives 30 s.
        #expect((entries.split(separator: "\n").first.flatMap { Int($0) } ?? -1) <= 2, "\(entries)")
    }

    /// An address that gets another pod: connections of the pod before it are forgotten before the new one starts.
    @Test func anAddressThatChangesHandsStartsAnew() throws {
        let lab = try Self.lab(.stack)
        try lab.pod("first", on: "n2", last: 40, labels: "app:none")
        let ask = "socat -t1 - UDP:\(world):53,sourceport=43000,reuseaddr"
        #expect(lab.run(in: "first", "sh -c 'echo hi | \(ask)'").output == "hi\n")
        func tracked() -> Int {
            lab.run(in: "n2", "grep -c 'src=10.244.2.40 ' /proc/net/nf_conntrack").output
                .split(separator: "\n").first.flatMap { Int($0) } ?? -1
        }
        #expect(tracked() == 1)
        #expect(lab.plugin("n2", "DEL", "first").status == 0)
        #expect(lab.eventually(3) { tracked() == 0 })
    }

    /// Nor does the new pod answer what came in for the one before it, past its gateway.
    @Test func whatCameInForAPodIsForgottenWithIt() throws {
        let lab = try Self.lab(.stack)
        try lab.pod("guest", on: "n1", last: 41, labels: "app:shop")
        func known(_ address: String) -> Bool {
            lab.run(in: "n1", "nft list set inet culvert inbound_pings").output.contains(". \(address) ")
        }
        for address in ["10.244.1.41", "10.244.1.10"] {
            #expect(lab.run(in: "out", "ping -n -q -c 1 -W 2 \(address)").status == 0)
            #expect(known(address))
        }
        func repairs() -> Int { lab.log("n1").components(separatedBy: "repaired what another program").count }
        let before = repairs()
        #expect(lab.plugin("n1", "DEL", "guest").status == 0)
        #expect(lab.eventually(3) { !known("10.244.1.41") })
        #expect(known("10.244.1.10"), "other pods' flows stay")
        #expect(repairs() == before, "our own change is nothing to put back")
    }
}

extension Lab {
    fileprivate var leaks: Bool { run(in: "out", "nft list set inet watch leaks").output.contains("10.244.") }

    /// Packets that a gateway has not let out because they were not translated, on devices of this beginning.
    func notTranslated(_ node: String, _ device: String) -> Int {
        counted(node, beginningWith: "egress: not translated, \(device)")
    }
}

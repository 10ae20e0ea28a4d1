import Foundation
import Jansson
import TestSupport
import Testing

/// What the environment says of the mesh's scenarios.
enum Mesh {
    static var isPossible: Bool { ProcessInfo.processInfo.environment["CULVERT_LAB_MESH"] == "1" }
    /// Mebibytes of one TCP transfer: 100 take three minutes in an emulated VM, so CI sends less.
    static let transfer = Int(ProcessInfo.processInfo.environment["CULVERT_LAB_MB"] ?? "2") ?? 2
    /// Nodes run this program, because the kernel has no WireGuard.
    static var isUserspace: Bool { ProcessInfo.processInfo.environment["LAB_WIREGUARD"] != nil }
    static var isWhole: Bool { ProcessInfo.processInfo.environment["CULVERT_LAB_WHOLE"] == "1" }
}

/// Two locations of two nodes, real WireGuard between their gateways. Needs a kernel with WireGuard and IPIP: the VM.
@Suite(.serialized, .enabled(if: Lab.isPossible && Mesh.isPossible, "needs root and WireGuard; runs in the VM"))
struct MeshScenarioTests {
    /// One network for all tests: making it takes a minute in an emulated VM. Pods a and b use the host's stack, c and d
    /// eBPF host routing; a and c are on n2, b and d on n4.
    private static let shared = Result { try Lab("m", script: "sites.sh") }
    static let nodes = ["n1", "n2", "n3", "n4"]
    static let pods = [
        ("a", "n2", 10, Lab.Routing.stack), ("b", "n4", 10, .stack), ("c", "n2", 11, .ebpf), ("d", "n4", 11, .ebpf),
    ]
    static let addresses = ["a": "10.244.2.10", "b": "10.244.4.10", "c": "10.244.2.11", "d": "10.244.4.11"]

    /// The network with helpers of this configuration, and the pods.
    static func mesh(strategy: String, granularity: String) throws -> Lab {
        let lab = try shared.get()
        try lab.restart(
            nodes,
            configuration: """
                encapsulation: {protocol: \(Lab.tunnelProtocol), strategy: \(strategy)}
                mesh: {persistentKeepalive: 5, granularity: \(granularity)}

                """)
        if !FileManager.default.fileExists(atPath: "\(lab.directory)/pods/d.address") {
            // Every node knows every key before a pod starts, as in a cluster that is running.
            #expect(settles(lab) { peers(lab, "n1").count == (granularity == "full" ? 3 : 1) })
            for (name, node, last, routing) in pods { try lab.pod(name, on: node, last: last, routing: routing) }
        }
        return lab
    }

    static func peers(_ lab: Lab, _ node: String) -> [String: JSON] {
        Dictionary(
            (lab.api(node, "/v1/peers")?.elements ?? []).map { ($0["name"]?.string ?? "", $0) },
            uniquingKeysWith: { first, _ in first })
    }

    /// Hands round what the nodes publish until `condition` holds.
    static func settles(_ lab: Lab, _ condition: () -> Bool) -> Bool {
        lab.eventually(120) {
            lab.sites("share")
            return condition()
        }
    }

    static func transfer(_ lab: Lab, from: String, to: String) {
        let bytes = Mesh.transfer * 1_048_576
        let received = "\(lab.directory)/received"
        Shell.run(
            "ip netns exec \(lab.prefix)-\(to) timeout 400 socat -u TCP-LISTEN:9000,reuseaddr EXEC:'wc -c' > \(received) 2>&1 < /dev/null & sleep 0.7"
        )
        let sent = lab.run(
            in: from,
            "sh -c 'head -c \(bytes) /dev/zero | timeout 400 socat -u - TCP:\(addresses[to] ?? ""):9000,connect-timeout=10'",
            timeout: 420)
        #expect(sent.status == 0, "\(sent.errors)")
        #expect(
            lab.eventually(10) {
                Shell.run("cat \(received)").output.trimmingCharacters(in: .whitespacesAndNewlines) == "\(bytes)"
            }, "\(from) to \(to): \(Shell.run("cat \(received)").output)")
    }

    @Test func oneNodesAnnotationChangesOnlyItsPeer() throws {
        let lab = try Self.mesh(strategy: "always", granularity: "full")
        #expect(Self.settles(lab) { lab.pings("a", "10.244.4.10") })
        let before = Self.peers(lab, "n2")
        #expect(before.count == 3)
        let outcome = "\(lab.directory)/ping"
        Shell.run(
            "ip netns exec \(lab.prefix)-a ping -n -q -i 0.2 -c 60 -W 2 10.244.4.10 > \(outcome) 2>&1 < /dev/null & sleep 1"
        )
        Shell.run(
            "cd \(lab.directory)/inventory && sed 's|^  name: n3$|  name: n3\\n  annotations: {kilo.squat.ai/allowed-location-ips: 192.168.77.0/24}|' node-n3.yaml > .n3 && mv .n3 node-n3.yaml"
        )
        #expect(
            lab.eventually(40) {
                (Self.peers(lab, "n2")["n3"]?["allowedIPs"]?.elements ?? []).contains { $0.string == "192.168.77.0/24" }
            }, "\(Self.peers(lab, "n2"))")
        let after = Self.peers(lab, "n2")
        for other in ["n1", "n4"] {
            #expect(before[other]?["allowedIPs"] == after[other]?["allowedIPs"])
            for counter in ["lastHandshake", "receivedBytes", "sentBytes"] {
                let (old, new) = (before[other]?[counter]?.integer ?? 1, after[other]?[counter]?.integer ?? 0)
                #expect(new >= old, "\(other) \(counter): \(old), then \(new)")
            }
        }
        #expect(lab.eventually(40) { Shell.run("cat \(outcome)").output.contains("transmitted") })
        #expect(Shell.run("cat \(outcome)").output.contains(" 0% packet loss"), "\(Shell.run("cat \(outcome)").output)")
    }

    /// With nodes that are /32s both strategies come to the same; all four combinations run where there is time.
    /// Full ones first: two nodes behind NATs that become gateways while their routers remember other ways may need
    /// minutes to meet.
    static let combinations =
        Mesh.isWhole
        ? ["full", "location"].flatMap { granularity in ["always", "crosssubnet"].map { ($0, granularity) } }
        : [("always", "full"), ("crosssubnet", "location")]

    @Test(arguments: combinations)
    func podsOfTwoLocationsReachEachOther(_ strategy: String, _ granularity: String) throws {
        let lab = try Self.mesh(strategy: strategy, granularity: granularity)
        for (from, to) in [("a", "b"), ("c", "d")] {
            #expect(
                Self.settles(lab) { lab.pings(from, Self.addresses[to] ?? "") },
                "\(from) to \(to): \(lab.log("n2").suffix(500))")
        }
        // While helpers start, a gateway whose device is not up yet answers handshakes with "port unreachable".
        for router in ["ra", "rb"] { lab.run(in: router, "nft reset counters") }
        for (from, to) in [("a", "b"), ("c", "d")] {
            #expect(lab.pings(to, Self.addresses[from] ?? ""))
            Self.transfer(lab, from: from, to: to)
            Self.transfer(lab, from: to, to: from)
        }
        if granularity == "location" {
            // A member's own stack reaches its gateway's WireGuard address, and the answer comes by the tunnel too.
            #expect(lab.run(in: "n2", "ping -n -q -c 2 -W 3 10.4.0.1").status == 0)
        }
        // What a capture on each underlay shows: VXLAN and WireGuard, nothing else, nothing in fragments.
        for router in ["ra", "rb"] {
            var counted = lab.counters(router: router)
            #expect((counted.removeValue(forKey: "wireguard") ?? 0) > 0)
            let inOverlay = counted.removeValue(forKey: "vxlan") ?? 0
            #expect((inOverlay > 0) == (granularity == "location"), "\(inOverlay) packets of VXLAN")
            #expect(
                counted == ["ipip": 0, "gre": 0, "fragments": 0, "foreign": 0, "others": 0],
                "\(router): \(lab.run(in: router, "nft list set inet cloud seen").output)")
        }
        for node in Self.nodes {
            #expect(lab.eventually { lab.ctl(node, "diff").output == "[]\n" }, "\(lab.ctl(node, "diff").output)")
        }
    }

    @Test func nodesReachEachOtherAndCleanupTakesAllAway() throws {
        let lab = try Self.mesh(strategy: "always", granularity: "location")
        #expect(Self.settles(lab) { lab.run(in: "n2", "ping -n -q -c 1 -W 3 10.2.0.14").status == 0 })
        #expect(lab.run(in: "n1", "ping -n -q -c 1 -W 3 10.4.0.2").status == 0, "the other gateway's WireGuard address")
        #expect(lab.run(in: "n2", "ping -n -q -c 1 -W 3 10.4.0.2").status == 0)
        // A member that is no egress gateway lets nothing out for others, should a source think that it is one.
        lab.run(in: "ra", "nft reset counters")
        let route = "192.0.2.2 via 10.244.2.1 dev cni-culvert0 onlink"
        #expect(lab.run(in: "n1", "ip route add \(route)").status == 0)
        #expect(lab.run(in: "n1", "ping -n -q -c 2 -W 1 192.0.2.2").status == 1)
        lab.run(in: "n1", "ip route del \(route)")
        #expect(lab.counted("n2", beginningWith: "egress: not a gateway, ") == 2)
        #expect(lab.counters(router: "ra")["foreign"] == 0)
        // A killed helper leaves the mesh as it is, and takes it over again.
        lab.kill("n1")
        #expect(lab.run(in: "n2", "ping -n -q -c 1 -W 3 10.2.0.14").status == 0)
        let file = "\(lab.directory)/n1/state/wireguard.key"
        let key = Shell.run("cat \(file)").output
        try lab.start("n1")
        #expect(Shell.run("cat \(file)").output == key)
        #expect(Shell.run("stat -c %a \(file)").output == "600\n")
        #expect(lab.ctl("n1", "diff").output == "[]\n")
        lab.kill("n1", signal: SIGTERM)
        let result = lab.run(in: "n1", "\(Shell.binaries)/culvertd cleanup --run-dir \(lab.directory)/n1")
        #expect(result.status == 0, "\(result.errors)")
        // The device of a program in user space is the program's, and without an address it is nobody's way.
        let left = lab.run(in: "n1", "ip -o -d link").output.split(separator: "\n").filter {
            $0.contains("cni-culvert")
        }
        #expect(left.allSatisfy { Mesh.isUserspace && $0.contains("tun type tun") }, "\(left)")
        #expect(lab.run(in: "n1", "ip -o -4 addr show").output.contains("cni-culvert") == false)
        #expect(!lab.run(in: "n1", "ip route show table all").output.contains("proto 110"))
        // No key in what the helper says.
        let secret = key.trimmingCharacters(in: .whitespacesAndNewlines)
        #expect(!secret.isEmpty && !lab.log("n1").contains(secret))
    }
}

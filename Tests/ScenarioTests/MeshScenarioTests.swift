import Foundation
import Jansson
import TestSupport
import Testing

/// What the environment says of the mesh's scenarios.
enum Mesh {
    static var isPossible: Bool { ProcessInfo.processInfo.environment["CULVERT_LAB_MESH"] == "1" }
    /// Bytes of one TCP transfer.
    static let transfer = Int(ProcessInfo.processInfo.environment["CULVERT_LAB_MB"] ?? "100") ?? 100
}

/// Two locations of two nodes, real WireGuard between their gateways. Needs a kernel with WireGuard and IPIP: the VM.
@Suite(.serialized, .enabled(if: Lab.isPossible && Mesh.isPossible, "needs root and WireGuard; runs in the VM"))
struct MeshScenarioTests {
    struct Combination: CustomStringConvertible, Sendable {
        let routing: Lab.Routing
        let strategy: String
        let granularity: String
        var description: String { "\(routing.rawValue), \(strategy), \(granularity)" }
    }
    static let combinations = Lab.Routing.allCases.flatMap { routing in
        ["always", "crosssubnet"].flatMap { strategy in
            ["location", "full"].map { Combination(routing: routing, strategy: strategy, granularity: $0) }
        }
    }

    static func mesh(_ name: String, _ combination: Combination) throws -> Lab {
        let lab = try Lab(
            name, routing: combination.routing, script: "sites.sh",
            configuration: """
                encapsulation: {protocol: ipip, strategy: \(combination.strategy)}
                mesh: {persistentKeepalive: 5, granularity: \(combination.granularity)}

                """)
        try lab.start("n1", "n2", "n3", "n4")
        return lab
    }

    /// Hands round what the nodes publish until `condition` holds.
    static func settles(_ lab: Lab, _ condition: () -> Bool) -> Bool {
        lab.eventually(120) {
            lab.sites("share")
            return condition()
        }
    }

    @Test(arguments: combinations)
    func podsOfTwoLocationsReachEachOther(_ combination: Combination) throws {
        let lab = try Self.mesh("m", combination)
        // Every node knows every key before a pod starts, as in a cluster that is running.
        let count = combination.granularity == "full" ? 3 : 1
        #expect(
            Self.settles(lab) {
                let plan = lab.api("n1", "/v1/plan")
                return plan?["wireguard"]?.elements?.first?["peers"]?.elements?.count == count
            })
        try lab.pod("a", on: "n2", last: 10)
        try lab.pod("b", on: "n4", last: 10)
        #expect(Self.settles(lab) { lab.pings("a", "10.244.4.10") }, "\(lab.log("n2").suffix(500))")
        #expect(lab.pings("b", "10.244.2.10"))
        for (from, to, address) in [("a", "b", "10.244.4.10"), ("b", "a", "10.244.2.10")] {
            let received = "\(lab.directory)/received"
            Shell.run(
                "ip netns exec \(lab.prefix)-\(to) timeout 300 socat -u TCP-LISTEN:9000,reuseaddr EXEC:'wc -c' > \(received) < /dev/null 2>&1 & sleep 1"
            )
            let sent = lab.run(
                in: from,
                "sh -c 'head -c \(Mesh.transfer * 1_048_576) /dev/zero | timeout 300 socat -u - TCP:\(address):9000,connect-timeout=10'",
                timeout: 320)
            #expect(sent.status == 0, "\(sent.errors)")
            #expect(
                lab.eventually(10) {
                    Shell.run("cat \(received)").output.trimmingCharacters(in: .whitespacesAndNewlines)
                        == "\(Mesh.transfer * 1_048_576)"
                }, "\(from) to \(to): \(Shell.run("cat \(received)").output)")
        }
        // What a capture on each underlay shows: VXLAN and WireGuard, nothing else, nothing in fragments.
        for router in ["ra", "rb"] {
            var counted = lab.counters(router: router)
            #expect((counted.removeValue(forKey: "wireguard") ?? 0) > 0)
            if combination.granularity == "location" {
                #expect((counted["vxlan"] ?? 0) > 0)
            }
            counted["vxlan"] = nil
            #expect(
                counted == ["ipip": 0, "gre": 0, "fragments": 0, "foreign": 0, "others": 0],
                "\(router): \(lab.run(in: router, "nft list set inet cloud seen").output)")
        }
        for node in ["n1", "n2", "n3", "n4"] {
            #expect(lab.eventually { lab.ctl(node, "diff").output == "[]\n" }, "\(lab.ctl(node, "diff").output)")
        }
    }

    @Test func oneNodesAnnotationChangesOnlyItsPeer() throws {
        let lab = try Self.mesh("p", Combination(routing: .stack, strategy: "always", granularity: "full"))
        try lab.pod("a", on: "n1", last: 10)
        try lab.pod("b", on: "n3", last: 10)
        #expect(Self.settles(lab) { lab.pings("a", "10.244.3.10") })
        func peers() -> [String: JSON] {
            Dictionary(
                (lab.api("n1", "/v1/peers")?.elements ?? []).map { ($0["name"]?.string ?? "", $0) },
                uniquingKeysWith: { first, _ in first })
        }
        let before = peers()
        let outcome = "\(lab.directory)/ping"
        Shell.run(
            "ip netns exec \(lab.prefix)-a ping -n -q -i 0.1 -c 60 -W 2 10.244.3.10 > \(outcome) 2>&1 < /dev/null & sleep 1"
        )
        Shell.run(
            "cd \(lab.directory)/inventory && sed 's|^  name: n4$|  name: n4\n  annotations: {kilo.squat.ai/allowed-location-ips: 192.168.77.0/24}|' node-n4.yaml > .n4 && mv .n4 node-n4.yaml"
        )
        #expect(
            lab.eventually(30) {
                (peers()["n4"]?["allowedIPs"]?.elements ?? []).contains { $0.string == "192.168.77.0/24" }
            }, "\(peers())")
        let after = peers()
        #expect((after["n3"]?["lastHandshake"]?.integer ?? 0) >= (before["n3"]?["lastHandshake"]?.integer ?? 1))
        #expect((after["n3"]?["receivedBytes"]?.integer ?? 0) >= (before["n3"]?["receivedBytes"]?.integer ?? 1))
        #expect(after["n3"]?["allowedIPs"] == before["n3"]?["allowedIPs"])
        #expect(lab.eventually(30) { Shell.run("cat \(outcome)").output.contains("transmitted") })
        #expect(Shell.run("cat \(outcome)").output.contains(" 0% packet loss"), "\(Shell.run("cat \(outcome)").output)")
    }

    @Test func nodesReachEachOtherAndCleanupTakesAllAway() throws {
        let lab = try Self.mesh("q", Combination(routing: .stack, strategy: "always", granularity: "location"))
        #expect(Self.settles(lab) { lab.run(in: "n2", "ping -n -q -c 1 -W 3 10.2.0.14").status == 0 })
        #expect(lab.run(in: "n1", "ping -n -q -c 1 -W 3 10.4.0.2").status == 0, "the other gateway's WireGuard address")
        #expect(lab.run(in: "n2", "ping -n -q -c 1 -W 3 10.4.0.2").status == 0)
        // A killed helper leaves the mesh as it is, and takes it over again.
        lab.kill("n1")
        #expect(lab.run(in: "n2", "ping -n -q -c 1 -W 3 10.2.0.14").status == 0)
        let key = lab.run(in: "n1", "cat \(lab.directory)/n1/state/wireguard.key").output
        try lab.start("n1")
        #expect(lab.run(in: "n1", "cat \(lab.directory)/n1/state/wireguard.key").output == key)
        #expect(Shell.run("stat -c %a \(lab.directory)/n1/state/wireguard.key").output == "600\n")
        #expect(lab.ctl("n1", "diff").output == "[]\n")
        lab.kill("n1", signal: SIGTERM)
        let result = lab.run(in: "n1", "\(Shell.binaries)/culvertd cleanup --run-dir \(lab.directory)/n1")
        #expect(result.status == 0, "\(result.errors)")
        #expect(!lab.run(in: "n1", "ip -d link").output.contains("cni-culvert"))
        #expect(!lab.run(in: "n1", "ip route show table all").output.contains("proto 110"))
        // No key in what the helper says.
        let secret = key.trimmingCharacters(in: .whitespacesAndNewlines)
        #expect(!secret.isEmpty && !lab.log("n1").contains(secret))
    }
}

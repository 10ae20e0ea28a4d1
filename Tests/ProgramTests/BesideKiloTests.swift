import CLinux
import Foundation
import Jansson
import TestSupport
import Testing

/// Helpers in one mesh with Tests/Lab/kilo_like.py, which says and does what Kilo does: two locations of two nodes, n1 and n2 in
/// a, n3 and n4 in b.
@Suite(
    .enabled(
        if: Lab.isPossible && Shell.run("which wireguard-go").status == 0, "needs root, CULVERT_LAB=1 and wireguard-go")
)
struct BesideKiloTests {
    final class Cluster {
        let api: APIServer
        let lab: Lab
        private var kilos: [String: Int] = [:]

        init(_ name: String) throws {
            api = try APIServer.withRoles(name)
            lab = try Lab(
                name, script: "sites.sh",
                configuration: """
                    inventory: {source: kubernetes, kubeconfig: \(api.kubeconfig)}
                    encapsulation: {protocol: vxlan}
                    mesh: {enabled: true, kiloInterop: true}

                    """, extra: ["LAB_API": "\(api.socket)", "LAB_WIREGUARD": "wireguard-go"])
            Shell.run(
                """
                cd \(lab.directory)/inventory && for f in *.yaml; do
                    /usr/bin/python3 -c 'import sys, json, yaml; docs = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d]
                for d in docs:
                    if d["kind"] == "Node": d["spec"]["podCIDR"] = d["spec"]["podCIDRs"][0]
                print(json.dumps(docs))' $f |
                        curl -sf --unix-socket \(api.socket) --data-binary @- http://localhost/_standin/apply > /dev/null
                    rm $f
                done
                """)
        }

        deinit { for pid in kilos.values where pid > 1 { CLinux.kill(pid_t(pid), SIGKILL) } }

        func startKilo(_ number: Int, device: String = "none") {
            let place = number <= 2 ? 1 : 2
            let external = [1: "198.51.100.1", 3: "198.51.100.3"][number]
            let output = Shell.run(
                """
                /usr/sbin/ip netns exec \(lab.prefix)-n\(number) sh -c 'ip link set lo up; [ -e \(lab.directory)/n\(number).kapi ] || { touch \(lab.directory)/n\(number).kapi; socat TCP-LISTEN:6444,bind=127.0.0.1,fork,reuseaddr UNIX-CONNECT:\(api.directory)/api.unix > /dev/null 2>&1 < /dev/null & echo $! > \(lab.directory)/n\(number).kapi.pid; }
                sleep 0.3
                exec /usr/bin/python3 \(Shell.packageRoot)/Tests/Lab/kilo_like.py --server http://127.0.0.1:6444 --token ADMIN --node n\(number) --internal-ip 10.\(place).0.1\(number)/32 \(external.map { "--external-ip \($0)/32" } ?? "") --compatibility-ip 10.244.\(number).1/32 --key \(lab.directory)/kilo\(number).key --state \(lab.directory)/kilo\(number).state --device \(device) --tunnel cilium_tunl' > \(lab.directory)/kilo\(number).log 2>&1 < /dev/null &
                echo $!
                """
            ).output
            kilos["n\(number)"] = Int(output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        }
        func endKilo(_ number: Int, cleanly: Bool) {
            guard let pid = kilos.removeValue(forKey: "n\(number)"), pid > 1 else { return }
            CLinux.kill(pid_t(pid), cleanly ? SIGTERM : SIGKILL)
        }
        /// Leaders by location, as a node of Kilo's sees them.
        func leaders(ofKilo number: Int) -> [String: String] {
            let state = Shell.run("cat \(lab.directory)/kilo\(number).state").output
            let members = (try? JSON.parse(Array(state.utf8)))?.members ?? []
            return Dictionary(
                members.map { ($0.key, "\($0.value["leader"]?.string ?? "") \($0.value["address"]?.string ?? "")") },
                uniquingKeysWith: { first, _ in first })
        }
        /// The same, as a helper sees them.
        func leaders(of node: String) -> [String: String] {
            let graph = lab.ctl(node, "graph -o json").json
            return Dictionary(
                (graph?["segments"]?.elements ?? []).map {
                    ($0["key"]?.string ?? "", "\($0["gateway"]?.string ?? "") \($0["wireGuardAddress"]?.string ?? "")")
                }, uniquingKeysWith: { first, _ in first })
        }
        func annotations(_ node: String) -> [String: String] {
            Dictionary(
                (api.get("/api/v1/nodes/\(node)")?["metadata"]?["annotations"]?.members ?? []).map {
                    ($0.key, $0.value.string ?? "")
                }, uniquingKeysWith: { first, _ in first })
        }
        /// As somebody who was there `age` seconds ago.
        func annotate(_ node: String, _ annotations: [String: String]) {
            let text = annotations.map { "\"\($0.key)\":\"\($0.value)\"" }.joined(separator: ",")
            Shell.run(
                "curl -sf -X PATCH --unix-socket \(api.directory)/api.unix -H 'Authorization: Bearer ADMIN' -H 'Content-Type: application/merge-patch+json' --data-binary @- http://localhost/api/v1/nodes/\(node)",
                input: "{\"metadata\":{\"annotations\":{\(text)}}}")
        }
    }

    static let whole = ["location:a": "n1 10.4.0.1", "location:b": "n3 10.4.0.2"]

    /// n2 and n4 are Kilo's, n1 is ours; n3 was Kilo's, and has said nothing for 50 seconds.
    @Test func aNodeThatIsDeadIsLeftOutByAllOfThemAtTheSameTime() throws {
        let cluster = try Cluster("kd")
        let lab = cluster.lab
        let death = Int(Date().timeIntervalSince1970) - 45
        cluster.annotate(
            "n3",
            [
                "kilo.squat.ai/key": Data([UInt8](repeating: 9, count: 32)).base64EncodedString(),
                "kilo.squat.ai/endpoint": "198.51.100.3:51820", "kilo.squat.ai/internal-ip": "10.2.0.13/32",
                "kilo.squat.ai/last-seen": "\(death)",
            ])
        cluster.startKilo(2)
        cluster.startKilo(4)
        try lab.start("n1")
        #expect(lab.eventually(12) { cluster.leaders(of: "n1") == Self.whole }, "\(cluster.leaders(of: "n1"))")
        let changed = ["location:a": "n1 10.4.0.1", "location:b": "n4 10.4.0.2"]
        #expect(lab.eventually(40) { cluster.leaders(of: "n1") == changed }, "\(cluster.leaders(of: "n1"))")
        #expect(Int(Date().timeIntervalSince1970) >= death + 60, "not before Kilo would")
        // Its own resync is every 30 seconds.
        #expect(lab.eventually(45) { cluster.leaders(ofKilo: 2) == changed }, "\(cluster.leaders(ofKilo: 2))")
        // It comes back.
        cluster.annotate("n3", ["kilo.squat.ai/last-seen": "\(Int(Date().timeIntervalSince1970))"])
        #expect(lab.eventually(15) { cluster.leaders(of: "n1") == Self.whole }, "\(cluster.leaders(of: "n1"))")
        // A start of the helper is nothing that others see. (They would leave out a node without its sign of life.)
        let samples = "\(lab.directory)/samples"
        Shell.run(
            "for i in $(seq 80); do curl -sf --unix-socket \(cluster.api.directory)/api.unix -H 'Authorization: Bearer ADMIN' http://localhost/api/v1/nodes/n1; echo; sleep 0.05; done > \(samples) 2>/dev/null < /dev/null &"
        )
        lab.kill("n1", signal: SIGTERM)
        try lab.start("n1")
        #expect(lab.eventually(15) { cluster.leaders(of: "n1") == Self.whole })
        _ = lab.eventually(15) { Shell.run("wc -l < \(samples)").output.hasPrefix("80") }
        let seen = Shell.run("cat \(samples)").output.split(separator: "\n").compactMap {
            try? JSON.parse(Array($0.utf8))
        }
        #expect(seen.count > 20)
        for name in ["wireguard-ip", "last-seen", "key", "endpoint"] {
            let values = Set(seen.map { $0["metadata"]?["annotations"]?["kilo.squat.ai/\(name)"]?.string ?? "" })
            #expect(!values.contains("") && !values.contains("0"), "\(name): \(values)")
        }
    }

    /// n2 was Kilo's, and its Kilo was killed: its routes lie over a device that nobody looks after, and its key stands.
    @Test func anUncleanEndIsTakenOverWithoutAHand() throws {
        let cluster = try Cluster("ku")
        let lab = cluster.lab
        lab.run(in: "n2", "ip link add cilium_tunl type veth peer name tunl-end")
        lab.run(in: "n2", "ip link set tunl-end up")
        lab.run(in: "n2", "ip link set cilium_tunl up")
        cluster.startKilo(1)
        cluster.startKilo(3)
        cluster.startKilo(2, device: "veth")
        func routes() -> String { lab.run(in: "n2", "ip route show proto static").output }
        #expect(lab.eventually(20) { routes().contains("10.2.0.13 ") }, "\(routes())")
        let kilosKey = cluster.annotations("n2")["kilo.squat.ai/key"]
        // While it runs, the node is Kilo's: nothing is touched, nothing is overwritten, and it is told.
        try lab.start("n2")
        #expect(
            lab.eventually(10) { lab.ctl("n2", "status").output.contains("Kilo ") }, "\(lab.ctl("n2", "status").output)"
        )
        #expect(routes().contains("10.2.0.13 "), "\(lab.log("n2"))")
        #expect(cluster.annotations("n2")["kilo.squat.ai/key"] == kilosKey)
        cluster.endKilo(2, cleanly: false)
        // 35 seconds of silence, or 65 if it has written since.
        #expect(
            lab.eventually(90) { !routes().contains("cilium_tunl") && !routes().contains("kilo0") }, "\(routes())")
        #expect(
            lab.eventually(20) {
                let key = cluster.annotations("n2")["kilo.squat.ai/key"]
                return key != nil && key != kilosKey
            })
        #expect(lab.run(in: "n2", "ip route show proto 110").output.contains("10.2.0.13 "))
        #expect(lab.run(in: "n2", "nft list tables").output.contains("inet culvert"))
        // Nobody has seen it without a sign of life, or without its place.
        #expect(cluster.annotations("n2")["kilo.squat.ai/last-seen"] != "0")
        // And back: what the helper has written goes, by its own credentials.
        lab.kill("n2", signal: SIGTERM)
        let cleaned = lab.run(
            in: "n2",
            "\(Shell.binaries)/culvertd cleanup --config \(lab.directory)/culvertd.yaml --node n2 --run-dir \(lab.directory)/n2"
        )
        #expect(cleaned.status == 0 && cleaned.output.contains("the annotations of Node n2"), "\(cleaned)")
        #expect(cluster.annotations("n2")["kilo.squat.ai/key"] == nil)
        let kilo = lab.run(in: "n2", "\(Shell.binaries)/culvertd cleanup --kilo")
        #expect(kilo.output.contains("ip link del dev kilo0"), "\(kilo)")
    }
}

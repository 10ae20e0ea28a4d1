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
    static let whole = ["location:a": "n1 10.4.0.1", "location:b": "n3 10.4.0.2"]

    /// n2 and n4 are Kilo's, n1 is ours; n3 was Kilo's, and has said nothing for 50 seconds.
    @Test func aNodeThatIsDeadIsLeftOutByAllOfThemAtTheSameTime() throws {
        let cluster = try KiloCluster("kd")
        let lab = cluster.lab
        let death = Int(Date().timeIntervalSince1970) - 45
        cluster.annotate(
            "n3",
            [
                "kilo.squat.ai/key": Data([UInt8](repeating: 9, count: 32)).base64EncodedString(),
                "kilo.squat.ai/endpoint": "198.51.100.3:51820", "kilo.squat.ai/internal-ip": "10.2.0.13/32",
                "kilo.squat.ai/last-seen": "\(death)",
            ])
        try cluster.startKilo(2)
        try cluster.startKilo(4)
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
        let cluster = try KiloCluster("ku")
        let lab = cluster.lab
        lab.run(in: "n2", "ip link add cilium_tunl type veth peer name tunl-end")
        lab.run(in: "n2", "ip link set tunl-end up")
        lab.run(in: "n2", "ip link set cilium_tunl up")
        try cluster.startKilo(1)
        try cluster.startKilo(3)
        try cluster.startKilo(2, device: "veth")
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

    /// A Kilo starts on a node of Culvert's, as one does whose DaemonSet selects every node. It is noticed and told, and the helper
    /// leaves what is published to it.
    @Test func aKiloThatStartsBesideARunningHelperIsNoticedAndTold() throws {
        let cluster = try KiloCluster("kr")
        let lab = cluster.lab
        try lab.start("n1")
        func key() -> String? { cluster.annotations("n1")["kilo.squat.ai/key"] }
        #expect(lab.eventually(15) { key() != nil })
        let ours = key()
        try cluster.startKilo(1)
        #expect(
            lab.eventually(15) { lab.ctl("n1", "status").output.contains("Kilo runs on this node too") },
            "\(lab.ctl("n1", "status").output)")
        let kilos = key()
        #expect(kilos != nil && kilos != ours)
        func events() -> [JSON] {
            (cluster.api.get("/api/v1/events")?["items"]?.elements ?? []).filter {
                $0["reason"]?.string == "KiloRunsToo"
            }
        }
        #expect(lab.eventually(10) { !events().isEmpty })
        let event = events().first
        let object = event?["involvedObject"]
        #expect(
            object?["kind"]?.string == "Node" && object?["name"]?.string == "n1" && event?["type"]?.string == "Warning")
        #expect(event?["message"]?.string?.contains("keep Kilo off this node") == true, "\(event?.text() ?? "")")
        // Kilo would take its key back, and the helper its own, and so on.
        var keys: Set<String> = []
        for _ in 0..<20 {
            if let key = key() { keys.insert(key) }
            usleep(200_000)
        }
        #expect(keys == Set([kilos].compactMap { $0 }))
        #expect(events().count == 1)
        // The helper's own mesh stays: only what others are told is Kilo's.
        #expect(lab.ctl("n1", "diff").output == "[]\n")
    }

    /// While the inventory is not known nothing can be planned, and what an earlier run has published is still how others reach
    /// the node: a node without its addresses would be half of the truth.
    @Test func aStartPublishesNothingBeforeTheKernelIsAsPlanned() throws {
        let lab = try Lab("kp", configuration: "mesh: {enabled: true}\n", extra: ["LAB_WIREGUARD": "wireguard-go"])
        try lab.start("n1")
        func published() -> String { Shell.run("cat \(lab.directory)/n1/published/n1.yaml").output }
        let before = published()
        #expect(before.contains("kilo.squat.ai/key") && before.contains("kilo.squat.ai/internal-ip"), "\(before)")
        lab.kill("n1")
        try lab.inventory("damaged.yaml", "kind: [")
        lab.startUnready("n1")
        #expect(lab.ctl("n1", "status").output.contains("not known"), "\(lab.ctl("n1", "status").output)")
        #expect(published() == before)
    }
}

import Foundation
import Jansson
import TestSupport
import Testing

/// A cluster moves from Kilo to Culvert and back, node by node, while pods of two locations send. Real WireGuard between the
/// gateways: the kernel's where it has it, else wireguard-go's for both kinds of nodes.
@Suite(
    .serialized,
    .enabled(
        if: Lab.isPossible && Mesh.isPossible && Shell.run("which wg").status == 0,
        "needs root, WireGuard and the program wg; see install/test.sh"))
struct MoveFromKiloTests {
    /// Round trips in the background, ten a second.
    struct Flow {
        let name: String
        let file: String

        static let interval = 0.1
        /// How old the last one may be, seconds: in an emulated VM reading the file takes more than a second.
        static let age = Mesh.isUserspace ? 1.0 : 10
        /// In an emulated VM a helper needs half a minute to start.
        static let slowness = Mesh.isUserspace ? 1 : 10

        /// - Parameter source: the network namespace that it is sent from.
        init(_ name: String, in lab: Lab, from source: String, to destination: String) {
            self.name = name
            file = "\(lab.directory)/flow-\(name)"
            Shell.run(
                "(exec nsenter --net=/run/netns/\(lab.prefix)-\(source) ping -n -D -i \(Flow.interval) \(destination) > \(file) 2>&1 < /dev/null) &"
            )
        }

        /// The last round trips that were completed: their numbers, and when the last of them was. (All lines are much to read in an
        /// emulated VM.)
        private func newest() -> (numbers: [Int], last: Date) {
            let lines = Shell.run(
                "tail -n 14 \(file) | sed -nE 's/^\\[([0-9.]+)\\].* icmp_seq=([0-9]+) ttl.*/\\1 \\2/p'"
            ).output.split(separator: "\n").map { $0.split(separator: " ") }
            let last = lines.last.flatMap { Double($0[0]) } ?? 0
            return (lines.compactMap { $0.last.flatMap { Int($0) } }, Date(timeIntervalSince1970: last))
        }

        /// The number of the last one.
        var number: Int { newest().numbers.last ?? 0 }

        /// How many were lost after this one.
        func lost(after before: Int) -> Int {
            let count = Shell.run(
                "sed -nE 's/.* icmp_seq=([0-9]+) ttl.*/\\1/p' \(file) | awk '$1 > \(before) {n++; last = $1} END {print n ? last - \(before) - n : 0}'"
            ).output
            return Int(count.trimmingCharacters(in: .whitespacesAndNewlines)) ?? -1
        }

        /// What the last ones were, for people.
        var ending: String {
            let (numbers, last) = newest()
            return "\(name): \(numbers), \(Int(-last.timeIntervalSinceNow)) s ago"
        }

        /// The last ten were completed one after the other, and just now.
        var flows: Bool {
            let (numbers, last) = newest()
            guard let newest = numbers.last, numbers.count >= 10 else { return false }
            return numbers.suffix(10).elementsEqual(newest - 9...newest) && last.timeIntervalSinceNow > -Flow.age
        }
    }

    /// A packet for the mesh that has left a node neither in WireGuard nor in the overlay.
    struct Stray: Hashable {
        /// The node that has sent or forwarded it.
        let node: String
        let source: String
        let destination: String

        /// Whether it is of a node, or for one, that is in no mesh at the moment: nobody has another way for it then.
        func isOf(_ number: Int) -> Bool {
            node == "n\(number)" || destination.hasPrefix("10.244.\(number).")
                || destination == "10.\(number <= 2 ? 1 : 2).0.1\(number)"
        }
    }

    /// What a change has cost.
    struct Cost {
        /// Round trips that were not completed, by flow.
        var lost: [String: Int] = [:]
        /// From the end of the one program to the start of the other, seconds.
        var restart = 0.0
        var strays: Set<Stray> = []
    }

    final class Migration {
        let cluster: KiloCluster
        let lab: Lab
        let flows: [Flow]

        init(_ name: String) throws {
            cluster = try KiloCluster(
                name, wireGuard: ProcessInfo.processInfo.environment["LAB_WIREGUARD"], hasPublicNodes: true)
            lab = cluster.lab
            for number in 1...4 {
                try lab.pod("p\(number)", on: "n\(number)", last: 10, extra: ["LAB_NO_ADD": "1"])
            }
            flows = [
                Flow("members", in: lab, from: "p2", to: "10.244.4.10"),
                // Both ways: Kilo makes a peer anew for each change, and then either end must have something to say.
                Flow("gateways", in: lab, from: "p3", to: "10.244.1.10"),
                Flow("gateways-back", in: lab, from: "p1", to: "10.244.3.10"),
                Flow("nodes", in: lab, from: "n2", to: "10.2.0.14"),
            ]
            for number in 1...4 { try startKilo(number) }
        }

        func startKilo(_ number: Int) throws {
            try cluster.startKilo(
                number, device: Mesh.isUserspace ? "wireguard-go" : "wireguard",
                tunnel: Mesh.isUserspace ? "cilium_tunl" : "tunl0", tunnelKind: Mesh.isUserspace ? "vxlan" : "ipip")
        }

        /// What each node takes for the gateways, by its name.
        func views(kilos: [Int], helpers: [Int]) -> [String: [String: String]] {
            var views: [String: [String: String]] = [:]
            for number in kilos { views["n\(number)"] = cluster.leaders(ofKilo: number) }
            for number in helpers { views["n\(number)"] = cluster.leaders(of: "n\(number)") }
            return views
        }

        func flows(within seconds: Double) -> Bool { lab.eventually(seconds) { flows.allSatisfy(\.flows) } }

        /// Makes a change, and waits until every flow has gone on for a while.
        ///
        /// - Parameter isOver: more to wait for.
        func cost(_ what: String, _ body: () throws -> Void, isOver: @escaping () -> Bool) rethrows -> Cost {
            forgetStrays()
            let before = flows.map(\.number)
            let start = Date()
            try body()
            let restart = Date().timeIntervalSince(start)
            #expect(lab.eventually(60, isOver), "\(what)")
            #expect(flows(within: 60), "\(what): \(flows.map(\.ending))")
            // What comes late, such as another gateway's answer to the change, belongs to it.
            usleep(3_000_000)
            #expect(flows(within: 60), "\(what): \(flows.map(\.ending))")
            var cost = Cost(restart: restart)
            for (flow, before) in zip(flows, before) { cost.lost[flow.name] = flow.lost(after: before) }
            cost.strays = strays()
            print(
                "MoveFromKiloTests: \(what): lost \(cost.lost.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")); "
                    + "restart \(Int(restart * 1000)) ms, all \(Int(Date().timeIntervalSince(start))) s")
            return cost
        }

        func forgetStrays() {
            for router in ["ra", "rb"] { lab.run(in: router, "nft flush set inet cloud seen") }
        }
        func strays() -> Set<Stray> {
            var strays: Set<Stray> = []
            for router in ["ra", "rb"] {
                let list = lab.run(in: router, "nft -j list set inet cloud seen").json?["nftables"]?.elements ?? []
                for element in list.compactMap({ $0["set"]?["elem"]?.elements }).joined() {
                    guard let parts = element["concat"]?.elements?.map({ $0.string ?? "" }), parts.count == 4,
                        parts[0].hasPrefix("to-"), parts[2].hasPrefix("10.")
                    else { continue }
                    strays.insert(Stray(node: String(parts[0].dropFirst(3)), source: parts[1], destination: parts[2]))
                }
            }
            return strays
        }

        /// The node falls silent at once.
        func die(_ number: Int) {
            lab.run(in: number <= 2 ? "ra" : "rb", "ip link set to-n\(number) down")
            cluster.endKilo(number, cleanly: false)
            if lab.pid("n\(number)") > 1 { lab.kill("n\(number)") }
        }

        func toCulvert(_ number: Int) throws {
            cluster.endKilo(number, cleanly: true)
            try lab.start("n\(number)")
        }

        func toKilo(_ number: Int) throws {
            lab.kill("n\(number)", signal: SIGTERM)
            let cleaned = lab.run(
                in: "n\(number)",
                "\(Shell.binaries)/culvertd cleanup --config \(lab.directory)/culvertd.yaml --node n\(number) --run-dir \(lab.directory)/n\(number)"
            )
            #expect(cleaned.status == 0, "\(cleaned)")
            // The device in user space is none that the helper could delete.
            if Mesh.isUserspace {
                Shell.run(
                    "cd \(lab.directory) && kill -9 $(cat n\(number).wireguard.pid) && rm n\(number).wireguard.pid")
            }
            try startKilo(number)
        }
    }

    /// Round trips that a step may cost (docs/migrating-from-kilo.md): a node's own are lost from the end of the one program to the
    /// start of the other. For others, who have no way either until a gateway is back, as long as that and a second more are
    /// permitted: the test runs beside others, on machines of which one is half as fast as another.
    static let mostOfNode = Int(11 / Flow.interval)
    static let mostOfLocation = 17
    static let mostOnTheWayBack = 26

    @Test func nodeByNodeToCulvertAndBackAndGatewaysThatDie() throws {
        let migration = try Migration("mk")
        let (cluster, lab) = (migration.cluster, migration.lab)
        #expect(
            migration.flows(within: 60),
            "\(cluster.leaders(ofKilo: 2)) \(Shell.run("tail -n 5 \(lab.directory)/kilo*.log").output)")
        try goNodeByNode(migration)

        // n4's Kilo ends uncleanly, and Culvert is started in its place. At the same time both gateways die: n1, which is
        // Culvert's, and n3, which is Kilo's.
        let kilosKey = cluster.annotations("n4")["kilo.squat.ai/key"]
        cluster.endKilo(4, cleanly: false)
        #expect(lab.run(in: "n4", "ip route show proto static").output.contains("10.1.0.12 "))
        // The stand-in for tunl0 has the VNI that the helper's device needs (kilo_like.py, --tunnel-kind).
        if Mesh.isUserspace { lab.run(in: "n4", "ip link del cilium_tunl") }
        try lab.start("n4")
        migration.forgetStrays()
        migration.die(1)
        migration.die(3)
        let death = Date()
        let changed = ["location:a": "n2 10.4.0.1", "location:b": "n4 10.4.0.2"]
        // Kilo looks every 30 seconds; a helper every five.
        var seen: [String: Int] = [:]
        #expect(
            lab.eventually(100) {
                for (node, view) in migration.views(kilos: [2], helpers: [4]) where view == changed && seen[node] == nil
                {
                    seen[node] = Int(Date().timeIntervalSince(death))
                }
                return seen.count == 2
            }, "\(migration.views(kilos: [2], helpers: [4]))")
        #expect(seen["n4"] ?? 1000 <= 70)
        #expect(lab.eventually(30) { migration.flows.filter { !$0.name.hasPrefix("gateways") }.allSatisfy(\.flows) })
        print(
            "MoveFromKiloTests: both gateways are dead: n4 (Culvert) has known it after \(seen["n4"] ?? -1) s, n2 (Kilo) after \(seen["n2"] ?? -1) s, pods reach each other after \(Int(Date().timeIntervalSince(death))) s"
        )
        // (Without the stand-in for tunl0 Kilo's routes are gone too, and what n4 sends takes the default route until then.)
        if !Mesh.isUserspace {
            #expect(migration.strays().filter { $0.node == "n4" && !$0.isOf(1) && !$0.isOf(3) } == [])
        }
        // The takeover needed no hand.
        let key = cluster.annotations("n4")["kilo.squat.ai/key"]
        #expect(key != nil && key != kilosKey)
        #expect(!lab.run(in: "n4", "ip route show table all proto static").output.contains("dev"))
        #expect(lab.ctl("n4", "diff").output == "[]\n")
    }

    private func goNodeByNode(_ migration: Migration) throws {
        let whole = ["location:a": "n1 10.4.0.1", "location:b": "n3 10.4.0.2"]
        let steps: [(what: String, number: Int, isToCulvert: Bool, kilos: [Int], helpers: [Int])] = [
            ("member n4 to Culvert", 4, true, [1, 2, 3], [4]), ("member n4 back to Kilo", 4, false, [1, 2, 3, 4], []),
            ("gateway n3 to Culvert", 3, true, [1, 2, 4], [3]),
            ("gateway n3 back to Kilo", 3, false, [1, 2, 3, 4], []),
            ("gateway n1 to Culvert", 1, true, [2, 3, 4], [1]),
        ]
        for step in steps {
            let cost = try migration.cost(step.what) {
                if step.isToCulvert { try migration.toCulvert(step.number) } else { try migration.toKilo(step.number) }
            } isOver: {
                migration.views(kilos: step.kilos, helpers: step.helpers).values.allSatisfy { $0 == whole }
            }
            // Of each flow one end is on the node, or none is.
            for (flow, lost) in cost.lost {
                let isOwn = flow.hasPrefix("gateways") == (step.number != 4)
                let most = isOwn ? Self.mostOfNode : step.isToCulvert ? Self.mostOfLocation : Self.mostOnTheWayBack
                let meanwhile = Int((cost.restart + 1) / Flow.interval)
                #expect(lost <= max(most * Flow.slowness, isOwn ? 0 : meanwhile), "\(step.what): \(flow)")
            }
            // (A node of Kilo's deletes its old routes before it makes new ones.)
            let ours = cost.strays.filter { stray in step.helpers.contains { stray.node == "n\($0)" } }
            #expect(ours.filter { !$0.isOf(step.number) } == [], "\(step.what)")
        }
    }
}

import Foundation
import Jansson
import Synchronization
import TestSupport
import Testing

/// From the release before to this one and back, node by node, while pods send and others start.
///
/// `CULVERT_BIN_BEFORE` names the directory of the release before's programs. Without it this release takes both parts: then
/// the test shows a rolling restart with an exchange of the plugin, and fixtures (`ReleaseBeforeTests`) stand for the rest.
@Suite(.enabled(if: Lab.isPossible, "needs root and the tools of install/test.sh, which runs it natively"))
struct UpgradeTests {
    static let before = ProcessInfo.processInfo.environment["CULVERT_BIN_BEFORE"] ?? Shell.binaries
    /// Datagrams a second of each pod.
    static let rate = 200
    static let world = "203.0.113.10"
    /// Pods that send all the time, by their last number: which policy has them, and so which gateway.
    static let pods: KeyValuePairs = [10: "shop", 11: "shop", 12: "shop", 13: "shop", 14: "bank", 15: "bank"]

    /// Pods that start and end on n1 one after the other, as a kubelet has them: error 11 is tried again.
    final class Starting: Sendable {
        struct Count {
            var started = 0
            /// ADDs and DELs that were told to come again.
            var again = 0
            /// What any other answer said.
            var refused: [String] = []
        }
        private let count = Mutex(Count())
        private let isStopped = Atomic<Bool>(false)
        private let done = DispatchSemaphore(value: 0)

        init(_ lab: Lab, plugin: String) {
            Thread.detachNewThread { [self] in
                for number in 0... where !isStopped.load(ordering: .sequentiallyConsistent) {
                    start("x\(number)", last: 100 + number % 100, in: lab, plugin: plugin)
                    if isStopped.load(ordering: .sequentiallyConsistent) { break }
                }
                done.signal()
            }
        }

        private func start(_ name: String, last: Int, in lab: Lab, plugin: String) {
            let programs = ["LAB_BIN": plugin]
            var result = lab.lab("pod n1 \(name) \(last) app:shop", extra: programs)
            while !isServed(result) { result = lab.plugin("n1", "ADD", name, extra: programs) }
            // Its first packet tells whether it has its routing.
            if result.status == 0 { lab.run(in: name, "bash -c 'echo first > /dev/udp/\(world)/9001'") }
            repeat { result = lab.plugin("n1", "DEL", name, extra: programs) } while !isServed(result)
            Shell.run("ip netns del \(lab.prefix)-\(name)")
            count.withLock { $0.started += 1 }
        }

        /// False: it has to come again.
        private func isServed(_ result: CommandResult) -> Bool {
            if result.status == 0 { return true }
            guard result.json?["code"]?.integer == 11 else {
                count.withLock { $0.refused.append(result.output + result.errors) }
                return true
            }
            count.withLock { $0.again += 1 }
            usleep(100_000)
            return false
        }

        func stop() -> Count {
            isStopped.store(true, ordering: .sequentiallyConsistent)
            done.wait()
            return count.withLock { $0 }
        }
    }

    @Test func nothingIsLostOnTheWayToThisReleaseAndBack() throws {
        let lab = try Lab("up")
        let built = Shell.run(
            "for p in traffic arrivals; do gcc -O2 -o \(lab.directory)/$p \(Shell.packageRoot)/Tests/Lab/$p.c || exit; done"
        )
        #expect(built.status == 0, "\(built.errors)")
        try lab.inventory(
            "policy.yaml",
            Lab.policy("shop", app: "shop", kind: "EgressPolicy") + Lab.policy("bank", app: "bank", zone: "z2"))
        try lab.start("n1", "n2", "n3", programs: Self.before)
        let plugin = "\(lab.directory)/plugin"
        func exchangePlugin(_ programs: String) {
            let result = Shell.run(
                "mkdir -p \(plugin) && cp \(programs)/culvert \(plugin)/.new && mv \(plugin)/.new \(plugin)/culvert")
            #expect(result.status == 0, "\(result.errors)")
        }
        exchangePlugin(Self.before)
        for (last, app) in Self.pods {
            try lab.pod("t\(last)", on: "n1", last: last, labels: "app:\(app)", extra: ["LAB_BIN": plugin])
        }
        func background(_ namespace: String, _ command: String, as name: String) {
            Shell.run(
                "(exec nsenter --net=/run/netns/\(lab.prefix)-\(namespace) \(command) > \(lab.directory)/\(name).out 2>&1 < /dev/null) & echo $! > \(lab.directory)/\(name).pid; sleep 0.2"
            )
        }
        background("out", "\(lab.directory)/arrivals 9000", as: "arrivals")
        background("out", "socat TCP-LISTEN:7100,fork,reuseaddr EXEC:cat", as: "echo")
        lab.forgetSeen()
        let namespaces = Self.pods.map { "/run/netns/\(lab.prefix)-t\($0.key)" }.joined(separator: " ")
        background("n1", "\(lab.directory)/traffic \(Self.rate) 3600 \(Self.world) 9000 \(namespaces)", as: "traffic")
        background("t10", "python3 \(Shell.packageRoot)/Tests/Lab/steady.py \(Self.world) 7100 3600", as: "steady")
        let starting = Starting(lab, plugin: plugin)

        func exchange(_ node: String, _ programs: String) throws {
            lab.kill(node, signal: SIGTERM)
            try lab.start(node, programs: programs)
            #expect(
                lab.eventually { lab.api(node, "/v1/diff") == .array([]) }, "\(node): \(lab.log(node).suffix(1000))")
            let attached = (lab.api("n1", "/v1/attachments")?.elements ?? []).compactMap { $0["containerID"]?.string }
            let own = Set(Self.pods.map { "\(lab.prefix)-t\($0.key)" })
            #expect(own.isSubset(of: attached), "\(node): \(attached)")
        }
        // The helper's release first on the way there, the gateway's first on the way back.
        for node in ["n1", "n2", "n3"] { try exchange(node, Shell.binaries) }
        exchangePlugin(Shell.binaries)
        usleep(500_000)
        for node in ["n3", "n2", "n1"] { try exchange(node, Self.before) }
        usleep(500_000)
        exchangePlugin(Self.before)
        usleep(500_000)

        let started = starting.stop()
        Shell.run("kill -TERM $(cat \(lab.directory)/traffic.pid)")
        let text =
            { (try? String(contentsOfFile: "\(lab.directory)/\($0).out", encoding: .utf8)) ?? "" } as (String) -> String
        #expect(lab.eventually(5) { text("traffic").contains("sent") })
        usleep(200_000)
        let sent = Int(text("traffic").split(separator: " ").first ?? "") ?? -1
        var flows: [String: Int] = [:]
        for line in text("arrivals").split(separator: "\n") {
            let words = line.split(separator: " ")
            if words.count == 4 { flows["\(words[1]) \(words[2])", default: 0] += 1 }
        }
        let arrived = flows.values.reduce(0, +)
        let wrong = lab.seen("datagrams").filter {
            !["10.0.0.12 > \(Self.world)", "10.0.0.13 > \(Self.world)"].contains($0.key)
        }
        print(
            "UpgradeTests: \(Self.before == Shell.binaries ? "this release twice" : Self.before): \(sent - arrived) of \(sent) lost, \(wrong.values.reduce(0, +)) with a wrong source, \(started.started) pods started, \(started.again) asked to come again, \(started.refused.count) refused"
        )
        #expect(sent == arrived && sent > 1000, "\(sent) sent, \(arrived) arrived: \(flows)")
        #expect(wrong.isEmpty, "\(wrong)")
        // Each pod kept the gateway that it had.
        #expect(flows.keys.count { $0.hasPrefix("10.0.0.13 ") } == 4, "\(flows)")
        #expect(flows.keys.count { $0.hasPrefix("10.0.0.12 ") } == 2, "\(flows)")
        #expect(started.refused.isEmpty && started.started > 5, "\(started)")
        // The connection goes on: nothing was said of it.
        #expect(text("steady").isEmpty, "\(text("steady"))")
    }

    /// The release before kept no zones of connection tracking at a gateway.
    @Test func aConnectionThatBeganWithoutAZoneGoesOn() throws {
        let lab = try Lab("uz", tunnelProtocol: "vxlan")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n3")
        try lab.pod("a", on: "n1", last: 10, labels: "app:shop")
        lab.kill("n3")
        // What of the release before's table this connection needs.
        let made = lab.run(
            in: "n3",
            """
            bash -c 'nft -f - <<N
            delete table inet culvert
            table inet culvert {
                chain input {
                    type filter hook input priority filter
                    udp dport 8475 meta mark set meta mark or 0x10 accept
                }
                chain postrouting {
                    type nat hook postrouting priority 90
                    ip saddr != 10.244.3.1 iifname "cni-culvert*" oifname != "cni-culvert*" snat ip to 10.0.0.13
                }
            }
            N'
            """)
        #expect(made.status == 0, "\(made.errors)")
        lab.background(in: "out", "socat TCP-LISTEN:7100,fork,reuseaddr EXEC:cat")
        usleep(300_000)
        let steady = lab.start(
            in: "a", "python3 \(Shell.packageRoot)/Tests/Lab/steady.py \(Self.world) 7100 3", timeout: 30)
        usleep(700_000)
        try lab.start("n3")
        let result = steady.wait()
        #expect(result.status == 0 && result.output.contains("lines"), "\(result.output) \(result.errors)")
        let zones = lab.run(in: "n3", "nft list table inet culvert").output
        #expect(
            zones.contains("ct original zone set") && zones.contains("10.244.1.10 . \(Self.world) . tcp"), "\(zones)")
        // What begins now has its zone.
        #expect(
            lab.run(in: "a", "bash -c 'exec 3<>/dev/tcp/\(Self.world)/7100; echo x >&3; head -c 1 <&3'").output == "x")
    }
}

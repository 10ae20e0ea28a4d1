import CLinux
import Foundation
import Jansson
import TestSupport
import Testing

/// Gateways that die in every way that they can, while a pod sends: how long nothing arrives, and whether anything arrives with
/// an address that is no gateway's.
@Suite(
    .serialized,
    .enabled(if: Lab.isPossible, "needs root and the tools of install/test.sh, which runs it natively and in the VM"))
struct FailOverTests {
    static let isVM = ProcessInfo.processInfo.environment["CULVERT_LAB_PROTOCOL"] != nil
    static let trials = Int(ProcessInfo.processInfo.environment["CULVERT_TRIALS"] ?? "") ?? (isVM ? 1 : 3)
    /// An emulated VM needs a minute for each fault.
    static let isShort = isVM && !isWhole
    static let rate = 100
    static let isWhole = ProcessInfo.processInfo.environment["CULVERT_WHOLE"] == "1"

    /// A way in which a gateway is lost.
    enum Fault: String, CaseIterable, Sendable, CustomTestStringConvertible {
        case linksDown = "all its links down"
        case overlayOut = "its overlay broken on the way to it"
        case overlayBack = "its overlay broken on the way back"
        case forwardingOff = "forwarding switched off"
        case addressGone = "its egress address taken away"
        case routeGone = "its default route taken away"
        case routerDead = "the router behind it dead, with targets"
        case newFlows = "new flows vanish, old ones live"
        var testDescription: String { rawValue }

        /// Longest gaps that are allowed, milliseconds: the median and the maximum.
        var bounds: (median: Double, maximum: Double) {
            switch self {
            case .routerDead: (3500, 3500)
            case .newFlows: (1500, 1500)
            default: (350, 500)
            }
        }
    }

    /// A lab with two gateways, a pod that sends, and somebody outside who notes what arrives.
    final class Watch {
        let lab: Lab
        let world = "203.0.113.10"
        private var traffic: pid_t = 0

        init(_ routing: Lab.Routing, name: String, spec: String = "") throws {
            lab = try Lab(name, routing: routing)
            let binaries = Shell.run(
                "gcc -O2 -o \(lab.directory)/traffic \(Shell.packageRoot)/Tests/Lab/traffic.c && gcc -O2 -o \(lab.directory)/arrivals \(Shell.packageRoot)/Tests/Lab/arrivals.c"
            )
            guard binaries.status == 0 else { throw Lab.Failure(description: binaries.errors) }
            try lab.inventory("policy.yaml", Watch.policy(spec))
            run("out", "\(lab.directory)/arrivals 9000", as: "arrivals")
            run("out", "socat TCP-LISTEN:7200,fork,reuseaddr EXEC:cat", as: "target")
            try lab.start("n1", "n2", "n3")
            try lab.pod("a", on: "n1", last: 10, labels: "app:shop")
            guard lab.eventually(30, { self.states.values.filter { $0 == "up" }.count == 2 }) else {
                throw Lab.Failure(description: "the gateways are not up: \(states) \(lab.log("n1").suffix(600))")
            }
        }

        /// Two gateways, each with an address of its own.
        static func policy(_ more: String = "") -> String {
            """
            apiVersion: culvert.dev/v1alpha1
            kind: EgressPolicy
            metadata: {name: shop}
            spec:
              selectors: [{podSelector: {matchLabels: {app: shop}}}]
              destinationCIDRs: [0.0.0.0/0]
              egressGateways:
              - {nodeSelector: {matchLabels: {zone: z2}}, egressIP: 192.0.2.21}
              - {nodeSelector: {matchLabels: {zone: z3}}, egressIP: 192.0.2.31}
            \(more)
            """
        }

        /// Starts a program in the background, which the lab ends.
        func run(_ namespace: String, _ command: String, as name: String, environment: String = "") {
            Shell.run(
                "(exec env \(environment) ip netns exec \(lab.prefix)-\(namespace) \(command) > \(lab.directory)/\(name).out 2> \(lab.directory)/\(name).err < /dev/null) & echo $! > \(lab.directory)/\(name).pid; sleep 0.1"
            )
        }

        /// Begins to send from the pod.
        func send(fresh: Bool = false) {
            run(
                "a", "\(lab.directory)/traffic \(FailOverTests.rate) 3600 \(world) 9000 /run/netns/\(lab.prefix)-a",
                as: "traffic", environment: fresh ? "TRAFFIC_FRESH=1" : "")
        }
        /// Begins to ping from the pod, as often.
        func ping() {
            run("a", "ping -n -D -i 0.01 \(world)", as: "traffic")
        }
        /// Answers that the pod has got since then.
        func answers(since: Double) -> [Arrival] {
            let text = (try? String(contentsOfFile: "\(lab.directory)/traffic.out", encoding: .utf8)) ?? ""
            return text.split(separator: "\n").compactMap { line in
                guard line.hasPrefix("["), let end = line.firstIndex(of: "]"),
                    let time = Double(line[line.index(after: line.startIndex)..<end]), time >= since,
                    line.contains("bytes from")
                else { return nil }
                return Arrival(time: time, source: world)
            }
        }
        func stop() {
            Shell.run("kill $(cat \(lab.directory)/traffic.pid); rm -f \(lab.directory)/traffic.pid; sleep 0.2")
        }

        /// Gateways of the pod's node to their state.
        var states: [String: String] {
            var states: [String: String] = [:]
            for slot in lab.api("n1", "/v1/gateways")?["slots"]?.elements ?? [] {
                for candidate in slot["candidates"]?.elements ?? [] {
                    states[candidate["node"]?.string ?? ""] = candidate["state"]?.string
                }
            }
            return states
        }
        var active: String { lab.api("n1", "/v1/gateways")?["slots"]?.elements?.first?["gateway"]?.string ?? "none" }
        var changes: Int { lab.api("n1", "/v1/gateways")?["changes"]?.elements?.count ?? -1 }

        struct Arrival {
            /// Seconds since 1970.
            let time: Double
            let source: String
            var port = 0
        }
        /// What has arrived since then.
        func arrivals(since: Double) -> [Arrival] {
            let text = (try? String(contentsOfFile: "\(lab.directory)/arrivals.out", encoding: .utf8)) ?? ""
            var found: [Arrival] = []
            for line in text.split(separator: "\n").reversed() {
                let words = line.split(separator: " ")
                guard words.count == 4, let time = Double(words[0]) else { continue }
                if time / 1e6 < since { break }
                found.append(Arrival(time: time / 1e6, source: String(words[1]), port: Int(words[2]) ?? 0))
            }
            return found.reversed()
        }
        static var now: Double { Double(culvert_realtime_nanoseconds()) / 1e9 }

        /// The longest time in which nothing has arrived, milliseconds, and how many have come with an address of no gateway.
        ///
        /// - Parameter answers: of what has come back to the pod.
        func gap(
            since: Double, until: Double, answers: Bool = false
        ) -> (milliseconds: Double, wrong: Int, count: Int) {
            let all = answers ? self.answers(since: since) : arrivals(since: since)
            var last = since
            var longest = 0.0
            for arrival in all {
                longest = max(longest, arrival.time - last)
                last = arrival.time
            }
            longest = max(longest, until - last)
            return (
                longest * 1000, all.count { !answers && !["192.0.2.21", "192.0.2.31"].contains($0.source) }, all.count
            )
        }

        func cause(_ fault: Fault, on node: String) {
            let number = node.dropFirst()
            func drop(_ match: String) {
                Shell.run(
                    "ip netns exec \(lab.prefix)-r nft 'add table inet fault; add chain inet fault forward { type filter hook forward priority 0; }; add rule inet fault forward \(match) drop'"
                )
            }
            switch fault {
            case .linksDown: lab.run(in: "r", "ip link set to-\(node) down")
            case .overlayOut: drop("ip saddr 10.0.0.11 ip daddr 10.0.0.1\(number) udp dport 8472")
            case .overlayBack: drop("ip saddr 10.0.0.1\(number) ip daddr 10.0.0.11 udp dport 8472")
            case .forwardingOff: lab.run(in: node, "sysctl -qw net.ipv4.ip_forward=0")
            case .addressGone: lab.run(in: node, "ip addr del 192.0.2.\(number)1/32 dev eth0")
            case .routeGone:
                // The nodes reach each other by a route of their own, as in Hetzner's networks.
                lab.run(in: node, "ip route add 10.0.0.0/24 via 10.0.0.1 dev eth0")
                lab.run(in: node, "ip route del default")
            case .routerDead: drop("iifname to-\(node) ip daddr 203.0.113.0/24")
            case .newFlows:
                // Only what was learnt until now is known.
                lab.run(in: "r", "nft flush chain inet fault forward")
                drop("ip saddr 10.0.0.11 ip daddr 10.0.0.1\(number) udp dport 8472 udp sport != @known")
            }
        }

        /// Learns the VXLAN flows that live now.
        func learn() {
            Shell.run(
                "ip netns exec \(lab.prefix)-r nft 'add table inet fault; add set inet fault known { type inet_service; flags dynamic; size 65535; }; add chain inet fault forward { type filter hook forward priority 0; }; add rule inet fault forward ip saddr 10.0.0.11 udp dport 8472 add @known { udp sport }'; sleep 1.5"
            )
        }

        func mend(_ fault: Fault, on node: String) {
            let number = node.dropFirst()
            switch fault {
            case .linksDown:
                Shell.run(
                    """
                    ip -n \(lab.prefix)-r link set to-\(node) up
                    ip -n \(lab.prefix)-r route add 10.0.0.1\(number)/32 dev to-\(node)
                    for net in 192.0.2.\(number)1/32 192.0.2.\(number)2/32 10.244.\(number).0/24; do
                        ip -n \(lab.prefix)-r route add $net via 10.0.0.1\(number) dev to-\(node) onlink
                    done
                    """)
            case .overlayOut, .overlayBack, .routerDead, .newFlows: lab.run(in: "r", "nft delete table inet fault")
            case .forwardingOff: lab.run(in: node, "sysctl -qw net.ipv4.ip_forward=1")
            case .addressGone: lab.run(in: node, "ip addr add 192.0.2.\(number)1/32 dev eth0")
            case .routeGone:
                lab.run(in: node, "ip route add default via 10.0.0.1")
                lab.run(in: node, "ip route del 10.0.0.0/24")
            }
        }
    }

    /// One lab for each kind of routing and each kind of policy, made once. It ends with the process.
    nonisolated(unsafe) private static var made: [String: Result<Watch, any Error>] = [:]
    static func watch(_ routing: Lab.Routing, targets: Bool = false) throws -> Watch {
        let name = "f\(targets ? "t" : "o")\(routing == .stack ? "s" : "e")"
        let spec = targets ? "  healthChecks: {targets: [\"203.0.113.10:7200\"]}" : ""
        let result = made[name] ?? Result { try Watch(routing, name: name, spec: spec) }
        made[name] = result
        return try result.get()
    }

    @Test(arguments: Fault.allCases, Lab.Routing.allCases)
    func aGatewayThatDiesIsLeftInTime(_ fault: Fault, _ routing: Lab.Routing) throws {
        // In the emulated VM, without CULVERT_WHOLE, two faults, each under one kind of routing.
        if Self.isShort, ![.linksDown, .overlayOut].contains(fault) { return }
        if Self.isShort, (Fault.allCases.firstIndex(of: fault) ?? 0) % 2 != (routing == .ebpf ? 1 : 0) { return }
        let watch = try Self.watch(routing, targets: fault == .routerDead)
        let lab = watch.lab
        // Where only the way back is broken, what counts is what comes back: with forwarding off, the gateway's own tunnels may
        // forward again at any moment, and answers still end at its uplink.
        let isAnswer = [.overlayBack, .forwardingOff].contains(fault)
        if isAnswer { watch.ping() } else { watch.send(fresh: fault == .newFlows) }
        defer { watch.stop() }
        var gaps: [Double] = []
        for trial in 0..<(routing == .ebpf && Self.trials == 3 ? 1 : Self.trials) {
            let active = watch.active
            let other = active == "n2" ? "n3" : "n2"
            try #require(["n2", "n3"].contains(active))
            if fault == .newFlows { watch.learn() }
            // At any moment between two echoes.
            usleep(UInt32.random(in: 400_000...500_000))
            let begin = Watch.now - 0.1
            watch.cause(fault, on: active)
            usleep(UInt32(fault.bounds.maximum * 1000) + (Self.isVM ? 4_000_000 : 700_000))
            let (gap, wrong, count) = watch.gap(since: begin, until: Watch.now, answers: isAnswer)
            print(
                "FailOverTests: \(routing.rawValue): \(fault.rawValue): \(active) to \(watch.active), gap \(Int(gap)) ms, \(wrong) of \(count) wrong"
            )
            gaps.append(gap)
            #expect(wrong == 0)
            #expect(watch.active == other, "\(trial): \(watch.states) \(lab.log("n1").suffix(500))")
            watch.mend(fault, on: active)
            #expect(
                lab.eventually(30) { watch.states[active] == "up" },
                "\(watch.states) \(lab.ctl(active, "status").output)")
            #expect(watch.active == other, "a gateway that is back takes nothing back")
        }
        let sorted = gaps.sorted()
        if !Self.isVM {
            #expect(sorted[sorted.count / 2] < fault.bounds.median, "gaps: \(gaps)")
            #expect(sorted[sorted.count - 1] < fault.bounds.maximum, "gaps: \(gaps)")
        }
        for node in ["n1", "n2", "n3"] { #expect(lab.eventually { lab.ctl(node, "diff").status == 0 }) }
    }

    @Test(arguments: Lab.Routing.allCases)
    func nothingLeavesWhileAllAreDownAndItGoesOnWhenOneIsBack(_ routing: Lab.Routing) throws {
        if Self.isShort { return }
        let watch = try Self.watch(routing)
        let lab = watch.lab
        watch.send()
        defer { watch.stop() }
        usleep(300_000)
        for node in ["n2", "n3"] { watch.cause(.linksDown, on: node) }
        #expect(lab.eventually { watch.active == "none" }, "\(watch.states)")
        let status = lab.ctl("n1", "status")
        #expect(status.output.contains("all gateways of policy shop are down"), "\(status.output)")
        #expect(status.status == 1)
        let down = Watch.now
        usleep(1_000_000)
        #expect(watch.arrivals(since: down).isEmpty)
        let back = Watch.now
        watch.mend(.linksDown, on: "n3")
        #expect(lab.eventually(10) { !watch.arrivals(since: back).isEmpty })
        #expect(watch.active == "n3")
        let first = (watch.arrivals(since: back).first?.time ?? 0) - back
        print("FailOverTests: \(routing.rawValue): all down, one back: \(Int(first * 1000)) ms after its link")
        #expect(watch.arrivals(since: down).allSatisfy { $0.source == "192.0.2.31" })
        watch.mend(.linksDown, on: "n2")
        #expect(lab.eventually(30) { watch.states["n2"] == "up" })
        #expect(watch.active == "n3", "without failBack nothing is taken back")
    }

    /// Containers start while one gateway after the other dies: the first packet of each goes by one that lives, or is lost while
    /// nobody can know yet, and none leaves with another address.
    @Test(arguments: Lab.Routing.allCases)
    func theFirstPacketWhileGatewaysFlap(_ routing: Lab.Routing) throws {
        if Self.isVM { return }
        let watch = try Self.watch(routing)
        let lab = watch.lab
        // Every two seconds the one comes back and the other dies. When that was, is noted.
        let flaps = "\(lab.directory)/flaps"
        try """
        ip netns exec \(lab.prefix)-r nft 'add table inet flap; add chain inet flap forward { type filter hook forward priority 0; }'
        while [ -e \(flaps).on ]; do
            for n in 2 3; do
                ip netns exec \(lab.prefix)-r nft "flush chain inet flap forward; add rule inet flap forward ip saddr 10.0.0.1$n udp dport 8472 drop; add rule inet flap forward ip daddr 10.0.0.1$n udp dport 8472 drop"
                date +%s.%N >> \(flaps)
                sleep 2
            done
        done
        ip netns exec \(lab.prefix)-r nft delete table inet flap
        """.write(toFile: "\(flaps).sh", atomically: true, encoding: .utf8)
        Shell.run(
            "touch \(flaps).on; (exec bash \(flaps).sh > /dev/null 2>&1 < /dev/null) & echo $! > \(lab.directory)/flaps.pid; sleep 1"
        )
        defer { Shell.run("rm -f \(flaps).on; sleep 3") }
        let count = 100
        let begin = Watch.now
        var starts: [(port: Int, time: Double)] = []
        for number in 0..<count {
            let name = "x\(number)"
            try lab.pod(name, on: "n1", last: 20 + number, labels: "app:shop")
            let port = 20_000 + number
            starts.append((port, Watch.now))
            lab.run(in: name, "bash -c 'echo 12345678 | socat -u - UDP:\(watch.world):9000,sourceport=\(port)'")
        }
        usleep(500_000)
        let arrived = watch.arrivals(since: begin)
        let wrong = arrived.count { !["192.0.2.21", "192.0.2.31"].contains($0.source) }
        #expect(wrong == 0, "\(arrived)")
        let times = (try? String(contentsOfFile: flaps, encoding: .utf8))?.split(separator: "\n").compactMap {
            Double($0)
        }
        var lost = 0
        var mustArrive = 0
        for start in starts {
            // From just before a gateway dies until its loss was noticed.
            let isInWindow = (times ?? []).contains { start.time > $0 - 0.2 && start.time < $0 + 0.6 }
            let hasArrived = arrived.contains { $0.port == start.port }
            if !hasArrived { lost += 1 }
            if !isInWindow {
                mustArrive += 1
                if !Self.isVM { #expect(hasArrived, "the first packet of the pod with port \(start.port) is lost") }
            }
        }
        print(
            "FailOverTests: \(routing.rawValue): \(count) containers started while gateways flap: \(count - lost) first packets arrived, \(lost) lost, \(mustArrive) had to arrive, \(wrong) of \(arrived.count) wrong"
        )
        #expect(mustArrive > count / 4)
    }

    @Test func aHelperThatIsRestartedKilledOrFrozenIsNoFault() throws {
        if Self.isShort { return }
        let watch = try Self.watch(.stack)
        let lab = watch.lab
        watch.send()
        defer { watch.stop() }
        usleep(300_000)
        for node in [watch.active, "n1"] {
            for end in ["restarted", "killed", "frozen"] {
                let before = watch.active
                let begin = Watch.now - 0.1
                switch end {
                case "frozen":
                    CLinux.kill(lab.pid(node), SIGSTOP)
                    sleep(Self.isVM ? 3 : 5)
                    CLinux.kill(lab.pid(node), SIGCONT)
                    sleep(1)
                default:
                    lab.kill(node, signal: end == "killed" ? SIGKILL : SIGTERM)
                    usleep(500_000)
                    try lab.start(node)
                    sleep(1)
                }
                let (gap, wrong, count) = watch.gap(since: begin, until: Watch.now)
                print(
                    "FailOverTests: helper of \(node == "n1" ? "the source" : "the gateway") \(end): gap \(Int(gap)) ms, \(wrong) of \(count) wrong"
                )
                #expect(wrong == 0 && watch.active == before, "\(node) \(end): \(watch.states)")
                if !Self.isVM { #expect(gap < 150, "\(node) \(end)") }
            }
        }
    }

    /// A gateway whose targets do not answer is none, also after a restart of its helper: the verdict is kept on disk. A helper
    /// without one (a node that is new) has no reason to say that the gateway works, and does not say so either.
    @Test func aRestartBesideSilentTargetsClaimsNothing() throws {
        if Self.isVM { return }
        let watch = try Self.watch(.stack, targets: true)
        let lab = watch.lab
        watch.send()
        defer { watch.stop() }
        usleep(500_000)
        let gateway = watch.active
        try #require(["n2", "n3"].contains(gateway))
        let other = gateway == "n2" ? "n3" : "n2"
        let otherAddress = "192.0.2.\(other.dropFirst())1"

        // While the targets answer, a restart is no fault.
        let changes = watch.changes
        var begin = Watch.now - 0.1
        lab.kill(gateway, signal: SIGTERM)
        usleep(500_000)
        try lab.start(gateway)
        sleep(4)
        let (gap, wrong, count) = watch.gap(since: begin, until: Watch.now)
        print(
            "FailOverTests: helper of a gateway restarted, targets answer: gap \(Int(gap)) ms, \(wrong) of \(count) wrong"
        )
        #expect(wrong == 0 && gap < 150)
        #expect(watch.changes == changes && watch.active == gateway, "\(watch.states)")

        // Only the targets are out of reach: whatever a pod sent by this gateway would arrive.
        lab.run(in: "r", "nft add table inet targets")
        defer { lab.run(in: "r", "nft delete table inet targets") }
        lab.run(in: "r", "nft 'add chain inet targets forward { type filter hook forward priority 0; }'")
        lab.run(in: "r", "nft add rule inet targets forward iifname to-\(gateway) tcp dport 7200 drop")
        #expect(lab.eventually(10) { watch.states[gateway] == "down" && watch.active == other }, "\(watch.states)")

        // What this gateway answers: the echoes of n1 on their way back, of its only policy.
        lab.run(in: gateway, "nft add table inet answers")
        defer { lab.run(in: gateway, "nft delete table inet answers") }
        lab.run(in: gateway, "nft 'add chain inet answers post { type filter hook postrouting priority 0; }'")
        lab.run(in: gateway, "nft add rule inet answers post udp dport 3785 counter")
        func answered() -> Int {
            let rules =
                lab.run(in: gateway, "nft -j list chain inet answers post").json?["nftables"]?.elements ?? []
            let counter = rules.compactMap { $0["rule"]?["expr"]?.elements }.joined().compactMap { $0["counter"] }.first
            return Int(counter?["packets"]?.integer ?? -1)
        }
        #expect(answered() == 0)
        for way in ["restarted", "killed", "without a verdict on disk"] {
            begin = Watch.now
            lab.kill(gateway, signal: way == "restarted" ? SIGTERM : SIGKILL)
            if way == "without a verdict on disk" { Shell.run("rm -rf \(lab.directory)/\(gateway)/state") }
            usleep(500_000)
            try lab.start(gateway)
            // Longer than three checks take.
            for _ in 0..<50 {
                #expect(watch.states[gateway] == "down", "\(way)")
                usleep(100_000)
            }
            let arrivals = watch.arrivals(since: begin)
            print(
                "FailOverTests: helper of a gateway \(way), targets silent: \(answered()) echoes answered, \(arrivals.count) datagrams, all by the other gateway: \(arrivals.allSatisfy { $0.source == otherAddress })"
            )
            #expect(answered() == 0, "\(way)")
            #expect(arrivals.count > 400 && arrivals.allSatisfy { $0.source == otherAddress }, "\(way)")
            #expect(watch.active == other)
            let status = lab.ctl(gateway, "status").output
            #expect(status.contains("no answer from 203.0.113.10:7200"), "\(way): \(status)")
        }

        // Not even where there is no other gateway.
        watch.cause(.overlayOut, on: other)
        #expect(lab.eventually(10) { watch.active == "none" }, "\(watch.states)")
        begin = Watch.now
        lab.kill(gateway, signal: SIGKILL)
        usleep(500_000)
        try lab.start(gateway)
        sleep(4)
        let arrived = watch.arrivals(since: begin).count
        print("FailOverTests: the same without another gateway: \(answered()) echoes answered, \(arrived) datagrams")
        #expect(answered() == 0 && arrived == 0 && watch.active == "none", "\(watch.states)")
        watch.mend(.overlayOut, on: other)
        #expect(lab.eventually(10) { watch.active == other }, "\(watch.states)")

        // A target answers: at once this gateway is one, and takes nothing back.
        lab.run(in: "r", "nft flush chain inet targets forward")
        #expect(lab.eventually(5) { watch.states[gateway] == "up" }, "\(watch.states)")
        #expect(answered() > 0 && watch.active == other)

        // The targets fall silent while the helper is away: the verdict on disk is out of date, and is not believed for longer
        // than three checks.
        lab.kill(gateway, signal: SIGTERM)
        lab.run(in: "r", "nft add rule inet targets forward iifname to-\(gateway) tcp dport 7200 drop")
        try lab.start(gateway)
        let started = Watch.now
        #expect(lab.eventually(10) { watch.states[gateway] == "down" }, "\(watch.states)")
        let after = Watch.now - started
        print("FailOverTests: targets silent since the helper was away: down \(Int(after * 1000)) ms after its start")
        #expect(after < 4)
        lab.run(in: "r", "nft flush chain inet targets forward")
        #expect(lab.eventually(5) { watch.states[gateway] == "up" }, "\(watch.states)")
    }

    /// A gateway that many nodes could use asks them for fewer echoes, and the time after which it is left follows.
    @Test func aGatewayThatServesManyAsksForFewerEchoes() throws {
        if Self.isVM { return }
        let watch = try Self.watch(.stack)
        let lab = watch.lab
        func candidate(_ node: String) -> JSON? {
            lab.api("n1", "/v1/gateways")?["slots"]?.elements?.first?["candidates"]?.elements?.first {
                $0["node"]?.string == node
            }
        }
        #expect(candidate("n3")?["intervalMilliseconds"]?.integer == 100)
        // 2,100 nodes more, which could all send ten echoes a second.
        let nodes = (0..<2100).map { number in
            let address = "10.\(100 + number / 200).\(number % 200 + 1)"
            return
                "{\"apiVersion\":\"cilium.io/v2\",\"kind\":\"CiliumNode\",\"metadata\":{\"name\":\"m\(number)\"},\"spec\":{\"addresses\":[{\"type\":\"CiliumInternalIP\",\"ip\":\"\(address).1\"}],\"ipam\":{\"podCIDRs\":[\"\(address).0/24\"]}}}"
        }
        try lab.inventory(
            "many.json",
            "{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\(nodes.joined(separator: ","))]}")
        func published() -> String {
            (try? String(contentsOfFile: "\(lab.directory)/n3/published/n3.yaml", encoding: .utf8)) ?? ""
        }
        #expect(lab.eventually(60) { published().contains("culvert.dev/echo-interval: '150'") }, "\(published())")
        #expect(lab.ctl("n3", "status").output.contains("one every 150 ms"))
        // Whoever hands on what nodes say of themselves puts it into the inventory.
        let before = watch.changes
        try lab.inventory("said.yaml", published())
        #expect(lab.eventually(60) { candidate("n3")?["detectionMilliseconds"]?.integer == 450 })
        #expect(candidate("n3")?["askedMilliseconds"]?.integer == 150)
        #expect(candidate("n2")?["intervalMilliseconds"]?.integer == 100)
        #expect(lab.ctl("n1", "gateway list").output.contains("asks for 150ms: down after 450ms"))
        #expect(lab.ctl("n1", "status").output.contains("noticed after 450 ms"))
        // They are gone: it asks for nothing, and nobody was taken for dead meanwhile.
        Shell.run("rm \(lab.directory)/inventory/many.json \(lab.directory)/inventory/said.yaml")
        #expect(lab.eventually(60) { !published().contains("echo-interval") && published().contains("n3") })
        #expect(lab.eventually(60) { candidate("n3")?["detectionMilliseconds"]?.integer == 300 })
        #expect(watch.changes == before, "\(lab.log("n1").suffix(600))")
    }

    @Test func aBusyMachineIsNoFault() throws {
        // An emulated machine is always late.
        if Self.isVM { return }
        let watch = try Self.watch(.stack)
        watch.send()
        defer { watch.stop() }
        let before = watch.changes
        let seconds = Int(ProcessInfo.processInfo.environment["CULVERT_BUSY_SECONDS"] ?? "") ?? 60
        Shell.run(
            "for n in 1 2 3 4 5 6 7 8; do (exec timeout -s KILL \(seconds) sh -c 'while :; do :; done' > /dev/null 2>&1 < /dev/null) & done; sleep \(seconds)",
            timeout: seconds + 60)
        let gateways = watch.lab.api("n1", "/v1/gateways")
        print(
            "FailOverTests: \(seconds) s beside 8 spinning processes: \(watch.changes - before) fail-overs, latest wake-up of the last minute \(gateways?["wakeUpLatenessMilliseconds"]?.double ?? -1) ms, ever \(gateways?["wakeUpLatenessEverMilliseconds"]?.double ?? -1) ms"
        )
        #expect(watch.changes == before, "\(watch.lab.log("n1").suffix(600))")
    }
}

import CLinux
import Foundation
import Model
import Reconcile

/// Figures as ratios beside a peer, measured in one run: each round does everybody's turn, so that what else the
/// machine does hits all alike. `Benchmarks/run.sh` makes the namespaces and calls this.
@main
enum Bench {
    static func main() throws {
        let arguments = Array(CommandLine.arguments.dropFirst())
        switch arguments.first {
        case "version": try version(plugin: arguments[1], rounds: 400)
        case "add":
            try add(
                plugin: arguments[1], socket: arguments[2], namespace: arguments[3], address: arguments[4],
                pod: arguments[5], rounds: 200)
        case "routes": try routes(rounds: 7)
        case "mesh": mesh()
        case "egress": egress()
        case "plans": plans(only: arguments.dropFirst().compactMap { Int($0) })
        case "scale":
            let nodes = arguments.dropFirst(2).map { argument in
                let parts = argument.split(separator: "|").map(String.init)
                return Scale(
                    name: parts[0], socket: parts[1], prefix: parts[2], beside: parts[3], first: parts[4],
                    surprise: parts[5])
            }
            try scale(plugin: arguments[1], nodes: nodes, rounds: 60)
        default: print("usage: culvert-bench version|add|routes|mesh|egress|plans|scale …")
        }
    }

    // MARK: whole processes

    struct Call {
        let name: String
        let program: String
        let environment: [String: String]
        let stdin: String
    }

    /// Microseconds from before the process starts until it is gone. Dies where the call fails.
    static func time(_ call: Call) -> Double {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, call.stdin, O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, "/tmp/culvert-bench.out", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        var argv = [strdup(call.program), nil]
        var envp = call.environment.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for pointer in argv + envp { free(pointer) } }
        var pid: pid_t = 0
        let clock = ContinuousClock()
        let start = clock.now
        let spawned = posix_spawn(&pid, call.program, &actions, nil, &argv, &envp)
        var status: Int32 = 0
        while spawned == 0 && waitpid(pid, &status, 0) < 0 {}
        let elapsed = clock.now - start
        guard spawned == 0, status == 0 else {
            let output = (try? String(contentsOfFile: "/tmp/culvert-bench.out", encoding: .utf8)) ?? ""
            print("\(call.name) failed: \(output)")
            exit(1)
        }
        return Double(elapsed.components.attoseconds) / 1e12 + Double(elapsed.components.seconds) * 1e6
    }

    static func percentile(_ values: [Double], _ part: Double) -> Double {
        let sorted = values.sorted()
        return sorted[min(sorted.count - 1, Int(Double(sorted.count) * part))]
    }

    static func report(_ title: String, _ samples: [(name: String, values: [Double])], unit: String) {
        print("\n\(title)")
        for (name, values) in samples {
            print(
                "  \(name.padding(toLength: 22, withPad: " ", startingAt: 0)) p50 \(text(percentile(values, 0.5))) \(unit)  p99 \(text(percentile(values, 0.99))) \(unit)"
            )
        }
    }
    static func text(_ value: Double) -> String { String(format: "%.2f", value) }
    static func ratio(_ name: String, _ a: Double, _ b: Double, goal: Double) {
        let value = a / b
        print("  ratio \(name): \(text(value)) (goal: at most \(text(goal)))\(value <= goal ? "" : "  MISSED")")
    }

    static func write(_ text: String, _ name: String) throws -> String {
        let path = "/tmp/culvert-bench-\(getpid())-\(name)"
        try text.write(toFile: path, atomically: true, encoding: .utf8)
        return path
    }

    static func version(plugin: String, rounds: Int) throws {
        let stdin = try write(#"{"cniVersion":"1.0.0"}"#, "version")
        defer { unlink(stdin) }
        let environment = ["CNI_COMMAND": "VERSION"]
        let calls = [
            Call(name: "/bin/true", program: "/bin/true", environment: environment, stdin: stdin),
            Call(name: "tuning (Go)", program: "/usr/lib/cni/tuning", environment: environment, stdin: stdin),
            Call(name: "culvert", program: plugin, environment: environment, stdin: stdin),
        ]
        var samples = calls.map { (name: $0.name, values: [Double]()) }
        for round in 0..<(rounds + 20) {
            for (index, call) in calls.enumerated() {
                let value = time(call)
                if round >= 20 { samples[index].values.append(value) }
            }
        }
        report("Plugin VERSION, whole process, \(rounds) rounds", samples, unit: "us")
        let medians = samples.map { percentile($0.values, 0.5) }
        ratio("culvert / /bin/true, p50", medians[2], medians[0], goal: 1)
        ratio("culvert / tuning, p50", medians[2], medians[1], goal: 0.3)
    }

    /// - Parameter pod: what the runtime says of it, `CNI_ARGS` without `IgnoreUnknown`.
    static func add(
        plugin: String, socket: String, namespace: String, address first: String, pod: String, rounds: Int
    ) throws {
        func previous(_ address: String) -> String {
            #"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"\#(namespace)"}],"ips":[{"address":"\#(address)/32","gateway":"10.244.1.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}"#
        }
        func stdin(_ type: String, _ more: String, address: String? = nil) throws -> String {
            let previous = previous(address ?? first)
            return try write(
                #"{"cniVersion":"1.0.0","name":"net","type":"\#(type)","prevResult":\#(previous)\#(more)}"#, type)
        }
        func environment(_ command: String) -> [String: String] {
            [
                "CNI_COMMAND": command, "CNI_CONTAINERID": "bench", "CNI_NETNS": namespace, "CNI_IFNAME": "eth0",
                "CNI_PATH": "/usr/lib/cni", "CNI_ARGS": "IgnoreUnknown=1;\(pod)",
            ]
        }
        let programs = [
            ("tuning (Go)", "/usr/lib/cni/tuning", try stdin("tuning", #","sysctl":{"net.core.somaxconn":"500"}"#)),
            ("sbr (Go)", "/usr/lib/cni/sbr", try stdin("sbr", "")),
            ("culvert + culvertd", plugin, try stdin("culvert", #","socket":"\#(socket)""#)),
        ]
        defer { for program in programs { unlink(program.2) } }
        var samples = programs.map { (name: $0.0, values: [Double]()) }
        for round in 0..<(rounds + 10) {
            // No address comes twice, as with Cilium: until the connections of the pod that had it before are forgotten, an ADD
            // would wait.
            _ = try stdin("culvert", #","socket":"\#(socket)""#, address: "10.244.\(7 + round / 200).\(round % 200)")
            for (index, program) in programs.enumerated() {
                // sbr takes the pod's routes into a table of its own; culvert copies them. Each is undone after its turn.
                var arguments = environment("ADD")
                if index < 2 { arguments["CNI_ARGS"] = "" }
                let value = time(Call(name: program.0, program: program.1, environment: arguments, stdin: program.2))
                if round >= 10 { samples[index].values.append(value) }
                arguments["CNI_COMMAND"] = "DEL"
                _ = time(Call(name: program.0 + " DEL", program: program.1, environment: arguments, stdin: program.2))
                if index == 1 { restoreRoutes(namespace) }
            }
        }
        report("ADD, whole process with the helper's work, \(rounds) rounds", samples, unit: "us")
        ratio(
            "culvert / tuning, p50", percentile(samples[2].values, 0.5), percentile(samples[0].values, 0.5), goal: 0.5)
        ratio(
            "culvert / tuning, p99", percentile(samples[2].values, 0.99), percentile(samples[0].values, 0.99), goal: 1)
        ratio("culvert / sbr, p50", percentile(samples[2].values, 0.5), percentile(samples[1].values, 0.5), goal: 0.5)
    }

    static func restoreRoutes(_ namespace: String) {
        run([
            "/usr/bin/env", "bash", "-c",
            "nsenter --net=\(namespace) sh -c 'ip route flush table 100; ip route replace 10.244.1.1 dev eth0 scope link; ip route replace default via 10.244.1.1 dev eth0'",
        ])
    }

    @discardableResult
    static func run(_ words: [String]) -> Double {
        var argv = words.map { strdup($0) } + [nil]
        var envp = [strdup("PATH=/usr/sbin:/usr/bin:/sbin:/bin"), nil]
        defer { for pointer in argv + envp { free(pointer) } }
        var pid: pid_t = 0
        let clock = ContinuousClock()
        let start = clock.now
        guard posix_spawn(&pid, words[0], nil, nil, &argv, &envp) == 0 else { return .infinity }
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0 {}
        let elapsed = clock.now - start
        return Double(elapsed.components.attoseconds) / 1e15 + Double(elapsed.components.seconds) * 1e3
    }

    // MARK: routes

    /// 10,000 routes into an empty table. Runs in a network namespace of its own.
    static func routes(rounds: Int) throws {
        run(["/usr/sbin/ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1"])
        run(["/usr/sbin/ip", "link", "set", "d1", "up"])
        run(["/usr/sbin/ip", "link", "set", "d0", "up"])
        var wanted = HostState()
        var batch = ""
        for number in 0..<UInt32(10_000) {
            let network = IPNetwork(host: IPAddress(v4: 0x0B00_0000 + number))
            wanted.routes.append(Route(table: 47000, destination: network, kind: .device("d0")))
            batch += "route add \(network) dev d0 table 47000 proto 110\n"
        }
        let file = try write(batch, "routes")
        defer { unlink(file) }
        let clock = ContinuousClock()
        func milliseconds(_ body: () throws -> Void) rethrows -> Double {
            let start = clock.now
            try body()
            let elapsed = clock.now - start
            return Double(elapsed.components.attoseconds) / 1e15 + Double(elapsed.components.seconds) * 1e3
        }
        var peer: [Double] = []
        var ours: [Double] = []
        var idle: [Double] = []
        for _ in 0..<rounds {
            peer.append(run(["/usr/sbin/ip", "-batch", file]))
            try Reconciler().apply(HostState(), looking: .all)
            let reconciler = try Reconciler()
            ours.append(try milliseconds { _ = try reconciler.apply(wanted, looking: .all) })
            idle.append(
                try milliseconds {
                    guard try reconciler.apply(wanted, looking: .all).count == 0 else {
                        print("the second run changed something")
                        exit(1)
                    }
                })
            try reconciler.apply(HostState(), looking: .all)
        }
        report(
            "10,000 routes into an empty table, \(rounds) rounds",
            [("ip -batch", peer), ("reconciler", ours), ("reconciler, nothing to do", idle)], unit: "ms")
        ratio("reconciler / ip -batch", percentile(ours, 0.5), percentile(peer, 0.5), goal: 1.2)
        ratio("nothing to do / first", percentile(idle, 0.5), percentile(ours, 0.5), goal: 0.25)
    }
}

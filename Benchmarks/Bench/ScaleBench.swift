import CLinux
import Foundation

/// ADD, whole process, on nodes of small and large clusters, in one run: every round does each node's turn.
extension Bench {
    /// One node's helper with 100 pods that have policies, as `Benchmarks/scale.sh` makes it.
    struct Scale {
        let name: String
        let socket: String
        /// Network namespaces are PREFIX-x0 to PREFIX-x15, their addresses 10.244.1.200 on.
        let prefix: String
        /// What the runtime says of the pod that is added, `CNI_ARGS` without `IgnoreUnknown`: one beside others of its policy; the
        /// first of its policy, which the inventory has as a pod of this node; and the first, which comes as a surprise.
        let beside: String
        let first: String
        let surprise: String
    }

    static func scale(plugin: String, nodes: [Scale], rounds: Int) throws {
        var files: Set<String> = []
        defer { for file in files { unlink(file) } }
        // No address comes twice within half a second, as with Cilium: until then the connections of the pod that had it before
        // are not forgotten, and an ADD would wait for that.
        func call(_ node: Scale, _ pod: Int, _ verb: String, _ arguments: String, address: String) throws -> Call {
            let namespace = "/run/netns/\(node.prefix)-x\(pod)"
            let stdin = try write(
                #"{"cniVersion":"1.0.0","name":"net","type":"culvert","socket":"\#(node.socket)","timeoutSeconds":60,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"\#(namespace)"}],"ips":[{"address":"\#(address)/32","gateway":"10.244.1.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}}"#,
                "scale-\(node.prefix)-\(address)")
            files.insert(stdin)
            return Call(
                name: "\(node.name) \(verb)", program: plugin,
                environment: [
                    "CNI_COMMAND": verb, "CNI_CONTAINERID": "x\(pod)", "CNI_NETNS": namespace, "CNI_IFNAME": "eth0",
                    "CNI_PATH": "/usr/lib/cni", "CNI_ARGS": "IgnoreUnknown=1;\(arguments)",
                ], stdin: stdin)
        }
        var samples: [(title: String, pod: (Scale) -> String, values: [[Double]])] = [
            ("ADD of a pod beside others of its policy", { $0.beside }, nodes.map { _ in [] }),
            ("ADD of the first pod of its policy", { $0.first }, nodes.map { _ in [] }),
            ("ADD of the first pod of its policy, not in the inventory before", { $0.surprise }, nodes.map { _ in [] }),
        ]
        for (kind, sample) in samples.enumerated() {
            for round in 0..<(rounds + 5) {
                for (index, node) in nodes.enumerated() {
                    let (pod, address) = (sample.pod(node), "10.244.\(7 + kind).\(round)")
                    let add = try call(node, 0, "ADD", pod, address: address)
                    let value = time(add)
                    if round >= 5 { samples[kind].values[index].append(value) }
                    _ = time(try call(node, 0, "DEL", pod, address: address))
                }
            }
        }
        for sample in samples {
            report(
                "\(sample.title), whole process, \(rounds) rounds",
                zip(nodes, sample.values).map { ($0.name, $1) }, unit: "us")
            let base = percentile(sample.values[0], 0.5)
            for (node, values) in zip(nodes, sample.values).dropFirst() {
                ratio("\(node.name) / \(nodes[0].name), p50", percentile(values, 0.5), base, goal: 1.5)
            }
        }
        // Sixteen at a time. First programs that do nothing, and the peer: what the machine itself makes of sixteen programs.
        for (name, program) in [("/bin/true", "/bin/true"), ("tuning (Go)", "/usr/lib/cni/tuning")] {
            let file = try write(
                #"{"cniVersion":"1.0.0","name":"net","type":"tuning","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/\#(nodes[0].prefix)-x0"}],"ips":[]}}"#,
                "scale-yardstick")
            files.insert(file)
            func call(_ pod: Int) -> Call {
                Call(
                    name: name, program: program,
                    environment: [
                        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "x\(pod)",
                        "CNI_NETNS": "/run/netns/\(nodes[0].prefix)-x\(pod)", "CNI_IFNAME": "eth0",
                        "CNI_PATH": "/usr/lib/cni",
                    ], stdin: file)
            }
            let single = (0..<15).map { _ in time(call(0)) }
            let all = (0..<15).flatMap { _ in together((0..<16).map(call)) }
            print(
                "  for comparison, \(name): 16 at a time / one, p50: \(text(percentile(all, 0.5) / percentile(single, 0.5)))"
            )
        }
        for node in nodes {
            var single: [Double] = []
            var all: [Double] = []
            for round in 0..<15 {
                func calls(_ verb: String) throws -> [Call] {
                    try (0..<16).map { try call(node, $0, verb, node.beside, address: "10.244.10.\(16 * round + $0)") }
                }
                let address = "10.244.11.\(round)"
                single.append(time(try call(node, 0, "ADD", node.beside, address: address)))
                _ = time(try call(node, 0, "DEL", node.beside, address: address))
                all += together(try calls("ADD"))
                for call in try calls("DEL") { _ = time(call) }
            }
            ratio(
                "\(node.name): 16 ADDs at a time / one, p50", percentile(all, 0.5), percentile(single, 0.5),
                goal: 4)
        }
    }

    /// Starts all of these calls, and returns how long after the first start each was over, microseconds.
    static func together(_ calls: [Call]) -> [Double] {
        let clock = ContinuousClock()
        let start = clock.now
        let pids = calls.map { spawn($0) }
        return pids.map { pid in
            var status: Int32 = 0
            while waitpid(pid, &status, 0) < 0 {}
            let elapsed = clock.now - start
            return Double(elapsed.components.attoseconds) / 1e12 + Double(elapsed.components.seconds) * 1e6
        }
    }

    /// Starts a call and does not wait for it.
    static func spawn(_ call: Call) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, call.stdin, O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        var argv = [strdup(call.program), nil]
        var envp = call.environment.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for pointer in argv + envp { free(pointer) } }
        var pid: pid_t = 0
        guard posix_spawn(&pid, call.program, &actions, nil, &argv, &envp) == 0 else {
            print("\(call.name) cannot be started")
            exit(1)
        }
        return pid
    }
}

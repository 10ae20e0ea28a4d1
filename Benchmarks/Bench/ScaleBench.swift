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
        /// Labels of the pod that is added: the first pod of its policy, and one beside others.
        let first: String
        let beside: String
    }

    static func scale(plugin: String, nodes: [Scale], rounds: Int) throws {
        func call(_ node: Scale, _ pod: Int, _ verb: String, _ label: String) throws -> Call {
            let namespace = "/run/netns/\(node.prefix)-x\(pod)"
            let address = "10.244.1.\(200 + pod)"
            let stdin = try write(
                #"{"cniVersion":"1.0.0","name":"net","type":"culvert","socket":"\#(node.socket)","timeoutSeconds":60,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"\#(namespace)"}],"ips":[{"address":"\#(address)/32","gateway":"10.244.1.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}}"#,
                "scale-\(node.prefix)-\(pod)")
            return Call(
                name: "\(node.name) \(verb)", program: plugin,
                environment: [
                    "CNI_COMMAND": verb, "CNI_CONTAINERID": "x\(pod)", "CNI_NETNS": namespace, "CNI_IFNAME": "eth0",
                    "CNI_PATH": "/usr/lib/cni", "CNI_ARGS": "IgnoreUnknown=1;CULVERT_LABELS=app:\(label)",
                ], stdin: stdin)
        }
        var samples: [(title: String, label: (Scale) -> String, values: [[Double]])] = [
            ("ADD of a pod beside others of its policy", { $0.beside }, nodes.map { _ in [] }),
            ("ADD of the first pod of its policy", { $0.first }, nodes.map { _ in [] }),
        ]
        for (kind, sample) in samples.enumerated() {
            let calls = try nodes.map {
                (add: try call($0, 0, "ADD", sample.label($0)), del: try call($0, 0, "DEL", sample.label($0)))
            }
            for round in 0..<(rounds + 5) {
                for (index, call) in calls.enumerated() {
                    let value = time(call.add)
                    if round >= 5 { samples[kind].values[index].append(value) }
                    _ = time(call.del)
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
        // Sixteen at a time.
        for node in nodes {
            let one = try call(node, 0, "ADD", node.beside)
            let calls = try (0..<16).map {
                (try call(node, $0, "ADD", node.beside), try call(node, $0, "DEL", node.beside))
            }
            var single: [Double] = []
            var together: [Double] = []
            for _ in 0..<15 {
                single.append(time(one))
                _ = time(calls[0].1)
                let clock = ContinuousClock()
                let start = clock.now
                let pids = calls.map { spawn($0.0) }
                for pid in pids {
                    var status: Int32 = 0
                    while waitpid(pid, &status, 0) < 0 {}
                    let elapsed = clock.now - start
                    together.append(
                        Double(elapsed.components.attoseconds) / 1e12 + Double(elapsed.components.seconds) * 1e6)
                }
                for call in calls { _ = time(call.1) }
            }
            ratio(
                "\(node.name): 16 ADDs at a time / one, p50", percentile(together, 0.5), percentile(single, 0.5),
                goal: 4)
        }
        for node in nodes { for pod in 0..<16 { unlink("/tmp/culvert-bench-\(getpid())-scale-\(node.prefix)-\(pod)") } }
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

import CLinux
import Foundation
import Jansson
import Synchronization

/// The three-node cluster of Tests/Lab/lab.sh, from Swift.
public final class Lab: Sendable {
    public enum Routing: String, Sendable, CaseIterable {
        case stack, ebpf

        /// Both, or the one that `CULVERT_LAB_ROUTING` names.
        public static let allCases: [Routing] =
            ProcessInfo.processInfo.environment["CULVERT_LAB_ROUTING"].flatMap { Routing(rawValue: $0) }.map { [$0] }
            ?? [.stack, .ebpf]

        /// Makes something for each kind of routing, both at the same time: in an emulated VM a lab takes a minute.
        public static func both<Made: Sendable>(
            _ make: @Sendable (Routing) throws -> Made
        ) -> [Routing: Result<Made, any Error>] {
            let made = Mutex<[Routing: Result<Made, any Error>]>([:])
            DispatchQueue.concurrentPerform(iterations: allCases.count) { index in
                let result = Result { try make(allCases[index]) }
                made.withLock { $0[allCases[index]] = result }
            }
            return made.withLock { $0 }
        }
    }

    public let prefix: String
    public let directory: String
    public let routing: Routing
    private let environment: [String: String]
    /// For calls that go on in the background.
    public static let script = Shell.packageRoot + "/Tests/Lab/lab.sh"

    /// The protocol that the kernel here is to show: what install/test.sh says, or vxlan, which every kernel has.
    public static let tunnelProtocol = ProcessInfo.processInfo.environment["CULVERT_LAB_PROTOCOL"] ?? "vxlan"
    public static var isPossible: Bool { Shell.isRoot && ProcessInfo.processInfo.environment["CULVERT_LAB"] == "1" }

    public struct Failure: Error, CustomStringConvertible {
        public let description: String
        public init(description: String) { self.description = description }
    }

    /// Makes the network and the inventory; no helper runs yet.
    ///
    /// - Parameters:
    ///   - script: `lab.sh`, one cluster of three nodes; `sites.sh`, two locations of two nodes.
    ///   - configuration: more keys of the helpers' configuration.
    ///   - extra: more variables for the scripts.
    public init(
        _ name: String, routing: Routing = .stack, tunnelProtocol: String = Lab.tunnelProtocol,
        script: String = "lab.sh", configuration: String = "", extra: [String: String] = [:]
    ) throws {
        self.routing = routing
        prefix = "\(Shell.prefix)\(name)"
        directory = "/run/culvert-\(prefix)"
        let config = "\(directory)/culvertd.yaml"
        environment = [
            "LAB_ROUTING": routing.rawValue, "LAB_CONFIG": config,
            "LAB_BPF": ProcessInfo.processInfo.environment["CULVERT_LAB_BPF"] ?? "/tmp/host_routing.bpf.o",
        ].merging(extra) { _, new in new }
        Lab.live.withLock { $0.append((prefix, directory)) }
        _ = Lab.atExit
        Shell.run("mkdir -p \(directory)/inventory && chmod 755 \(directory)")
        let text =
            configuration.contains("encapsulation:")
            ? configuration : "encapsulation: {protocol: \(tunnelProtocol)}\n" + configuration
        try text.write(toFile: config, atomically: true, encoding: .utf8)
        if script == "lab.sh" { try check(lab("up")) } else { try check(sites("up")) }
    }

    /// Calls `sites.sh`.
    @discardableResult
    public func sites(_ command: String) -> CommandResult {
        Shell.run(
            "\(Shell.packageRoot)/Tests/Lab/sites.sh \(command) \(prefix) \(directory)", environment: environment,
            timeout: 120)
    }

    /// Packets that a router of `sites.sh` has counted, by name.
    public func counters(router: String) -> [String: Int] {
        let list = run(in: router, "nft -j list counters table inet cloud").json?["nftables"]?.elements ?? []
        var result: [String: Int] = [:]
        for counter in list.compactMap({ $0["counter"] }) {
            result[counter["name"]?.string ?? ""] = Int(counter["packets"]?.integer ?? 0)
        }
        return result
    }

    /// Labs that are up: shared ones live as long as the process, and are taken down when it exits.
    private static let live = Mutex<[(prefix: String, directory: String)]>([])
    private static let atExit: Void = {
        atexit { for (prefix, directory) in Lab.live.withLock({ $0 }) { Lab.down(prefix, directory) } }
    }()
    private static func down(_ prefix: String, _ directory: String) {
        Shell.run("\(script) down \(prefix) \(directory); rm -rf \(directory)", timeout: 60)
    }

    deinit {
        Lab.live.withLock { $0.removeAll { $0.prefix == prefix } }
        Lab.down(prefix, directory)
    }

    @discardableResult
    private func check(_ result: CommandResult) throws -> CommandResult {
        guard result.status == 0 else { throw Failure(description: "\(result.output)\n\(result.errors)") }
        return result
    }

    public func lab(_ arguments: String, extra: [String: String] = [:]) -> CommandResult {
        let words = arguments.split(separator: " ", maxSplits: 1)
        let rest = words.count > 1 ? String(words[1]) : ""
        return Shell.run(
            "\(Lab.script) \(words[0]) \(prefix) \(directory) \(rest)",
            environment: environment.merging(extra) { _, new in new }, timeout: 120)
    }

    /// Starts culvertd of these nodes, all at once, and waits until they are ready.
    ///
    /// - Parameter programs: the directory that it is in, where that is another release's.
    public func start(_ nodes: String..., programs: String = Shell.binaries) throws {
        try start(nodes, programs: programs)
    }
    private func start(_ nodes: [String], programs: String = Shell.binaries) throws {
        try check(
            Shell.run(
                "pids=; for n in \(nodes.joined(separator: " ")); do \(Lab.script) helper \(prefix) \(directory) $n & pids=\"$pids $!\"; done; for p in $pids; do wait $p || exit 1; done",
                environment: environment.merging(["LAB_BIN": programs]) { _, new in new }, timeout: 200))
    }
    /// Starts culvertd of a node that is not to become ready, and waits only until it answers.
    public func startUnready(_ node: String) {
        _ = lab("helper \(node)", extra: ["LAB_NO_WAIT": "1"])
        _ = eventually { api(node, "/v1/status") != nil }
    }
    /// Waits until the helper of a node serves pods.
    public func waitUntilReady(_ node: String) throws {
        let isReady = eventually(30) {
            run(in: node, "curl -sf --unix-socket \(directory)/\(node)/api.sock http://localhost/readyz").status == 0
        }
        guard isReady else { throw Failure(description: "culvertd of \(node) is not ready: \(log(node).suffix(500))") }
    }
    /// Starts several at once with this configuration; those that run are ended first.
    public func restart(_ nodes: [String], configuration: String) throws {
        for node in nodes where pid(node) > 1 { kill(node, signal: SIGTERM) }
        try configuration.write(toFile: "\(directory)/culvertd.yaml", atomically: true, encoding: .utf8)
        try start(nodes)
    }
    /// Adds a pod with the plugin's ADD.
    ///
    /// - Parameter routing: another one than the lab's.
    @discardableResult
    public func pod(
        _ name: String, on node: String, last: Int, labels: String = "", routing: Routing? = nil,
        extra: [String: String] = [:]
    ) throws -> CommandResult {
        var extra = extra
        if let routing { extra["LAB_ROUTING"] = routing.rawValue }
        return try check(lab("pod \(node) \(name) \(last) \(labels)", extra: extra))
    }
    /// Runs a command in one of the lab's network namespaces.
    @discardableResult
    public func run(in namespace: String, _ command: String, timeout: Int = 60) -> CommandResult {
        Shell.run(
            "nsenter --net=/run/netns/\(prefix)-\(namespace) \(command)", environment: environment, timeout: timeout)
    }
    /// A command that is still running.
    public final class Running: Sendable {
        private let done = DispatchSemaphore(value: 0)
        private let result = Mutex<CommandResult?>(nil)
        fileprivate init(_ body: @escaping @Sendable () -> CommandResult) {
            Thread.detachNewThread { [self] in
                let value = body()
                result.withLock { $0 = value }
                done.signal()
            }
        }
        /// What it printed, when it has ended.
        public func wait() -> CommandResult {
            done.wait()
            done.signal()
            return result.withLock { $0 } ?? CommandResult(status: -1, output: "", errors: "")
        }
    }
    /// Starts a command in one of the lab's network namespaces.
    public func start(in namespace: String, _ command: String, timeout: Int = 60) -> Running {
        let (prefix, environment) = (prefix, environment)
        return Running {
            Shell.run(
                "nsenter --net=/run/netns/\(prefix)-\(namespace) \(command)", environment: environment, timeout: timeout
            )
        }
    }
    /// Starts a program that runs until the lab is taken down.
    public func background(in namespace: String, _ command: String) {
        Shell.run(
            """
            (exec nsenter --net=/run/netns/\(prefix)-\(namespace) \(command) > /dev/null 2>&1 < /dev/null) &
            echo $! > \(directory)/background-\(UUID().uuidString).pid
            """)
    }
    public func plugin(_ node: String, _ command: String, _ pod: String, extra: [String: String] = [:]) -> CommandResult
    {
        lab("plugin \(node) \(command) \(pod)", extra: extra)
    }
    public func inventory(_ file: String, _ text: String) throws {
        let path = "\(directory)/inventory/\(file)"
        try text.write(toFile: path + ".tmp", atomically: false, encoding: .utf8)
        rename(path + ".tmp", path)
    }
    public func pid(_ node: String) -> pid_t {
        (try? String(contentsOfFile: "\(directory)/\(node).pid", encoding: .utf8))
            .flatMap { pid_t($0.trimmingCharacters(in: .whitespacesAndNewlines)) } ?? 0
    }
    public func kill(_ node: String, signal: Int32 = SIGKILL) {
        let id = pid(node)
        if id > 1 { CLinux.kill(id, signal) }
        for _ in 0..<100 where CLinux.kill(id, 0) == 0 { usleep(50_000) }
    }
    public func log(_ node: String) -> String {
        (try? String(contentsOfFile: "\(directory)/\(node).log", encoding: .utf8)) ?? ""
    }
    public func api(_ node: String, _ path: String) -> JSON? {
        run(in: node, "curl -s --unix-socket \(directory)/\(node)/api.sock http://localhost\(path)").json
    }
    public func ctl(_ node: String, _ arguments: String) -> CommandResult {
        Shell.run("\(Shell.binaries)/culvertctl \(arguments) --run-dir \(directory)/\(node)")
    }

    /// True when one of `count` pings is answered.
    public func pings(_ pod: String, _ destination: String, count: Int = 1, size: Int = 56, extra: String = "") -> Bool
    {
        run(in: pod, "ping -n -q -c \(count) -i 0.2 -W 3 -s \(size) \(extra) \(destination)").status == 0
    }

    /// What the outside host has seen: "source > destination" to packets, of `pings`, `datagrams` or `connections`.
    public func seen(_ set: String) -> [String: Int] {
        var result: [String: Int] = [:]
        let list = run(in: "out", "nft -j list set inet watch \(set)").json?["nftables"]?.elements ?? []
        for element in list.compactMap({ $0["set"]?["elem"]?.elements }).joined() {
            guard let parts = element["elem"]?["val"]?["concat"]?.elements else { continue }
            let count = element["elem"]?["counter"]?["packets"]?.integer ?? 0
            result["\(parts[0].string ?? "") > \(parts[1].string ?? "")"] = Int(count)
        }
        return result
    }
    public func forgetSeen() {
        for set in ["pings", "datagrams", "connections"] { run(in: "out", "nft flush set inet watch \(set)") }
    }

    /// Packets of protocols 4 and 47 that the router has dropped.
    public func droppedByRouter() -> Int {
        let list = run(in: "r", "nft -j list counters table inet cloud").json?["nftables"]?.elements ?? []
        return list.compactMap { $0["counter"]?["packets"]?.integer }.reduce(0) { $0 + Int($1) }
    }

    /// Packets counted by the firewall rule with this comment.
    public func counted(_ node: String, _ comment: String) -> Int {
        let rules = api(node, "/v1/status")?["firewall"]?.elements ?? []
        return Int(rules.first { $0["rule"]?.string == comment }?["packets"]?.integer ?? -1)
    }

    /// The packets of all counted rules whose comment begins like this.
    public func counted(_ node: String, beginningWith beginning: String) -> Int {
        (api(node, "/v1/status")?["firewall"]?.elements ?? []).filter {
            $0["rule"]?.string?.hasPrefix(beginning) == true
        }.reduce(0) { $0 + Int($1["packets"]?.integer ?? 0) }
    }

    /// Waits until `condition` holds.
    public func eventually(_ seconds: Double = 20, _ condition: () -> Bool) -> Bool {
        let end = Date().addingTimeInterval(seconds)
        while Date() < end {
            if condition() { return true }
            usleep(50_000)
        }
        return condition()
    }

    public static func policy(
        _ name: String, app: String, destinations: String = "[0.0.0.0/0]", excluded: String = "[]", zone: String = "z3",
        egress: String = "", kind: String = "CiliumEgressGatewayPolicy", more: String = ""
    ) -> String {
        let version = kind == "EgressPolicy" ? "culvert.dev/v1alpha1" : "cilium.io/v2"
        return """
            ---
            apiVersion: \(version)
            kind: \(kind)
            metadata: {name: \(name)}
            spec:
              selectors: [{podSelector: {matchLabels: {app: \(app)}}}]
              destinationCIDRs: \(destinations)
              excludedCIDRs: \(excluded)
              egressGateway: {nodeSelector: {matchLabels: {zone: \(zone)}}\(egress.isEmpty ? "" : ", " + egress)}
            \(more.isEmpty ? "" : "  " + more)

            """
    }
}

import CLinux
import CNI
import Foundation
import HelperProtocol
import Inventory
import Logging
import Model
import Netlink
import Reconcile
import Synchronization
import TestSupport
import Testing

@testable import Agent

extension NodeAgent {
    /// Several calls of the agent with nothing in between.
    func together<T: Sendable>(_ body: @Sendable (isolated NodeAgent) throws -> T) rethrows -> T { try body(self) }
}

/// An ADD on its way to the agent, which is then the only one to use it.
struct SentADD: @unchecked Sendable {
    let add: NodeAgent.WaitingADD
    var request: HelperRequest { add.request }
}

extension KernelNamespace {
    /// ADDs that meet each other, a DEL, or nobody: what the agent, the kernel and the disk have afterwards.
    struct AttachmentTests {
        /// An agent of node n1, pods beside it, and what it answers to each ADD.
        final class Node: Sendable {
            let agent: NodeAgent
            let directory: String
            private let prefix = "ka\(ProcessInfo.processInfo.processIdentifier)"
            private let names = Mutex<[String]>([])
            private let answers = Mutex<[UInt64: HelperResponse]>([:])

            init() async throws {
                directory = FileManager.default.temporaryDirectory.appendingPathComponent(prefix).path
                let inventory = directory + "/inventory"
                try FileManager.default.createDirectory(atPath: inventory, withIntermediateDirectories: true)
                try
                    ("""
                apiVersion: cilium.io/v2
                kind: CiliumNode
                metadata: {name: n1}
                spec: {addresses: [{type: CiliumInternalIP, ip: 10.244.1.1}], ipam: {podCIDRs: [10.244.1.0/24]}}

                """ + Lab.policy("shop", app: "shop", zone: "nowhere")
                    + Lab.policy("bad", app: "bad").replacingOccurrences(
                        of: "destinationCIDRs", with: "destinationCIDR"))
                    .write(toFile: inventory + "/policy.yaml", atomically: true, encoding: .utf8)
                let made = Shell.run(
                    "set -e; ip link add cilium_host type veth peer name cilium_net; ip link set cilium_net up; ip link set cilium_host up; ip addr add 10.244.1.1/32 dev cilium_host; nft 'add table ip tracked; add chain ip tracked o { type filter hook output priority 0; }; add rule ip tracked o ct state new accept'"
                )
                guard made.status == 0 else { throw Lab.Failure(description: made.errors) }
                var logger = Logger(label: "test")
                logger.logLevel = .critical
                agent = try NodeAgent(
                    settings: .init(nodeName: "n1", runDirectory: directory + "/run", configuration: Configuration()),
                    source: FileSource(directory: inventory), publisher: NoPublisher(), logger: logger)
                try await agent.start()
            }

            func remove() {
                _ = try? Reconciler().apply(HostState())
                for name in names.withLock({ $0 }) {
                    Shell.run("ip link del lxc\(name); ip netns del \(prefix)\(name)")
                }
                Shell.run(
                    "ip link del cilium_host; nft delete table ip tracked; rm -rf \(directory)"
                )
            }

            /// Makes a pod that no ADD has come for.
            func pod(_ name: String) throws {
                names.withLock { $0.append(name) }
                let made = Shell.run(
                    "set -e; ip netns add \(prefix)\(name); ip link add lxc\(name) type veth peer name eth0 netns \(prefix)\(name); ip link set lxc\(name) up; ip -n \(prefix)\(name) link set eth0 up; ip -n \(prefix)\(name) route add default dev eth0"
                )
                guard made.status == 0 else { throw Lab.Failure(description: made.errors) }
            }

            /// The pod's netlink socket, as a plugin opens it.
            private func network(_ name: String) throws -> PodNetwork {
                let path = "/run/netns/\(prefix)\(name)"
                let opened = Mutex<Int32?>(nil)
                try BlockingThread.start("a plugin") {
                    let namespace = culvert_open_read(path)
                    _ = culvert_enter_network_namespace(namespace)
                    close(namespace)
                    let socket = culvert_route_socket()
                    opened.withLock { $0 = socket }
                }
                while true {
                    if let socket = opened.withLock({ $0 }) { return try PodNetwork(adopting: socket) }
                    usleep(1000)
                }
            }

            func add(
                _ name: String, _ addresses: [String], app: String = "shop", call: UInt64, isInInventory: Bool = false,
                isAwaited: Bool = true
            ) throws -> SentADD {
                var request = HelperRequest(.add)
                (request.network, request.containerID, request.interfaceName) = ("net", name, "eth0")
                (request.addresses, request.labels) = (addresses, [("app", app)])
                (request.podNamespace, request.podName, request.podUID) = ("default", name, "uid-\(name)")
                return SentADD(
                    add: .init(
                        request: request, pod: try network(name), addresses: try NodeAgent.addresses(of: request),
                        call: call, isInInventory: isInInventory, isAwaited: { isAwaited },
                        answer: { answer in self.answers.withLock { $0[call] = answer } }))
            }

            /// Waits for the answer; nil where none comes within five seconds.
            func answer(_ call: UInt64) async throws -> HelperResponse? {
                for _ in 0..<500 {
                    if let answer = answers.withLock({ $0[call] }) { return answer }
                    try await Task.sleep(for: .milliseconds(10))
                }
                return nil
            }

            func isDone(_ call: UInt64) async throws -> Bool {
                if case .done = try await answer(call) { true } else { false }
            }

            /// Attachments in memory, on disk, and addresses of pods with a rule.
            func state() async -> [[String]] {
                let attachments = await agent.together { $0.attachments.keys.sorted() }
                let files = Shell.run("ls \(directory)/run/attachments").output.split(separator: "\n").map(String.init)
                let rules = Set(
                    Shell.run("ip rule").output.split(separator: "\n").filter { $0.hasPrefix("106:") }.compactMap {
                        line in
                        line.split(separator: " ").first { $0.hasPrefix("10.244.") }.map(String.init)
                    })
                return [attachments, files, rules.sorted()]
            }
        }

        /// A node that is gone with the test.
        private func withNode(_ body: (Node) async throws -> Void) async throws {
            let node = try await Node()
            defer { node.remove() }
            try await body(node)
        }

        /// Of two in one batch that both take an address of a third, the first fails: what it gives back is not the second's.
        @Test func whatOneADDGivesBackIsNoOthers() async throws {
            try await withNode { node in
                for name in ["old", "a", "b"] { try node.pod(name) }
                let old = try node.add("old", ["10.244.1.10/32", "10.244.1.11/32"], call: 1)
                await node.agent.together { $0.add(old.add) }
                #expect(try await node.isDone(1))
                #expect(await node.state() == [["old_eth0"], ["old_eth0"], ["10.244.1.10", "10.244.1.11"]])
                let (a, b) = (
                    try node.add("a", ["10.244.1.10/32"], app: "bad", call: 2),
                    try node.add("b", ["10.244.1.11/32"], call: 3)
                )
                await node.agent.together {
                    $0.add(a.add)
                    $0.add(b.add)
                }
                #expect(try await !node.isDone(2))
                #expect(try await node.isDone(3))
                // The old one came back, until the second had an address of it.
                #expect(await node.state() == [["b_eth0"], ["b_eth0"], ["10.244.1.11"]])
            }
        }

        /// The address of a live pod is not taken for a plugin that has gone, and given back where it goes before the answer.
        @Test func aPluginThatHasGoneTakesNobodysAddress() async throws {
            try await withNode { node in
                for name in ["old", "gone"] { try node.pod(name) }
                let before = [["old_eth0"], ["old_eth0"], ["10.244.1.10"]]
                let old = try node.add("old", ["10.244.1.10/32"], call: 1)
                await node.agent.together { $0.add(old.add) }
                #expect(try await node.isDone(1))
                #expect(await node.state() == before)
                let gone = try node.add("gone", ["10.244.1.10/32"], call: 2, isAwaited: false)
                await node.agent.together { $0.add(gone.add) }
                #expect(try await !node.isDone(2))
                #expect(await node.state() == before)
                let going = try node.add("gone", ["10.244.1.10/32"], call: 3)
                await node.agent.together { $0.add(going.add) }
                #expect(try await node.isDone(3))
                #expect(await node.state() == [["gone_eth0"], ["gone_eth0"], ["10.244.1.10"]])
                // The DEL of a runtime that has given up comes at once, and is served after that.
                node.agent.abort(going.request, call: 3) {}
                await node.agent.delete(going.request)
                #expect(await node.state() == before)
                // A pod that is gone itself gets nothing back.
                let again = try node.add("gone", ["10.244.1.10/32"], call: 4)
                await node.agent.together { $0.add(again.add) }
                #expect(try await node.isDone(4))
                Shell.run("ip link del lxcold")
                await node.agent.abort(again.request, call: 4)
                #expect(await node.state() == [[], [], []])
            }
        }

        @Test func aPodThatHasLeftTheInventoryMeanwhileIsRefused() async throws {
            try await withNode { node in
                try node.pod("a")
                let add = try node.add("a", ["10.244.1.10/32"], call: 1, isInInventory: true)
                await node.agent.together { $0.add(add.add) }
                guard case .failed(let error) = try await node.answer(1) else {
                    Issue.record("it was not refused")
                    return
                }
                #expect(
                    error.code == CNIError.Code.tryAgainLater.rawValue && error.message.contains("deleted meanwhile"))
                #expect(await node.state() == [[], [], []])
            }
        }

        /// A connection of the address's last pod is forgotten before the next one's ADD is answered, and none of the next one's
        /// own later: also where the last one ends by a record of its DEL while the ADD is served, and whatever the prefix length.
        @Test func connectionsOfTheLastPodAreForgottenAndNoneOfTheNext() async throws {
            try await withNode { node in
                Shell.run("ip addr add 10.244.1.10/32 dev lo; ip addr add 10.244.1.2/32 dev lo")
                defer { Shell.run("ip addr del 10.244.1.10/32 dev lo; ip addr del 10.244.1.2/32 dev lo") }
                let tracking = try ConnectionTracking()
                let address = IPAddress("10.244.1.10")!
                func connect() throws {
                    let sent = Shell.run("echo | socat -u - UDP:10.244.1.2:9,bind=10.244.1.10")
                    guard sent.status == 0 else { throw Lab.Failure(description: sent.errors) }
                }
                for name in ["a", "b"] { try node.pod(name) }
                var call: UInt64 = 1
                for length in [32, 24] {
                    for way in ["record", "DEL", "another container"] {
                        let next = way == "another container" ? "b" : "a"
                        let last = try node.add("a", ["10.244.1.10/\(length)"], call: call)
                        await node.agent.together { $0.add(last.add) }
                        #expect(try await node.isDone(call))
                        try connect()
                        let add = try node.add(next, ["10.244.1.10/\(length)"], call: call + 1)
                        let record = "\(node.agent.runDirectory)/deleted/a_eth0"
                        await node.agent.together { agent in
                            switch way {
                            case "record": FileManager.default.createFile(atPath: record, contents: nil)
                            case "DEL": agent.delete(last.request)
                            default: break
                            }
                            agent.add(add.add)
                        }
                        #expect(try await node.isDone(call + 1))
                        #expect(
                            try tracking.forget(of: [address]) == 0, "/\(length), \(way): the last pod's is still there"
                        )
                        #expect(await node.state()[0] == ["\(next)_eth0"])
                        try connect()
                        try await Task.sleep(for: .milliseconds(700))
                        #expect(try tracking.forget(of: [address]) == 1, "/\(length), \(way): the next pod's is gone")
                        await node.agent.delete(add.request)
                        call += 2
                    }
                }
            }
        }
    }
}

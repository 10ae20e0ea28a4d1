import CLinux
import Foundation
import Model
import Netlink
import Synchronization
import TestSupport
import Testing

@testable import Liveness
@testable import Planner
@testable import Reconcile

extension KernelNamespace {
    /// The thread that fails over, with a real kernel.
    @Suite(.serialized) struct FailOverKernelTests {
        init() { Shell.run("ip link set lo up") }

        static func plan(
            _ failOver: FailOver, ids: AssignedIDs = AssignedIDs(), destinations: Int = 1
        ) -> Plan {
            var policy = TestCluster.policy("shop", source: .culvert)
            policy.gatewaySelector = LabelSelector(matchExpressions: [
                .init(key: "zone", operation: .isIn, values: ["z2", "z3"])
            ])
            policy.destinations = (0..<destinations).map { IPNetwork(host: IPAddress(v4: 0xC633_0000 + UInt32($0))) }
            var inventory = TestCluster.inventory
            inventory.policies = [policy]
            var configuration = Configuration()
            configuration.tunnelProtocol = .vxlan
            return Planner.plan(
                configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: []),
                gatewayHealth: failOver.health, previous: failOver.previous, previousIDs: ids)
        }
        static func carryOut(_ plan: Plan, _ reconciler: Reconciler) throws {
            let failures = try reconciler.apply(plan.host).failures
            #expect(failures.isEmpty, "\(failures)")
        }
        static func health(down: String?) -> GatewayHealth {
            var health = GatewayHealth()
            for node in ["n2", "n3"] {
                health.states[GatewayEnd(node: node, identity: .defaultAddress)] = node == down ? .down : .up
            }
            return health
        }

        /// A fail-over that runs, and a reconciler that asks it for the groups of next hops.
        static func start() throws -> (FailOver, Reconciler) {
            let failOver = try FailOver()
            try failOver.start()
            let reconciler = try Reconciler()
            reconciler.groups = { hops, send in failOver.set(hops, send) }
            return (failOver, reconciler)
        }

        @Test func aPlanAndAFailOverAtOnceEndAsTheFailOverSays() async throws {
            let (failOver, reconciler) = try Self.start()
            defer { _ = try? reconciler.apply(HostState(), looking: .all) }
            var plan = Self.plan(failOver)
            failOver.prepare(plan.liveness)
            try Self.carryOut(plan, reconciler)
            let isOver = Atomic<Bool>(false)
            let stop = Mutex(0)
            let thread = Thread {
                var round = 0
                while !isOver.load(ordering: .relaxed) {
                    failOver.healthChanged(Self.health(down: ["n2", "n3"][round % 2]), lastHeard: [:])
                    round += 1
                    usleep(300)
                }
                stop.withLock { $0 = round }
            }
            thread.start()
            for _ in 0..<300 {
                plan = Self.plan(failOver, ids: plan.ids)
                failOver.prepare(plan.liveness)
                // Set anew each time, so that it races.
                reconciler.groupsMoved([NextHop(id: plan.liveness.slots[0].id, target: .group(0))])
                try Self.carryOut(plan, reconciler)
                failOver.settle(plan.liveness)
            }
            isOver.store(true, ordering: .relaxed)
            while stop.withLock({ $0 }) == 0 { usleep(1000) }
            usleep(100_000)
            let slot = plan.liveness.slots[0]
            let decided = try #require(failOver.previous.decided[slot.key])
            let there = try reconciler.groupMembers()[slot.id]
            #expect(slot.target(decided).members.first == there)
            // And its routes are there.
            #expect(
                Shell.run("ip route show table \(plan.attachments[0].table ?? 0)").output.contains("nhid \(slot.id)"))
            #expect(stop.withLock { $0 } > 100)
        }

        /// The kernel tells of each route that names a next hop; nobody is to take that for somebody else's change.
        @Test func whatTheKernelTellsOfAFailOverWakesNobodyUp() throws {
            let (failOver, reconciler) = try Self.start()
            defer { _ = try? reconciler.apply(HostState(), looking: .all) }
            let plan = Self.plan(failOver, destinations: 2000)
            failOver.prepare(plan.liveness)
            try Self.carryOut(plan, reconciler)
            let events = try HostEvents(ownPorts: [reconciler.routePort, failOver.port])
            for round in 0..<20 {
                failOver.healthChanged(Self.health(down: ["n2", "n3"][round % 2]), lastHeard: [:])
                usleep(20_000)
            }
            let slot = plan.liveness.slots[0]
            #expect(failOver.previous.decided[slot.key]?.candidate?.node == "n2")
            Shell.run("ip rule add priority 200 from 192.0.2.9 lookup 47000 protocol 110")
            defer { Shell.run("ip rule del priority 200") }
            #expect(try events.next() == [.ourRules])
        }

        @Test func aRefusedMoveIsReportedAndSentAgain() async throws {
            let (failOver, reconciler) = try Self.start()
            defer { _ = try? reconciler.apply(HostState(), looking: .all) }
            let plan = Self.plan(failOver)
            failOver.prepare(plan.liveness)
            // Nothing is in the kernel yet.
            failOver.healthChanged(Self.health(down: "n2"), lastHeard: [:])
            var reports = failOver.reports.makeAsyncIterator()
            let report = try #require(await reports.next()?.first)
            #expect(!report.refusal.isEmpty && report.move.to.candidate?.node == "n3")
            // An older plan is carried out, and ends as it was decided.
            try Self.carryOut(plan, reconciler)
            failOver.settle(plan.liveness)
            let slot = plan.liveness.slots[0]
            #expect(try reconciler.groupMembers()[slot.id] == slot.target(report.move.to).members.first)
        }

        /// What this node serves itself is told by a plan, and is acted on before the plan is carried out, or although something of
        /// it never is.
        @Test func aPlanThatSaysWhatThisNodeServesIsEnough() throws {
            let (failOver, reconciler) = try Self.start()
            defer { _ = try? reconciler.apply(HostState(), looking: .all) }
            var plan = Self.plan(failOver)
            failOver.prepare(plan.liveness)
            try Self.carryOut(plan, reconciler)
            let slot = plan.liveness.slots[0]
            #expect(failOver.previous.decided[slot.key]?.candidate?.node == "n2")
            // No echo tells of it.
            plan.liveness.own = [GatewayEnd(node: "n2", identity: .defaultAddress): .down]
            failOver.prepare(plan.liveness)
            var there: UInt32?
            for _ in 0..<40 where there != slot.candidates[1].target.members.first {
                usleep(50_000)
                there = try reconciler.groupMembers()[slot.id]
            }
            #expect(there == slot.candidates[1].target.members.first)
        }

        /// Answers are forwarded by what the uplink is set to, and that is told at once.
        @Test func forwardingIsReadOfEachDeviceAndToldWhenItChanges() throws {
            Shell.run(
                "ip link add up0 type veth peer name up1; ip addr add 192.0.2.2/24 dev up0; ip link set up0 up; sysctl -qw net.ipv4.ip_forward=1"
            )
            defer { Shell.run("ip link del up0; ip link del up2; ip rule del priority 200; ip rule del priority 201") }
            func facts() throws -> LocalFacts {
                try LocalFactsReader(socket: NetlinkSocket(bus: 0)).read(nodeName: "n1", node: nil)
            }
            var read = try facts()
            #expect(read.forwarding == 1 && read.interface("up0")?.forwards == true)
            let events = try HostEvents(ownPorts: [])
            /// What is told of a change; a rule behind it is told last.
            func told(of command: String, rule: Int) throws -> Set<HostEvent> {
                Shell.run("\(command); ip rule add priority \(rule) from 192.0.2.9 lookup 47000 protocol 110")
                var told: Set<HostEvent> = []
                while !told.contains(.ourRules) { told.formUnion(try events.next()) }
                return told
            }
            // A device that is new has settings too, which nobody has changed.
            let ofOthers = try told(
                of: "ip link add up2 type veth peer name up3; sysctl -qw net.ipv4.conf.up0.rp_filter=2", rule: 200)
            #expect(ofOthers == [.ourRules])
            let ofForwarding = try told(of: "sysctl -qw net.ipv4.conf.up0.forwarding=0", rule: 201)
            #expect(ofForwarding == [.facts, .ourRules])
            read = try facts()
            #expect(read.forwarding == 1 && read.interface("up0")?.forwards == false)
        }

        /// A gateway that serves many has asked for fewer echoes, and gets fewer new flows too.
        @Test func aGatewayThatHasAskedForFewerEchoesGetsFewerNewFlows() throws {
            let rules = Shell.run(
                """
                nft 'add table inet ports; add set inet ports seen { type mark . inet_service; flags dynamic; };
                add chain inet ports out { type filter hook output priority 0; };
                add rule inet ports out udp dport \(Ownership.echoPort) add @seen { meta mark . udp sport }'
                """)
            #expect(rules.status == 0, "\(rules.errors)")
            defer { Shell.run("nft delete table inet ports") }
            var sockets = EchoSockets()
            defer { sockets.close() }
            let ends = ["n2", "n3"].map { GatewayEnd(node: $0, identity: .defaultAddress) }
            sockets.follow([
                .init(end: ends[0], number: 1, interval: 100, multiplier: 3, isTranslated: true),
                .init(end: ends[1], number: 2, interval: 350, multiplier: 3, isTranslated: true, asked: 350),
            ])
            let here = IPAddress("127.0.0.1")!
            for second in 0..<10 {
                sockets.open(source: IPAddress("127.0.0.2")!, destination: here, now: Int64(second) * 1_000_000_000 + 1)
                #expect(sockets.problem.isEmpty)
                sockets.send(
                    [1, 2].map { EchoPacket(session: $0, sequence: 1, secret: .random(word: sockets.word)) }, to: here)
            }
            func ports(_ session: UInt32) -> Int {
                let mark = Int64(Ownership.echoMark(session))
                let list = Shell.run("nft -j list set inet ports seen").json?["nftables"]?.elements ?? []
                return list.compactMap { $0["set"]?["elem"]?.elements }.joined().count {
                    $0["concat"]?.elements?.first?.integer == mark
                }
            }
            // Ports are chosen at random: two of ten may be the same.
            #expect(ports(1) >= 9 && ports(1) <= 10)
            #expect(ports(2) == 3 || ports(2) == 2)
        }

        /// Whoever can reach the port can send as much as it likes: it takes no room from echoes.
        @Test func aFloodOfStrangersPushesNoEchoOut() throws {
            var sockets = EchoSockets()
            defer { sockets.close() }
            let here = IPAddress("127.0.0.1")!
            sockets.open(source: IPAddress("127.0.0.2")!, destination: here, now: 1)
            #expect(sockets.problem.isEmpty)
            var genuine = EchoPacket(session: 1, sequence: 1, secret: .random(word: sockets.word))
            let stranger = culvert_echo_sender(here.v4Value, 40_000)
            defer { close(stranger) }
            // Of another length; with other first bytes; and all but the word of this process.
            var others: [[UInt8]] = [[UInt8](repeating: 0x41, count: 8), [UInt8](repeating: 0x41, count: 40)]
            var invented = [UInt8](repeating: 0, count: EchoPacket.size)
            let made = EchoPacket(session: 1, sequence: 1, secret: .random(word: sockets.word ^ 1))
            invented.withUnsafeMutableBytes { made.write(to: $0) }
            others.append(invented)
            let flood = (0..<30_000).map { number in
                var echo = culvert_echo()
                let bytes = others[number % others.count]
                withUnsafeMutableBytes(of: &echo.bytes) { $0.copyBytes(from: bytes) }
                echo.length = UInt32(bytes.count)
                return echo
            }
            let sent = culvert_echo_send(stranger, here.v4Value, Ownership.echoPort, flood, Int32(flood.count))
            #expect(sent == 30_000)
            sockets.send([genuine], to: here)
            genuine = EchoPacket(session: 1, sequence: 2, secret: genuine.secret, isProof: true)
            sockets.send([genuine], to: here)
            var came: [UInt64] = []
            var strangers = 0
            sockets.receive { packet, _, _, _ in
                if let packet, packet.secret == genuine.secret { came.append(packet.sequence) } else { strangers += 1 }
            }
            #expect(came == [1, 2] && strangers == 0)
            #expect(sockets.dropped == 30_000)
            sockets.close()
            #expect(sockets.dropped == 30_000)
        }

        /// What one session finds is told of every Node that has its address.
        @Test func aSessionTellsOfAllItsEnds() throws {
            let failOver = try FailOver()
            let echoes = try EchoMonitor(failOver: failOver)
            try echoes.start()
            var plan = LivenessPlan()
            let ends = ["n2", "n3"].map { GatewayEnd(node: $0, identity: .defaultAddress) }
            plan.sessions = [
                .init(end: ends[0], others: [ends[1]], number: 1, interval: 100, multiplier: 3, isTranslated: true)
            ]
            plan.obstacle = "none is sent"
            echoes.follow(plan)
            for _ in 0..<40 where failOver.health.states.isEmpty { usleep(50_000) }
            #expect(failOver.health.states == [ends[0]: .unknown, ends[1]: .unknown])
        }

        /// A gateway that no policy names any more gets no echo, and no socket outlives what it was for.
        @Test func echoesEndWithTheirSessionAndSocketsWithTheLastOne() throws {
            let rules = Shell.run(
                """
                nft 'add table inet marks; add set inet marks seen { type mark; flags dynamic; };
                add chain inet marks out { type filter hook output priority 0; };
                add rule inet marks out udp dport \(Ownership.echoPort) add @seen { meta mark }'
                """)
            #expect(rules.status == 0, "\(rules.errors)")
            defer { Shell.run("nft delete table inet marks") }
            /// The sessions that have sent an echo within half a second from now on.
            func sending() -> Set<UInt32> {
                Shell.run("nft flush set inet marks seen; sleep 0.5")
                let list = Shell.run("nft -j list set inet marks seen").json?["nftables"]?.elements ?? []
                let marks = list.compactMap { $0["set"]?["elem"]?.elements }.joined().compactMap(\.integer)
                return Set((1...3).filter { marks.contains(Int64(Ownership.echoMark($0))) })
            }
            /// UDP sockets with an address that only echoes have here.
            func sockets() -> Int {
                Shell.run("ss -Huan src 127.0.0.0/8").output.split(separator: "\n").count
            }
            let failOver = try FailOver()
            let echoes = try EchoMonitor(failOver: failOver)
            try echoes.start()
            func follow(_ numbers: [UInt32]) {
                var plan = LivenessPlan()
                plan.source = IPAddress("127.0.0.2")!
                plan.destination = IPAddress("127.0.0.1")!
                // The gateway of the last session has asked for fewer echoes, which are sent by a socket of their own.
                plan.sessions = numbers.map { number in
                    .init(
                        end: GatewayEnd(node: "n\(number)", identity: .defaultAddress), number: number,
                        interval: number == 3 ? 200 : 100, multiplier: 3, isTranslated: true,
                        asked: number == 3 ? 200 : nil)
                }
                echoes.follow(plan)
                usleep(300_000)
            }
            #expect(sockets() == 0)
            follow([1, 2, 3])
            #expect(sending() == [1, 2, 3])
            #expect(sockets() == 4)
            follow([1, 3])
            #expect(sending() == [1, 3])
            #expect(failOver.health.states.keys.map(\.node).sorted() == ["n1", "n3"])
            #expect(echoes.snapshot.sessions.map(\.session.number) == [1, 3])
            follow([1])
            #expect(sending() == [1])
            #expect(sockets() == 3, "\(Shell.run("ss -Huan").output)")
            follow([])
            #expect(sending() == [])
            #expect(sockets() == 0, "\(Shell.run("ss -Huan").output)")
            #expect(failOver.health.states.isEmpty)
            #expect(echoes.snapshot.sessions.isEmpty)
        }

        /// Where echoes cannot leave, the thread that would send them sleeps.
        @Test func anObstacleCostsNothing() throws {
            let failOver = try FailOver()
            let echoes = try EchoMonitor(failOver: failOver)
            try echoes.start()
            var plan = Self.plan(failOver)
            plan.liveness.obstacle = "the rule of the local table has priority 0"
            echoes.follow(plan.liveness)
            func processorTime() -> Double {
                var usage = rusage()
                getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
                return Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
                    + Double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6
            }
            usleep(200_000)
            let before = processorTime()
            usleep(1_000_000)
            #expect(processorTime() - before < 0.3)
            #expect(echoes.snapshot.obstacle == plan.liveness.obstacle)
            #expect(echoes.snapshot.sessions.map(\.state) == [.unknown, .unknown])
        }
    }
}

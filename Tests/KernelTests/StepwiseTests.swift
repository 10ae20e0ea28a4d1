import Foundation
import Model
import Netlink
import TestSupport
import Testing

@testable import Planner
@testable import Reconcile

extension KernelNamespace {
    /// What the property test says of a model, of the kernel itself: after every single message it is asked where a pod's packet
    /// would go (`RTM_GETROUTE`).
    struct StepwiseTests {
        static let pods = 4

        /// An uplink, an overlay device, and a link for each pod, as a node has them.
        private func makeNode() throws {
            let commands =
                [
                    "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
                    "ip link set lo up", "ip link add eth0 type veth peer name far", "ip link set far up",
                    "ip link set eth0 up",
                    "ip addr add 10.0.0.11/32 dev eth0", "ip route add 10.0.0.1 dev eth0 scope link",
                    "ip route add default via 10.0.0.1 dev eth0",
                    "ip link add cilium_host type veth peer name cilium_net",
                    "ip link set cilium_net up", "ip link set cilium_host up",
                    "ip addr add 10.244.1.1/32 dev cilium_host",
                    "ip addr add 10.244.1.7/32 dev cilium_host",
                ]
                + (0..<Self.pods).flatMap {
                    [
                        "ip link add lxc\($0) type veth peer name pod\($0)", "ip link set pod\($0) up",
                        "ip link set lxc\($0) up",
                        "ip route add 10.244.1.\(20 + $0)/32 dev lxc\($0)",
                    ]
                }
            let result = Shell.run(commands.joined(separator: " && "))
            guard result.status == 0 else { throw Lab.Failure(description: result.errors) }
        }

        private func removeNode() {
            Shell.run(
                "ip link del eth0; ip link del cilium_host; for n in 0 1 2 3; do ip link del lxc$n; done; ip rule flush priority 105"
            )
        }

        @Test func betweenAnyTwoMessagesAPacketGoesByAnAssignedGatewayOrNowhere() throws {
            try makeNode()
            defer { removeNode() }
            let reconciler = try Reconciler()
            let asker = try NetlinkSocket(bus: routeBus)
            defer { _ = try? Reconciler().apply(HostState()) }
            var random = SeededGenerator(seed: 5)
            var ids = AssignedIDs()
            var memory = PlannerMemory()
            var before: (world: ChangingCluster.World, plan: Plan)?
            var transitions = 0
            var lookups = 0
            var routed = 0
            for _ in 0..<200 {
                var world =
                    before.map { Bool.random(using: &random) ? $0.world : ChangingCluster.world(&random) }
                    ?? ChangingCluster.world(&random)
                world.configuration.tunnelProtocol = .vxlan
                // The pair of next hops for strict filters is shown in the scenarios: it needs routes that the kernel checks.
                world.attachments = ChangingCluster.pods(&random, before: before?.world.attachments ?? [])
                world.expected = ChangingCluster.expected(&random, besides: world.attachments)
                world.facts.lastOverlayAddress =
                    before?.world.facts.overlayAddress ?? before?.world.facts.lastOverlayAddress
                let plan = Planner.plan(
                    configuration: world.configuration, localFacts: world.facts, inventory: world.inventory,
                    attachments: world.attachments, expected: world.expected, previousIDs: ids, memory: &memory)
                let links = try asker.links()
                let incoming = Dictionary(uniqueKeysWithValues: links.map { ($0.name, $0.index) })
                reconciler.afterEachStep = { step in
                    guard let last = before else { return }
                    let names = Dictionary(
                        uniqueKeysWithValues: ((try? asker.links()) ?? []).map { ($0.index, $0) })
                    for pod in world.attachments where last.world.attachments.contains(where: { $0.id == pod.id }) {
                        guard let device = incoming["lxc\(pod.containerID.dropFirst())"] else { continue }
                        for probe in ChangingCluster.probes {
                            let old = ChangingCluster.promise(last.plan, last.world, pod, probe)
                            let new = ChangingCluster.promise(plan, world, pod, probe)
                            guard old.isClaimed && new.isClaimed else { continue }
                            lookups += 1
                            guard
                                case .route(let out, let gateway, _)? = try? asker.lookUp(
                                    probe, from: pod.addresses[0].address, incoming: device)
                            else { continue }
                            routed += 1
                            let name = names[out]?.name ?? "\(out)"
                            let what = "\(pod.id) to \(probe) by \(name) after \(step.operations)"
                            guard let gateway, gateway != TunnelLinks.nobody else {
                                #expect(gateway != nil, "\(what): not by a tunnel")
                                continue
                            }
                            #expect(name.hasPrefix(Ownership.linkPrefix), "\(what)")
                            let ends = old.ends.union(new.ends)
                            if gateway == VXLANEncapsulation.selfGateway {
                                #expect(
                                    !ends.isDisjoint(with: ["10.244.1.1", "10.244.1.7"].compactMap { IPAddress($0) }),
                                    "\(what)")
                            } else {
                                #expect(ends.contains(gateway), "\(what): \(gateway) is none of \(ends)")
                            }
                        }
                    }
                }
                let outcome = try reconciler.apply(plan.host)
                #expect(outcome.isComplete, "\(outcome.failures)")
                #expect(try reconciler.differences(plan.host) == [])
                if outcome.count > 0 { transitions += 1 }
                ids = plan.ids
                ids.retired = .init()
                world.remember(plan)
                before = (world, plan)
            }
            print("StepwiseTests: \(transitions) transitions, \(lookups) look-ups, \(routed) with a way")
            #expect(transitions >= 50 && lookups > 1000 && routed > 300)
        }

        /// `NETLINK_ROUTE`, without importing the kernel's headers here.
        private var routeBus: Int32 { 0 }
    }
}

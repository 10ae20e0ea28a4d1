import Model
import TestSupport
import Testing

@testable import Planner

/// Overlays other than Cilium's: where tunnels end, and who can be a gateway.
struct OverlayTests {
    /// The test cluster without anything of Cilium's.
    static var inventory: Inventory {
        var inventory = TestCluster.inventory
        for name in inventory.nodes.keys { inventory.nodes[name]?.overlayAddresses = [] }
        inventory.cilium = nil
        return inventory
    }

    static func plan(
        _ node: String, _ overlay: Configuration.Overlay, _ inventory: Inventory = inventory,
        change: (inout LocalFacts) -> Void = { _ in }
    ) -> Plan {
        var (configuration, facts) = (Configuration(), LocalFacts(nodeName: node))
        configuration.overlay = overlay
        change(&facts)
        return Planner.plan(
            configuration: configuration, localFacts: facts, inventory: inventory,
            attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: node, attached: []))
    }

    @Test(arguments: [
        (Configuration.Overlay.none, "10.0.0.11", "10.0.0.13", 1480), (.flannel, "10.244.1.0", "10.244.3.0", 1430),
    ])
    func aNodeCanBeAGatewayByTheAddressThatTunnelsEndAt(
        _ overlay: Configuration.Overlay, _ local: String, _ remote: String, _ mtu: Int
    ) throws {
        let plan = Self.plan("n1", overlay)
        let pod = try #require(plan.attachments.first { $0.attachment.podName == "a" })
        #expect(pod.policies.map(\.gateway) == ["n3", "n3"] && pod.refusal == "" && !pod.isHeld)
        #expect(plan.policies.allSatisfy { $0.gateway == "n3" && $0.problem == "" }, "\(plan.policies)")
        let kind = Link.Kind.ipip(local: try #require(IPAddress(local)), remote: IPAddress(remote), fouPort: nil)
        let tunnel = try #require(plan.host.links.first { $0.kind == kind }, "\(plan.host.links)")
        #expect(tunnel.address == IPAddress(local) && tunnel.mtu == mtu)
        // The gateway takes packets of n1's pods from n1's end, and translates them.
        let gateway = Self.plan("n3", overlay)
        let sources = try #require(gateway.host.firewall?.sets.first { $0.name == "tunnel_peers_24" })
        let pods = try #require(IPNetwork("10.244.1.0/24")).address.v4Value
        let end = try #require(IPAddress(local)).v4Value
        #expect(sources.elements.contains(.init(pair: end, first: pods, last: pods)))
        #expect(gateway.policies.allSatisfy { $0.isLocalGateway })
    }

    /// The kernel drops what comes in from an address of its own.
    @Test func echoesComeFromAnAddressThatIsNotTheTunnelsEnd() {
        #expect(Self.plan("n1", .flannel).liveness.source == IPAddress("10.244.1.254"))
        #expect(Self.plan("n1", .flannel).liveness.destination == IPAddress("10.244.1.0"))
        #expect(Self.plan("n1", .none).liveness.source == IPAddress("10.244.1.0"))
        #expect(Self.plan("n1", .none).liveness.destination == IPAddress("10.0.0.11"))
    }

    @Test(arguments: [
        (Configuration.Overlay.cilium, "overlay address (cilium_host)"), (.flannel, "pod network"),
        (.none, "IPv4 address"),
    ])
    func whatIsMissingOfANodeIsCalledByItsName(_ overlay: Configuration.Overlay, _ name: String) throws {
        var inventory = overlay == .cilium ? TestCluster.inventory : Self.inventory
        for node in inventory.nodes.keys {
            inventory.nodes[node]?.overlayAddresses = []
            inventory.nodes[node]?.podCIDRs = []
            inventory.nodes[node]?.internalIPs = []
        }
        let plan = Self.plan("n1", overlay, inventory)
        #expect(plan.policies.allSatisfy { $0.problem.contains(name) }, "\(plan.policies.map(\.problem))")
        #expect(plan.attachments.contains { $0.refusal.contains(name) })
        #expect(plan.warnings.contains { $0.contains(overlay == .cilium ? "cilium_host" : name) }, "\(plan.warnings)")
    }

    /// Without an overlay the replies come in by the uplink.
    @Test func aStrictUplinkIsToldOfWhereRepliesComeInByIt() {
        func strict(_ facts: inout LocalFacts) {
            facts.interfaces = [
                .init(name: "underlay", addresses: [], hostAddresses: [], reversePathFilter: 1)
            ]
        }
        #expect(Self.plan("n1", .none, change: strict).warnings.contains { $0.contains("rp_filter of underlay is 1") })
        #expect(Self.plan("n1", .none, change: strict).liveness.obstacle.contains("rp_filter of underlay is 1"))
        // (Connections from outside are another matter.)
        #expect(!Self.plan("n1", .flannel, change: strict).warnings.contains { $0.contains("which come in by it") })
        #expect(!Self.plan("n1", .none).warnings.contains { $0.contains("rp_filter") || $0.contains("cilium_host") })
    }

    @Test func granularityFullSaysWhatTheOverlayCarriesUnencrypted() {
        func warns(
            _ overlay: Configuration.Overlay, _ granularity: MeshConfiguration.Granularity, encrypted: Bool = false,
            apart: Bool = false
        ) -> Bool {
            var inventory = TestCluster.inventory
            var configuration = Configuration()
            configuration.overlay = overlay
            configuration.mesh.enabled = true
            configuration.mesh.granularity = granularity
            for number in 1...3 {
                inventory.nodes["n\(number)"]?.mesh.key = MeshManifests.wireGuardKey(number)
                inventory.nodes["n\(number)"]?.mesh.privateAddress = InterfaceAddress(
                    IPAddress(v4: 0x0A00_000A + UInt32(number)))
                if apart { inventory.nodes["n\(number)"]?.mesh.location = "l\(number)" }
            }
            if encrypted { inventory.cilium?.data["enable-wireguard"] = "true" }
            let plan = Planner.plan(
                configuration: configuration, localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: [])
            return plan.warnings.contains {
                $0.contains("granularity full does not encrypt") && $0.contains("2 other nodes")
            }
        }
        #expect(warns(.cilium, .full))
        #expect(warns(.flannel, .full))
        #expect(!warns(.cilium, .location))
        #expect(!warns(.none, .full), "there WireGuard carries the pods")
        #expect(!warns(.cilium, .full, encrypted: true))
        #expect(!warns(.cilium, .full, apart: true))
    }
}

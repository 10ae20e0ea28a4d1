import Model
import TestSupport
import Testing

@testable import Planner

@Suite struct MeshPlanTests {
    typealias M = MeshManifests

    /// Routes of the main table and of the location's, as `destination way`.
    func routes(_ plan: Plan) -> [String] {
        plan.host.routes.filter { $0.kind != .unreachable && $0.table != Ownership.guardTable }.map { route in
            let way =
                switch route.kind {
                case .device(let name): name
                case .via(let address, let device): "\(address) \(device)"
                default: "\(route.kind)"
                }
            return (route.table == Rule.mainTable ? "" : "in: ") + "\(route.destination.routeText) \(way)"
        }.sorted()
    }

    // MARK: overlays and strategies

    struct Case: CustomTestStringConvertible, Sendable {
        let overlay: Configuration.Overlay
        let strategy: MeshConfiguration.Strategy
        var local = false
        var sameSubnet = false
        /// n2, which is not the gateway: the way to another location.
        let member: String
        /// n1, the gateway: what it does with packets for n2 from elsewhere.
        let inward: [String]
        /// Of both: routes to pods of the own location.
        var pods: [String] = []
        var testDescription: String {
            "\(overlay.rawValue) \(strategy.rawValue)\(local ? " local" : "")\(sameSubnet ? " same subnet" : "")"
        }
    }
    static let throughTunnel = ["in: 10.1.0.12 10.244.2.1 cni-culvert0", "in: 10.244.2.0/24 10.244.2.1 cni-culvert0"]
    static let bareTunnel = ["in: 10.1.0.12 10.1.0.12 cni-culvert0", "in: 10.244.2.0/24 10.1.0.12 cni-culvert0"]
    static let cases = [
        Case(overlay: .cilium, strategy: .always, member: "cni-culvert-1", inward: throughTunnel),
        Case(overlay: .cilium, strategy: .always, sameSubnet: true, member: "cni-culvert-1", inward: throughTunnel),
        Case(overlay: .cilium, strategy: .crosssubnet, member: "cni-culvert-1", inward: throughTunnel),
        Case(
            overlay: .cilium, strategy: .crosssubnet, sameSubnet: true, member: "10.1.0.11 underlay", inward: []),
        Case(overlay: .cilium, strategy: .never, member: "10.1.0.11 underlay", inward: []),
        Case(
            overlay: .flannel, strategy: .always, member: "10.244.1.0 flannel.1",
            inward: ["in: 10.1.0.12 10.244.2.0 flannel.1"]),
        Case(
            overlay: .flannel, strategy: .crosssubnet, member: "10.244.1.0 flannel.1",
            inward: ["in: 10.1.0.12 10.244.2.0 flannel.1"]),
        Case(overlay: .flannel, strategy: .crosssubnet, sameSubnet: true, member: "10.1.0.11 underlay", inward: []),
        Case(overlay: .flannel, strategy: .never, member: "10.1.0.11 underlay", inward: []),
        Case(overlay: .none, strategy: .always, member: "cni-culvert-1", inward: bareTunnel),
        Case(
            overlay: .none, strategy: .always, local: true, member: "cni-culvert-1", inward: bareTunnel,
            pods: ["10.1.0.12 cni-culvert0", "10.1.0.11 cni-culvert0"]),
        Case(overlay: .none, strategy: .crosssubnet, member: "cni-culvert-1", inward: bareTunnel),
        Case(
            overlay: .none, strategy: .crosssubnet, local: true, sameSubnet: true, member: "10.1.0.11 underlay",
            inward: [],
            pods: ["10.1.0.12 underlay", "10.1.0.11 underlay"]),
        Case(overlay: .none, strategy: .never, member: "10.1.0.11 underlay", inward: []),
        Case(
            overlay: .none, strategy: .never, local: true, member: "10.1.0.11 underlay", inward: [],
            pods: ["10.1.0.12 underlay", "10.1.0.11 underlay"]),
    ]

    @Test(arguments: cases) func everyOverlayWithEveryStrategy(_ test: Case) throws {
        var inventory = try M.inventory(M.twoByTwo)
        if test.sameSubnet {
            for name in ["n1", "n2", "n3", "n4"] {
                guard let address = inventory.nodes[name]?.mesh.privateAddress?.address else { continue }
                inventory.nodes[name]?.mesh.privateAddress = InterfaceAddress(address, prefixLength: 24)
            }
        }
        let change = { (configuration: inout Configuration) in
            configuration.mesh.strategy = test.strategy
            configuration.mesh.manageLocalRoutes = test.local
        }
        let others = ["10.2.0.13", "10.2.0.14", "10.244.3.0/24", "10.244.4.0/24", "10.4.0.2"]
        let member = M.plan("n2", inventory, overlay: test.overlay, change)
        let ownPods = test.pods.isEmpty ? [] : ["10.244.1.0/24 \(test.pods[1])"]
        let fromPods =
            test.pods.first?.hasSuffix("cni-culvert0") == true ? ["in: 10.1.0.11 10.1.0.11 cni-culvert0"] : []
        #expect(
            routes(member) == ((others + ["10.4.0.1"]).map { "\($0) \(test.member)" } + ownPods + fromPods).sorted())
        #expect(member.host.wireGuard == nil)

        let gateway = M.plan("n1", inventory, overlay: test.overlay, change)
        let gatewayPods = test.pods.isEmpty ? [] : ["10.244.2.0/24 \(test.pods[0])"]
        #expect(routes(gateway) == (others.map { "\($0) cni-culvert-wg" } + test.inward + gatewayPods).sorted())
        #expect(
            gateway.host.wireGuard?.peers.map { $0.allowedIPs.map(\.description).joined(separator: " ") } == [
                "10.2.0.13/32 10.2.0.14/32 10.4.0.2/32 10.244.3.0/24 10.244.4.0/24"
            ])
        #expect(gateway.host.wireGuard?.peers.first?.endpoint?.description == "198.51.100.3:51820")
        #expect(gateway.host.rules.contains { $0.incoming == "cni-culvert-wg" && $0.priority == 105 })
    }

    @Test func aPrivateAddressThatIsTheEndpointIsNotRoutedThroughItsTunnel() throws {
        let inventory = try M.inventory(
            M.node(1, location: "a", address: "10.1.0.11") + M.node(3, location: "b", address: "10.2.0.13"))
        #expect(routes(M.plan("n1", inventory)) == ["10.244.3.0/24 cni-culvert-wg", "10.4.0.2 cni-culvert-wg"])
    }

    @Test func aPeerForEverythingIsNotRoutedBecauseItHoldsAnEndpoint() throws {
        let inventory = try M.inventory(
            M.twoByTwo
                + "---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: exit}\nspec: {publicKey: '\(M.key(99))', allowedIPs: [0.0.0.0/0, 10.7.0.1/32]}\n"
        )
        let plan = M.plan("n1", inventory)
        #expect(!routes(plan).contains("default cni-culvert-wg"))
        #expect(routes(plan).contains("10.7.0.1 cni-culvert-wg"))
        #expect(plan.warnings.contains { $0.contains("exit: 0.0.0.0/0 holds the endpoint") })
    }

    /// Where a gateway says that it is, is its private address; where it is seen, is not: then that address is reached by the
    /// mesh, as those of others are.
    @Test func thePrivateAddressOfAGatewayBehindANATIsRoutedOnceItIsSeenElsewhere() throws {
        let seen = #"{"\#(M.key(4))":{"IP":"198.51.100.99","Port":4711,"Zone":""}}"#
        func plan(_ seen: [String: String]) throws -> Plan {
            M.plan(
                "n1",
                try M.inventory(
                    M.node(1, location: "a", address: "10.1.0.11", external: "198.51.100.1", more: seen)
                        + M.node(4, location: "c", address: "10.3.0.14", more: ["persistent-keepalive": "5"])))
        }
        let unseen = try plan([:])
        #expect(unseen.host.wireGuard?.peers.first?.endpoint?.description == "10.3.0.14:51820")
        #expect(!routes(unseen).contains { $0.hasPrefix("10.3.0.14 ") }, "that would be a loop")
        let found = try plan(["discovered-endpoints": seen])
        #expect(found.host.wireGuard?.peers.first?.endpoint?.description == "198.51.100.99:4711")
        #expect(routes(found).contains("10.3.0.14 cni-culvert-wg"))
    }

    /// The network between would drop an answer from that address.
    @Test func aGatewayAnswersItsOwnLocationFromItsWireGuardAddressByTheTunnel() throws {
        func rules(_ strategy: MeshConfiguration.Strategy, _ node: String) throws -> [Rule] {
            M.plan(node, try M.inventory(M.twoByTwo)) { $0.mesh.strategy = strategy }.host.rules.filter {
                $0.table == Ownership.locationTable && $0.source != nil
            }
        }
        #expect(try rules(.always, "n1").map { "\($0.source!)" } == ["10.4.0.1/32"])
        #expect(try rules(.always, "n2") == [])
        #expect(try rules(.never, "n1") == [])
    }

    // MARK: the own endpoint, beside Kilo

    struct Own: CustomTestStringConvertible, Sendable {
        let testDescription: String
        var external: String?
        var interfaces: [(String, [String])] = []
        var annotations: [String: String] = [:]
        let endpoint: String
    }
    static let owns = [
        Own(testDescription: "the private address, where there is no other", endpoint: "10.1.0.11:51820"),
        Own(testDescription: "the external one", external: "198.51.100.1", endpoint: "198.51.100.1:51820"),
        Own(
            testDescription: "a public one of an interface",
            interfaces: [("eth1", ["203.0.113.2"]), ("eth0", ["10.1.0.11", "203.0.113.1"])],
            endpoint: "203.0.113.1:51820"),
        Own(
            testDescription: "of any interface but Kilo's",
            interfaces: [("eth0", ["10.1.0.11"]), ("kilo0", ["203.0.113.9"]), ("eth1", ["203.0.113.2"])],
            endpoint: "203.0.113.2:51820"),
        Own(
            testDescription: "never what was published before",
            annotations: ["endpoint": "203.0.113.66:51820"], endpoint: "10.1.0.11:51820"),
        Own(
            testDescription: "what the user forces", external: "198.51.100.1",
            annotations: ["endpoint": "203.0.113.66:51820", "force-endpoint": "vpn.example.org:4500"],
            endpoint: "vpn.example.org:4500"),
    ]
    @Test(arguments: owns) func theOwnEndpointIsWorkedOutAnewEachTime(_ own: Own) throws {
        let inventory = try M.inventory(
            M.node(1, location: "a", address: "10.1.0.11", external: own.external, more: own.annotations))
        var facts = LocalFacts(nodeName: "n1", isLive: true)
        facts.underlayDevice = "eth0"
        facts.interfaces = own.interfaces.map { name, addresses in
            .init(name: name, addresses: [], hostAddresses: addresses.compactMap { IPAddress($0) })
        }
        var configuration = MeshConfiguration()
        configuration.kiloInterop = true
        let node = try #require(inventory.nodes["n1"])
        #expect(
            MeshPlan.ownEndpoint(of: node, facts: facts, configuration: configuration)?.description == own.endpoint)
        // The plan sees it as all others will.
        let nodes = MeshPlan.withOwnFacts(inventory, facts: facts, kiloMesh: configuration)
        #expect(nodes["n1"]?.mesh.endpoint?.description == own.endpoint)
        #expect(MeshPlan.withOwnFacts(inventory, facts: facts, kiloMesh: nil)["n1"] == node)
    }

    @Test func aPeerBehindANATIsFoundWhereAnotherNodeHasSeenIt() throws {
        let seen = #"{"\#(M.key(4))":{"IP":"192.0.2.7","Port":4242,"Zone":""}}"#
        let text =
            M.node(1, location: "a", address: "10.1.0.11", external: "198.51.100.1")
            + M.node(
                3, location: "b", address: "10.2.0.13", external: "198.51.100.3", more: ["discovered-endpoints": seen])
        func endpoint(_ more: [String: String]) throws -> String? {
            let inventory = try M.inventory(text + M.node(4, location: "c", address: "10.3.0.14", more: more))
            return M.plan("n1", inventory).host.wireGuard?.peers.first { $0.publicKey.text == M.key(4) }?.endpoint?
                .description
        }
        #expect(try endpoint(["persistent-keepalive": "5"]) == "192.0.2.7:4242")
        #expect(try endpoint([:]) == "10.3.0.14:51820", "without a keepalive it is not behind a NAT")
    }

    /// A gateway sees its own location's nodes at their private addresses; that helps nobody elsewhere.
    @Test func aPrivateAddressThatAnotherLocationHasSeenIsNotUsed() throws {
        func seen(_ address: String) -> [String: String] {
            ["discovered-endpoints": #"{"\#(M.key(4))":{"IP":"\#(address)","Port":51820,"Zone":""}}"#]
        }
        let inventory = try M.inventory(
            M.node(1, location: "a", address: "10.1.0.11", external: "198.51.100.1")
                + M.node(3, location: "b", address: "10.2.0.13", external: "198.51.100.3", more: seen("10.2.0.14"))
                + M.node(4, location: "b", address: "10.2.0.14", more: ["persistent-keepalive": "5"])
                + M.node(5, location: "c", address: "10.3.0.15", external: "198.51.100.5", more: seen("192.0.2.2")))
        func endpoint(_ node: String) -> String? {
            M.plan(node, inventory) { $0.mesh.granularity = .full }.host.wireGuard?.peers
                .first { $0.publicKey.text == M.key(4) }?.endpoint?.description
        }
        #expect(endpoint("n1") == "192.0.2.2:51820")
        #expect(endpoint("n3") == "10.2.0.14:51820")
    }

    @Test func aNameIsOnlyAnEndpointOnceItHasAnAddress() throws {
        let inventory = try M.inventory(
            M.node(1, location: "a", address: "10.1.0.11")
                + M.node(3, location: "b", address: "10.2.0.13", more: ["force-endpoint": "gw.example.org:4500"]))
        var facts = LocalFacts(nodeName: "n1")
        var configuration = Configuration()
        configuration.mesh.enabled = true
        func endpoint() -> String? {
            Planner.plan(configuration: configuration, localFacts: facts, inventory: inventory, attachments: [])
                .host.wireGuard?.peers.first?.endpoint?.description
        }
        #expect(endpoint() == nil)
        facts.resolvedNames = ["gw.example.org": IPAddress(v4: 0xCB00_7105)]
        #expect(endpoint() == "203.0.113.5:4500")
    }

    @Test func podsGetRoutesOfTheSizeThatPassesEverything() throws {
        let inventory = try M.inventory(M.twoByTwo)
        var configuration = Configuration()
        configuration.mesh.enabled = true
        let attachment = Attachment(
            containerID: "c", interfaceName: "eth0", network: "x", podNamespace: "", podName: "", podUID: "",
            addresses: [IPNetwork("10.244.2.10/32")].compactMap { $0 }, labels: [:], annotations: [:], defaultPolicy: ""
        )
        let plan = Planner.plan(
            configuration: configuration, localFacts: LocalFacts(nodeName: "n2"), inventory: inventory,
            attachments: [attachment])
        // 1500, less 50 of VXLAN and 20 of IPIP, less the 10 that eBPF host routing takes.
        #expect(
            plan.attachments.first?.podRoutes.map { "\($0.destination) \($0.mtu)" } == [
                "10.2.0.13/32 1420", "10.2.0.14/32 1420", "10.4.0.2/32 1420", "10.244.3.0/24 1420",
                "10.244.4.0/24 1420",
            ])
        #expect(plan.meshMTU.map(\.bytes) == [1500, 1440, 1430, 1420])
    }

    @Test func rangesAreCoveredByTheFewestNetworks() {
        for (first, last, expected) in [
            (0, UInt32.max, ["0.0.0.0/0"]), (1, 6, ["0.0.0.1/32", "0.0.0.2/31", "0.0.0.4/31", "0.0.0.6/32"]),
            (UInt32.max, UInt32.max, ["255.255.255.255/32"]), (256, 1023, ["0.0.1.0/24", "0.0.2.0/23"]),
        ] as [(UInt32, UInt32, [String])] {
            #expect(IPRanges.networks(first...last).map(\.description) == expected)
        }
    }

    @Test func noPresharedKeyIsShown() throws {
        let secret = M.key(77)
        let inventory = try M.inventory(
            M.twoByTwo
                + "---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: p}\nspec: {publicKey: '\(M.key(99))', presharedKey: '\(secret)', allowedIPs: [10.7.0.1/32]}\n"
        )
        let plan = M.plan("n1", inventory)
        #expect(plan.host.wireGuard?.peers.contains { $0.presharedKey?.text == secret } == true)
        #expect(!PlanJSON.render(plan).text(indent: 2).contains(secret))
    }
}

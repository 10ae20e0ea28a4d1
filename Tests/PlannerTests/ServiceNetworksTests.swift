import Model
import TestSupport
import Testing

@testable import Inventory
@testable import Planner
@testable import Reconcile

/// Networks of Services are found in the cluster's own objects, and no policy claims them.
struct ServiceNetworksTests {
    static let manifests = """
        apiVersion: v1
        kind: List
        items:
        - {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16, "fd00:96::/112"]}}
        - {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [10.97.0.0/24]}}
        - {apiVersion: v1, kind: Service, metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.99.0.1}}
        - {apiVersion: v1, kind: Service, metadata: {name: kubernetes, namespace: shop}, spec: {clusterIP: 203.0.113.10}}
        - {apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {clusterIP: 203.0.113.11}}
        - {apiVersion: v1, kind: ConfigMap, metadata: {name: kubeadm-config, namespace: shop},
           data: {ClusterConfiguration: "networking: {serviceSubnet: 203.0.113.0/24}"}}
        ---
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: kubeadm-config, namespace: kube-system}
        data:
          ClusterConfiguration: |
            apiVersion: kubeadm.k8s.io/v1beta4
            kind: ClusterConfiguration
            networking:
              podSubnet: 10.244.0.0/16
              serviceSubnet: 10.112.0.0/16, fd00:97::/112
        """

    static func inventory(_ text: String) throws -> Inventory {
        switch Manifests.parse(text, file: "f") {
        case .success(let objects): return Inventory(assembling: ["f": objects])
        case .failure(let problems): throw problems
        }
    }

    @Test func serviceNetworksAreReadFromTheClustersObjectsAndFromNoTenants() throws {
        let services = try Self.inventory(Self.manifests).services
        #expect(
            services.all.map(\.description).sorted() == [
                "10.112.0.0/16", "10.96.0.0/16", "10.97.0.0/24", "10.99.0.1/32", "fd00:96::/112", "fd00:97::/112",
            ])
        #expect(services.apiServer == [IPAddress("10.99.0.1")])
        let objects = try Manifests.parse(Self.manifests, file: "f").get()
        let again = try Manifests.parse(ManifestWriter.list(objects), file: "cache").get()
        #expect(again == objects)
    }

    @Test(arguments: [
        (
            "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: s}, spec: {cidrs: [0.0.0.0/0]}}",
            "larger than a network of Services can be"
        ),
        (
            "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: s}, spec: {cidrs: [x]}}",
            "not a network"
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: kubeadm-config}, data: {ClusterConfiguration: \"networking: {serviceSubnet: 0.0.0.0/1}\"}}",
            "larger than"
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: kubeadm-config}, data: {ClusterConfiguration: \"a: [\"}}",
            "data.ClusterConfiguration"
        ),
    ])
    func aNetworkThatWouldSwitchPoliciesOffOrIsMalformedIsRefused(_ text: String, _ why: String) throws {
        guard case .failure(let problems) = Manifests.parse(text, file: "f") else {
            Issue.record("was taken")
            return
        }
        #expect(problems.list.contains { $0.description.contains(why) }, "\(problems.list)")
    }

    func plan(_ services: ServiceNetworks, _ change: (inout Configuration, inout LocalFacts, inout Inventory) -> Void)
        -> Plan
    {
        var inventory = TestCluster.inventory
        inventory.services = services
        var (configuration, facts) = (Configuration(), LocalFacts(nodeName: "n1"))
        change(&configuration, &facts, &inventory)
        return Planner.plan(
            configuration: configuration, localFacts: facts, inventory: inventory,
            attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: []))
    }
    func keeps(_ plan: Plan, _ network: String) -> Bool {
        guard let network = IPNetwork(network) else { return false }
        return plan.host.routes.contains { $0.kind == .throwOn && $0.destination.contains(network) }
    }

    @Test func noPolicyClaimsAServiceNetworkOrTheAPIServersAddress() throws {
        let plan = plan(try Self.inventory(Self.manifests).services) { _, facts, _ in
            facts.apiServerAddress = IPAddress("172.20.0.1")
        }
        for network in ["10.96.0.0/16", "10.97.0.0/24", "10.112.0.0/16", "10.99.0.1/32", "172.20.0.1/32"] {
            #expect(keeps(plan, network), "\(network)")
        }
        #expect(!keeps(plan, "10.98.0.0/32") && !keeps(plan, "172.20.0.2/32"))
    }

    /// A memory that was made before a ServiceCIDR came must not hide it.
    @Test func aServiceNetworkThatComesLaterIsKeptToo() throws {
        var (inventory, memory) = (TestCluster.inventory, PlannerMemory())
        func plan() -> Plan {
            Planner.plan(
                configuration: Configuration(), localFacts: LocalFacts(nodeName: "n1"), inventory: inventory,
                attachments: Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: []),
                memory: &memory)
        }
        #expect(!keeps(plan(), "10.96.0.0/16"))
        inventory.services.objects["kubernetes"] = [IPNetwork("10.96.0.0/16")].compactMap { $0 }
        let later = plan()
        #expect(keeps(later, "10.96.0.0/16"))
        #expect(!later.warnings.contains { $0.contains("Services are not known") })
    }

    @Test func aPolicyThatClaimsEverythingWithoutAKnownServiceNetworkIsWarnedOf() {
        func warns(
            _ services: ServiceNetworks = .init(),
            _ change: (inout Configuration, inout LocalFacts, inout Inventory) -> Void = { _, _, _ in }
        ) -> Bool {
            plan(services, change).warnings.contains { $0.contains("Services are not known") }
        }
        var known = ServiceNetworks()
        known.kubeadm = [IPNetwork("10.96.0.0/12")].compactMap { $0 }
        var onlyTheServer = ServiceNetworks()
        onlyTheServer.apiServer = [IPAddress("10.96.0.1")].compactMap { $0 }
        #expect(warns())
        #expect(!warns(known))
        // One address says nothing of the network that it lies in.
        #expect(warns(onlyTheServer))
        #expect(!warns { configuration, _, _ in configuration.serviceCIDRs = known.kubeadm })
        #expect(!warns { _, _, inventory in inventory.cilium?.data["ipv4-service-range"] = "10.96.0.0/12" })
        for (destination, exclusions, expected) in [
            ("10.0.0.0/8", [], true), ("172.16.0.0/12", [], true), ("10.96.0.0/12", [], true),
            ("203.0.113.0/24", [], false), ("10.1.2.0/24", [], false), ("10.0.0.0/8", ["10.0.0.0/8"], false),
            ("0.0.0.0/0", ["10.0.0.0/8"], true),
            ("0.0.0.0/0", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"], false),
        ] as [(String, [String], Bool)] {
            let found = warns { _, _, inventory in
                inventory.policies = [
                    TestCluster.policy("p", destinations: [destination], exclusions: exclusions)
                ]
            }
            #expect(found == expected, "\(destination) without \(exclusions)")
        }
        // A policy of other nodes is theirs to tell of.
        let elsewhere = warns { _, _, inventory in
            inventory.policies = [TestCluster.policy("p")]
            inventory.policies[0].selectors[0].node = LabelSelector(matchLabels: ["zone": "z2"])
        }
        #expect(!elsewhere)
    }

    @Test func theKubeletTellsTheAPIServersAddress() {
        #expect(LocalFactsReader.apiServerAddress(["KUBERNETES_SERVICE_HOST": "10.96.0.1"]) == IPAddress("10.96.0.1"))
        #expect(LocalFactsReader.apiServerAddress(["KUBERNETES_SERVICE_HOST": "localhost"]) == nil)
        #expect(LocalFactsReader.apiServerAddress([:]) == nil)
    }
}

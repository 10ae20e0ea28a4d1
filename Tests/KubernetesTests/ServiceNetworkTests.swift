import Foundation
import Inventory
import Jansson
import Model
import TestSupport
import Testing

@testable import Kubernetes

/// Networks of Services as the API server tells them, with exactly the verbs of install/kubernetes/base/rbac.yaml.
@Suite(.serialized) struct ServiceNetworkTests {
    typealias Cluster = KubernetesInventoryTests.Cluster

    static func serviceCIDR(_ name: String, _ network: String) -> String {
        "{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"ServiceCIDR\",\"metadata\":{\"name\":\"\(name)\"},\"spec\":{\"cidrs\":[\"\(network)\"]}}"
    }
    static let kubeadm =
        "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"kubeadm-config\",\"namespace\":\"kube-system\"},\"data\":{\"ClusterConfiguration\":\"networking: {serviceSubnet: 10.112.0.0/16}\"}}"

    static func networks(_ inventory: KubernetesInventory) async -> [String] {
        await inventory.inventory().services.all.map(\.description)
    }
    static func isAllThatIsMissing(_ match: String, in inventory: KubernetesInventory) async -> Bool {
        let unknown = await inventory.inventory().unknown
        return unknown.count == 1 && unknown[0].contains(match)
    }
    static func eventually(_ condition: () async -> Bool) async -> Bool {
        for _ in 0..<300 {
            if await condition() { return true }
            try? await Task.sleep(for: .milliseconds(50))
        }
        return false
    }

    @Test func serviceCIDRsAreFollowedAndKubeadmsConfigurationIsRead() async throws {
        let cluster = try Cluster("services", cache: true)
        cluster.fill()
        cluster.server.apply([Self.serviceCIDR("kubernetes", "10.96.0.0/16"), Self.kubeadm])
        await cluster.inventory.start()
        #expect(await Self.networks(cluster.inventory) == ["10.96.0.0/16", "10.112.0.0/16"])
        cluster.server.apply([Self.serviceCIDR("more", "10.97.0.0/24")])
        #expect(await Self.eventually { await Self.networks(cluster.inventory).contains("10.97.0.0/24") })
        cluster.server.delete([Self.serviceCIDR("more", "10.97.0.0/24")])
        #expect(await Self.eventually { await !Self.networks(cluster.inventory).contains("10.97.0.0/24") })
        #expect(cluster.server.counters().denials.isEmpty, "\(cluster.server.counters().denials)")
        // A helper that starts while the server is away knows them from disk.
        await cluster.inventory.saveCache()
        cluster.server.fault("{\"disconnect\":true}")
        let second = try cluster.second()
        await second.start(patience: 0.5)
        #expect(await Self.networks(second) == ["10.96.0.0/16", "10.112.0.0/16"])
        #expect(await second.inventory().unknown == [])
        await second.stop()
        cluster.server.fault("{\"disconnect\":false}")
        await cluster.inventory.stop()
    }

    @Test func aServerWithoutServiceCIDRsHoldsNothingUpAndStatusSaysSo() async throws {
        let cluster = try Cluster("noservices")
        cluster.server.fault("{\"groupOff\":\"networking.k8s.io\"}")
        cluster.fill()
        await cluster.inventory.start()
        #expect(await cluster.inventory.inventory().unknown == [])
        let notices = await cluster.inventory.status()["notices"]?.text() ?? ""
        #expect(notices.contains("ServiceCIDR") && notices.contains("1.33"), "\(notices)")
        await cluster.inventory.stop()
    }

    @Test func anOlderRoleThatMayReadNeitherHoldsNothingUpAndStatusSaysSo() async throws {
        let cluster = try Cluster("oldrole")
        let role = try String(contentsOfFile: "\(Shell.packageRoot)/install/kubernetes/base/rbac.yaml", encoding: .utf8)
            .replacingOccurrences(of: ", kubeadm-config", with: "").replacingOccurrences(
                of: "[servicecidrs]", with: "[]")
        let documents = try YAMLDocuments.parse(role).map { $0.value.text() }.joined(separator: ",")
        cluster.server.fault("{\"rbac\":[\(documents)]}")
        cluster.fill()
        cluster.server.apply([Self.serviceCIDR("kubernetes", "10.96.0.0/16"), Self.kubeadm])
        await cluster.inventory.start()
        #expect(await cluster.inventory.inventory().unknown == [])
        #expect(await Self.networks(cluster.inventory) == [])
        let status = await cluster.inventory.status()
        #expect(
            status["notices"]?.text().contains("ServiceCIDR: permission to read it is missing") == true,
            "\(status.text())")
        #expect(status["problems"]?.text().contains("kubeadm-config is missing; apply") == true, "\(status.text())")
        await cluster.inventory.stop()
    }

    @Test func whileTheyCannotBeAskedForNothingIsKnown() async throws {
        for match in ["servicecidrs", "kubeadm-config"] {
            let cluster = try Cluster("unasked")
            cluster.fill()
            cluster.server.apply([Self.serviceCIDR("kubernetes", "10.96.0.0/16"), Self.kubeadm])
            cluster.server.fault("{\"status\":{\"code\":500,\"count\":100000,\"match\":\"\(match)\"}}")
            let inventory = cluster.inventory
            let start = Task { await inventory.start() }
            // Everything else is known after a while, and this is not.
            let isMissing = await Self.eventually { await Self.isAllThatIsMissing(match, in: inventory) }
            #expect(isMissing)
            try await Task.sleep(for: .seconds(1))
            let isStillMissing = await Self.isAllThatIsMissing(match, in: inventory)
            #expect(isStillMissing)
            cluster.server.fault("{\"status\":null}")
            await start.value
            #expect(await cluster.inventory.inventory().unknown == [])
            #expect(await Self.networks(cluster.inventory) == ["10.96.0.0/16", "10.112.0.0/16"])
            await cluster.inventory.stop()
        }
    }
}

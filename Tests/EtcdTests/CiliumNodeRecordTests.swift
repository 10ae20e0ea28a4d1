import Model
import Testing

@testable import Etcd

@Suite struct CiliumNodeRecordTests {
    static func record(_ text: String, name: String = "n1") throws -> CiliumNodeRecord {
        try CiliumNodeRecord(cluster: "default", name: name, value: Array(text.utf8))
    }

    @Test func aNodeOfCilium() throws {
        let record = try Self.record(
            """
            {"Name":"n1","Cluster":"default","ClusterID":3,"IPAddresses":[{"Type":"InternalIP","IP":"10.0.0.11"},
             {"Type":"CiliumInternalIP","IP":"10.244.1.7"},{"Type":"ExternalIP","IP":"198.51.100.1"}],
             "IPv4AllocCIDR":{"IP":"10.244.1.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":[{"IP":"10.245.0.0","Mask":"///wAA=="}],
             "IPv6AllocCIDR":null,"IPv4HealthIP":"10.244.1.9","Source":"local","Labels":{"zone":"z1"},"Annotations":null,"WireguardPubKey":""}
            """)
        #expect(record.cluster == "default" && record.clusterID == 3)
        #expect(record.node.internalIPs == [IPAddress("10.0.0.11")!] && record.node.labels == ["zone": "z1"])
        #expect(record.cilium.overlayAddresses == [IPAddress("10.244.1.7")!])
        #expect(record.cilium.podCIDRs == ["10.244.1.0/24", "10.245.0.0/20"].map { IPNetwork($0)! })
    }

    @Test(arguments: [
        ("{", "not JSON"), ("{\"Name\":\"other\"}", "Name is"), ("{\"IPAddresses\":[{\"IP\":\"x\"}]}", "is not an IP"),
        ("{\"IPv4AllocCIDR\":{\"IP\":\"10.0.0.0\",\"Mask\":\"/wD/AA==\"}}", "not contiguous"),
        ("{\"IPv4AllocCIDR\":{\"IP\":\"10.0.0.0\",\"Mask\":\"//8=\"}}", "another family"),
        ("{\"IPv4AllocCIDR\":{\"IP\":\"10.0.0.0\"}}", "not a network"),
    ])
    func whatIsNoNode(_ text: String, _ message: String) {
        let error = #expect(throws: CiliumNodeRecord.Malformed.self) { try Self.record(text) }
        #expect(error?.message.contains(message) == true, "\(error?.message ?? "")")
    }

    @Test(arguments: ["", "b/c", "/"]) func whatIsNoKey(_ name: String) {
        #expect(throws: CiliumNodeRecord.Malformed.self) { try Self.record("{}", name: name) }
    }

    @Test func whatAClusterSaysOfItself() {
        func config(_ text: String) -> CiliumClusterConfig? { CiliumClusterConfig(Array(text.utf8)) }
        #expect(config("{") == nil && config("[]") == nil)
        let config1 = config("{\"id\":7,\"capabilities\":{\"syncedCanaries\":true,\"maxConnectedClusters\":255}}")
        #expect(config1?.id == 7 && config1?.hasSyncedCanaries == true && config1?.isCached == false)
        #expect(config("{\"capabilities\":{\"cached\":true}}")?.isCached == true)
    }
}

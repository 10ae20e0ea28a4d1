import Model
import Testing

@testable import Etcd

@Suite struct CiliumNodeRecordTests {
    static let key = "cilium/state/nodes/v1/default/n1"
    static func record(_ text: String, key: String = key) throws -> CiliumNodeRecord {
        try CiliumNodeRecord(key: key, value: Array(text.utf8))
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
        ("{\"IPv4AllocCIDR\":{\"IP\":\"10.0.0.0\",\"Mask\":\"/wD/AA==\"}}", "holes"),
        ("{\"IPv4AllocCIDR\":{\"IP\":\"10.0.0.0\",\"Mask\":\"//8=\"}}", "another family"),
        ("{\"IPv4AllocCIDR\":{\"IP\":\"10.0.0.0\"}}", "not a network"),
    ])
    func whatIsNoNode(_ text: String, _ message: String) {
        let error = #expect(throws: CiliumNodeRecord.Malformed.self) { try Self.record(text) }
        #expect(error?.message.contains(message) == true, "\(error?.message ?? "")")
    }

    @Test(arguments: ["cilium/state/nodes/v1/n1", "cilium/state/nodes/v1/a/b/c", "cilium/state/nodes/v1//n1"])
    func whatIsNoKey(_ key: String) {
        #expect(throws: CiliumNodeRecord.Malformed.self) { try Self.record("{}", key: key) }
    }
}

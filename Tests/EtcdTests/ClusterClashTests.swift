import Foundation
import Model
import Testing

@testable import Etcd

@Suite struct ClusterClashTests {
    func record(_ name: String, _ networks: [IPNetwork]) throws -> CiliumNodeRecord {
        let lists = networks.map { network in
            let bytes =
                [UInt8](repeating: 0xFF, count: network.prefixLength / 8)
                + (network.prefixLength % 8 == 0 ? [] : [UInt8.max << UInt8(8 - network.prefixLength % 8)])
            let mask = Data(bytes + [UInt8](repeating: 0, count: network.family.bits / 8 - bytes.count))
            return "{\"IP\":\"\(network.address)\",\"Mask\":\"\(mask.base64EncodedString())\"}"
        }
        let v4 = zip(networks, lists).filter { $0.0.family == .v4 }.map(\.1)
        let v6 = zip(networks, lists).filter { $0.0.family == .v6 }.map(\.1)
        return try CiliumNodeRecordTests.record(
            "{\"Name\":\"\(name)\",\"IPv4SecondaryAllocCIDRs\":[\(v4.joined(separator: ","))],\"IPv6SecondaryAllocCIDRs\":[\(v6.joined(separator: ","))]}",
            name: name)
    }

    @Test func theFirstOverlapWithAnEarlierClusterIsNamedAndNoneWithinACluster() throws {
        var clashes = ClusterClashes()
        func add(_ name: String, _ networks: [String], of cluster: String, isOwn: Bool = false) throws -> String? {
            clashes.add(
                try record(name, networks.compactMap { IPNetwork($0) }), name, of: cluster, isOwn: isOwn)
        }
        let steps: [(name: String, networks: [String], clash: String?)] = [
            ("a1", ["10.1.0.0/24", "fd00:1::/64"], nil), ("a2", ["10.1.0.0/24"], nil), ("b1", ["10.2.0.0/24"], nil),
            ("b2", ["10.2.0.0/25"], nil),
            ("b3", ["10.3.0.0/24", "10.1.0.128/25"], "10.1.0.0/24 of node a1 of cluster a"),
            ("c1", ["10.0.0.0/8"], "of node a1 of cluster a"),
            // b3 was left out.
            ("c2", ["10.3.0.0/24"], nil), ("c3", ["fd00:1::/48"], "fd00:1::/64 of node a1"),
            ("d1", ["10.2.0.64/26"], "10.2.0.0/24 of node b1 of cluster b"),
        ]
        for (name, networks, clash) in steps {
            let cluster = String(name.prefix(1))
            let found = try add(name, networks, of: cluster, isOwn: cluster == "a")
            if let clash {
                #expect(found?.contains(clash) == true, "\(name): \(found ?? "")")
            } else {
                #expect(found == nil, "\(name): \(found ?? "")")
            }
        }
    }

    @Test func clustersOfThousandsOfNodesAreComparedInAMoment() throws {
        let records = try (0..<20_000).map { number in
            try record(
                "n\(number)", [IPNetwork(IPAddress(v4: 0x0A00_0000 + UInt32(number) << 8), prefixLength: 24)])
        }
        var clashes = ClusterClashes()
        var found = 0
        let spent = ContinuousClock().measure {
            for (number, record) in records.enumerated() {
                let cluster = number / 5000
                if clashes.add(record, "n\(number)", of: "c\(cluster)", isOwn: cluster == 0) != nil { found += 1 }
            }
        }
        #expect(found == 0)
        // Each compared with each other: a hundred and fifty million comparisons.
        #expect(spent < .seconds(10), "\(spent)")
    }
}

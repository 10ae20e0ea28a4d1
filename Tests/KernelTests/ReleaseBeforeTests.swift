import Foundation
import Model
import Testing

@testable import Agent

/// What the release before (06b13b5) has left on disk: the texts are those that its helpers wrote in the lab.
/// `UpgradeTests` runs that release's programs where they are at hand.
struct ReleaseBeforeTests {
    /// A policy in the lists of both.
    private static let shop = #"""
        {
          "source": "EgressPolicy",
          "name": "shop",
          "destinations": [
            "0.0.0.0/0"
          ],
          "exclusions": [],
          "egress": {
            "kind": "address",
            "value": "192.0.2.31"
          },
          "gateways": [
            "n3"
          ],
          "standing": "inForce",
          "reason": ""
        }
        """#
    static let attachment = #"""
        {
          "containerID": "x-web",
          "ifname": "eth0",
          "network": "cilium",
          "namespace": "default",
          "name": "web",
          "uid": "u-1",
          "addresses": [
            "10.244.1.10/32"
          ],
          "labels": {
            "app": "shop",
            "io.cilium.k8s.policy.serviceaccount": "teller"
          },
          "annotations": {},
          "defaultPolicy": "",
          "podRoutes": {
            "0.0.0.0/1": 1400,
            "128.0.0.0/1": 1400
          },
          "hostIndex": 8,
          "hostName": "lxcweb",
          "version": 2,
          "assignment": [
        \#(shop)
          ]
        }
        """#
    static let ids = #"""
        {
          "tunnels": {
            "vxlan/2864171546": 1
          },
          "tables": {
            "CiliumEgressGatewayPolicy/bank#0@b53ef2007c13e1a5": 47000,
            "EgressPolicy/shop#0@6ab2a9a0e671a69c": 47001
          },
          "nextHops": {
            "CiliumEgressGatewayPolicy/bank#0@bc05e8d5efb1afd4": 1130000000,
            "EgressPolicy/shop#0@7b28d776090481db": 1130000001
          },
          "overlayAddress": "10.244.1.1"
        }
        """#
    static let adopted = #"""
        {
          "version": 2,
          "assignments": {
            "u-2_eth0": [
              {
                "source": "CiliumEgressGatewayPolicy",
                "name": "bank",
                "destinations": [
                  "203.0.113.0/24"
                ],
                "exclusions": [],
                "egress": {
                  "kind": "default"
                },
                "gateways": [
                  "n2"
                ],
                "standing": "inForce",
                "reason": ""
              }
            ]
          }
        }
        """#
    static let served = #"""
        {
          "version": 2,
          "policies": [
        \#(shop)
          ]
        }
        """#
    /// Left by its plugin while no helper ran.
    static let deletion =
        #"{"protocol":1,"command":"DEL","network":"cilium","containerID":"x-web","ifname":"eth0","addresses":[],"namespace":"","name":"","uid":"","labels":{},"annotations":{},"defaultPolicy":"","timeoutMilliseconds":30000}"#

    @Test func everyFileThatItLeftIsRead() throws {
        let directory = "/tmp/culvert-before-\(UInt32.random(in: 0 ... .max))"
        let store = AttachmentStore(runDirectory: directory)
        try store.prepare()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        for (name, text) in [
            "attachments/x-web_eth0": Self.attachment, "ids.json": Self.ids, "adopted.json": Self.adopted,
            "served.json": Self.served, "deleted/x-web_eth0": Self.deletion,
        ] { try (text + "\n").write(toFile: "\(directory)/\(name)", atomically: false, encoding: .utf8) }

        let (attachments, damaged) = try store.load()
        #expect(damaged.isEmpty)
        let attachment = try #require(attachments.first)
        #expect(attachment.id == "x-web_eth0" && attachment.podUID == "u-1" && attachment.hostIndex == 8)
        #expect(attachment.addresses == [IPNetwork("10.244.1.10/32")!])
        #expect(attachment.labels == ["app": "shop"] && attachment.serviceAccount == "teller")
        #expect(attachment.podRoutes.values.sorted() == [1400, 1400])
        let shop = AssignedPolicy(
            source: .culvert, name: "shop", destinations: [.everythingV4],
            candidates: [.init(node: "n3", egress: .init(.address(IPAddress("192.0.2.31")!)))])
        #expect(attachment.assignment == [shop] && store.loadServed() == [shop])
        // What it did not write down is not known, which is not the same as nothing.
        #expect(attachment.formerOwners == nil && attachment.grantedAnnotation == nil)

        let ids = store.loadIDs()
        #expect(ids.tunnels == ["vxlan/2864171546": 1])
        #expect(ids.tables.values.sorted() == [47000, 47001])
        #expect(ids.nextHops.values.sorted() == [1_130_000_000, 1_130_000_001])
        #expect(store.loadOverlayAddress() == IPAddress("10.244.1.1"))
        let adopted = store.loadAdopted()
        #expect(adopted.assignments["u-2_eth0"]?.map(\.name) == ["bank"] && adopted.granted == nil)
        #expect(store.deletions() == ["x-web_eth0"])
        #expect(store.loadEnded() == EndedPods() && store.loadAnswering().isEmpty)
    }
}

import Model
import Testing

/// The names in the JSON of `api.sock`, which scripts of users read. No root.
@Suite struct APIFieldsTests {
    private static func names<Field: APIField>(_ field: Field.Type) -> String {
        field.allCases.map(\.rawValue).joined(separator: " ")
    }

    /// A case that is renamed stays consistent between the helper and culvertctl, and breaks those scripts all the same.
    @Test func theNamesInTheAnswersOfTheAPIStayAsTheyAre() {
        #expect(Self.names(ErrorField.self) == "error")
        #expect(
            Self.names(StatusField.self) == """
                summary reasons version node datapath refused repairs protocol overlayAddress underlay \
                underlayMTU inventory chain serviceNetworks nodes policies attachments adopted adoptedBecause \
                firewall warnings inventoryProblems
                """)
        #expect(Self.names(RefusedChangeField.self) == "operation error")
        #expect(Self.names(CounterField.self) == "rule packets bytes")
        #expect(
            Self.names(SourceField.self) == """
                source server path endpoints clusters synchronized fromDiskSeconds podLookups notices \
                problems
                """)
        #expect(Self.names(PodLookupField.self) == "count meanMilliseconds")
        #expect(Self.names(NodeField.self) == "name self internalIP overlayAddress podCIDRs gatewayFor")
        #expect(
            Self.names(PolicyField.self) == """
                name kind gateway candidates isLocalGateway egressAddress destinationCIDRs attachments \
                problem
                """)
        #expect(
            Self.names(AttachmentField.self) == """
                containerID ifname namespace name uid addresses policies table mtu adopted adoption \
                adoptionReason refused held holds uncovered
                """)
        #expect(Self.names(AttachmentPolicyField.self) == "name gateway egressAddress")
        #expect(Self.names(PlanField.self) == "attachments")
        #expect(
            Self.names(GatewaysField.self) == """
                obstacle wakeUpLatenessMilliseconds wakeUpLatenessEverMilliseconds strangers slots changes
                """)
        #expect(Self.names(SlotField.self) == "policy slot nextHop gateway sinceSeconds up pods failBack candidates")
        #expect(
            Self.names(CandidateField.self) == """
                node egress active state self roundTripMilliseconds silentMilliseconds intervalMilliseconds \
                askedMilliseconds detectionMilliseconds sent translated notTranslated
                """)
        #expect(Self.names(GatewayChangeField.self) == "policy from to why at silentMilliseconds switchedMilliseconds")
        #expect(
            Self.names(PeerField.self) == """
                name location publicKey endpoint lastHandshake receivedBytes sentBytes persistentKeepalive \
                allowedIPs
                """)
        #expect(Self.names(TopologyField.self) == "subnet port interface granularity segments peers problems")
        #expect(
            Self.names(SegmentField.self) == """
                key location gateway wireGuardAddress publicKey endpoint persistentKeepalive allowedIPs \
                allowedLocationIPs nodes
                """)
        #expect(Self.names(SegmentNodeField.self) == "name privateAddress podCIDRs")
        #expect(
            Self.names(MeshPeerField.self) == "name publicKey hasPresharedKey endpoint persistentKeepalive allowedIPs")
        #expect(Self.names(PathMTUField.self) == "what bytes")
    }
}

import Inventory
import Jansson
import Model
import TestSupport
import Testing

/// What the inventory on disk holds is what is read back.
@Suite struct ManifestWriterTests {
    @Test func everyObjectIsReadBackAsItWas() throws {
        let text = """
            apiVersion: v1
            kind: Node
            metadata: {name: n1, labels: {zone: z1}, annotations: {kilo.squat.ai/location: a, kilo.squat.ai/cilium-internal-ip: 10.244.1.7}}
            spec: {podCIDRs: [10.244.1.0/24]}
            status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: ExternalIP, address: 198.51.100.1}]}
            ---
            apiVersion: v1
            kind: Node
            metadata: {name: n2, annotations: {"kilo.squat.ai/key": "k\\"'"}}
            ---
            apiVersion: cilium.io/v2
            kind: CiliumNode
            metadata: {name: n1}
            spec: {addresses: [{type: CiliumInternalIP, ip: 10.244.1.7}, {type: InternalIP, ip: 10.0.0.1}], ipam: {podCIDRs: [10.244.1.0/24]}}
            ---
            apiVersion: v1
            kind: Pod
            metadata: {namespace: default, name: p, uid: u, labels: {app: a}, annotations: {culvert.dev/egress-policy: none}}
            spec: {nodeName: n1, hostNetwork: true, serviceAccountName: s}
            status: {phase: Running, startTime: 2026-11-28T22:42:31Z, podIPs: [{ip: 10.244.1.9}, {ip: "fd00::9"}]}
            ---
            apiVersion: v1
            kind: Namespace
            metadata: {name: default, labels: {team: t}}
            ---
            apiVersion: v1
            kind: ConfigMap
            metadata: {name: cilium-config, namespace: kube-system}
            data: {enable-bpf-masquerade: "true"}
            ---
            apiVersion: kilo.squat.ai/v1alpha1
            kind: Peer
            metadata: {name: laptop}
            spec:
              publicKey: AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
              presharedKey: AgcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
              endpoint: {dnsOrIP: {dns: laptop.example.org}, port: 51820}
              persistentKeepalive: 10
              allowedIPs: [10.5.0.1/32]
            \(Self.policies)
            """
        let objects = try Self.read(text)
        #expect(objects.count == 12)
        #expect(try Self.read(ManifestWriter.list(objects)) == objects)
    }

    static let policies =
        [
            "egressIP: 192.0.2.1", "interface: eth1",
            "nodeSelector: {matchExpressions: [{key: zone, operator: In, values: [a, b]}]}",
            "nodeSelector: {matchLabels: {a: b}}",
        ].enumerated().map { index, gateway in
            """
            ---
            apiVersion: culvert.dev/v1alpha1
            kind: EgressPolicy
            metadata: {name: e\(index)}
            spec:
              selectors: [{podSelector: {matchLabels: {app: a}}, namespaceSelector: {matchExpressions: [{key: k, operator: Exists}]}}, {nodeSelector: {}}]
              destinationCIDRs: [0.0.0.0/0, 203.0.113.0/24]
              excludedCIDRs: [10.0.0.0/8]
              egressGateway: {\(gateway.hasPrefix("nodeSelector") ? gateway : "nodeSelector: {matchLabels: {zone: z3}}, " + gateway)}
              \(index == 3 ? "snat: false" : "snat: true")
              \(index == 2 ? "allowAnnotation: [default, '*']" : "")

            """
        }.joined() + """
            ---
            apiVersion: cilium.io/v2
            kind: CiliumEgressGatewayPolicy
            metadata: {name: c}
            spec:
              selectors: [{podSelector: {}}]
              destinationCIDRs: [0.0.0.0/0]
              egressGateway: {nodeSelector: {}}
            """

    static func read(_ text: String) throws -> [ManifestObject] {
        switch Manifests.parse(text, file: "all.yaml") {
        case .success(let objects): return objects
        case .failure(let problems): throw problems
        }
    }

    @Test func aRefusedPolicyStaysRefused() throws {
        let policy = ClusterPolicy.refused
        let objects = try Self.read(policy)
        let again = try Self.read(ManifestWriter.list(objects))
        guard case .policy(let first)? = objects.first, case .policy(let second)? = again.first else {
            Issue.record("no policy")
            return
        }
        #expect(!first.refusal.isEmpty && !second.refusal.isEmpty)
        #expect(first.selectors == second.selectors && first.destinations == second.destinations)
    }

    enum ClusterPolicy {
        static let refused = """
            apiVersion: culvert.dev/v1alpha1
            kind: EgressPolicy
            metadata: {name: r}
            spec:
              selectors: [{podSelector: {matchLabels: {app: a}}}]
              destinationCIDRs: [0.0.0.0/0]
              mystery: 1
              egressGateway: {nodeSelector: {}}
            """
    }
}

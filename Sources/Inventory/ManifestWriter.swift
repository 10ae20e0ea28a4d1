import Jansson
import Model

/// Objects as manifests, of the fields that Culvert reads: what `Manifests` reads back is the same object.
public enum ManifestWriter {
    /// A `List` of all of them, one a line.
    public static func list(_ objects: [ManifestObject]) -> String {
        "{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n"
            + objects.map { json($0).text() }.joined(separator: ",\n") + "\n]}\n"
    }

    static func json(_ object: ManifestObject) -> JSON {
        switch object {
        case .node(let node): self.node(node, isWhole: true)
        case .publishedNode(let node): self.node(node, isWhole: false)
        case .ciliumNode(let node): ciliumNode(node)
        case .pod(let pod): self.pod(pod)
        case .namespace(let name, let labels):
            make("v1", "Namespace", metadata(name: name, labels: labels))
        case .policy(let policy): self.policy(policy)
        case .peer(let peer): self.peer(peer)
        case .ciliumConfig(let data):
            make("v1", "ConfigMap", metadata(name: "cilium-config", namespace: "kube-system"), ("data", map(data)))
        case .serviceCIDR(let name, let networks):
            make(
                "networking.k8s.io/v1", "ServiceCIDR", metadata(name: name), ("spec", .make(("cidrs", texts(networks))))
            )
        case .kubeadmConfig(let networks):
            make(
                "v1", "ConfigMap", metadata(name: "kubeadm-config", namespace: "kube-system"),
                (
                    "data",
                    map([
                        "ClusterConfiguration":
                            "networking: {serviceSubnet: \"\(networks.map(\.description).joined(separator: ","))\"}"
                    ])
                ))
        case .apiServerService(let addresses):
            make(
                "v1", "Service", metadata(name: "kubernetes", namespace: "default"),
                ("spec", .make(("clusterIPs", texts(addresses)))))
        }
    }

    private static func make(_ apiVersion: String, _ kind: String, _ metadata: JSON, _ rest: (String, JSON?)...) -> JSON
    {
        var members = [
            JSON.Member("apiVersion", .string(apiVersion)), JSON.Member("kind", .string(kind)),
            JSON.Member("metadata", metadata),
        ]
        for (key, value) in rest { if let value { members.append(JSON.Member(key, value)) } }
        return .object(members)
    }

    private static func metadata(
        name: String, namespace: String? = nil, uid: String? = nil, labels: [String: String] = [:],
        annotations: [String: String] = [:]
    ) -> JSON {
        .make(
            ("name", .string(name)), ("namespace", namespace.map { .string($0) }), ("uid", uid.map { .string($0) }),
            ("labels", labels.isEmpty ? nil : map(labels)),
            ("annotations", annotations.isEmpty ? nil : map(annotations)))
    }

    private static func map(_ pairs: [String: String]) -> JSON {
        .strings(pairs.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
    }
    private static func texts(_ values: [some CustomStringConvertible]) -> JSON {
        .array(values.map { .string($0.description) })
    }
    private static func addresses(_ lists: [(String, [IPAddress])], key: String) -> JSON {
        .array(
            lists.flatMap { type, addresses in
                addresses.map { .make(("type", .string(type)), (key, .string("\($0)"))) }
            })
    }

    private static func node(_ node: Node, isWhole: Bool) -> JSON {
        let metadata = metadata(name: node.name, labels: node.labels, annotations: node.annotations)
        guard isWhole else { return make("v1", "Node", metadata) }
        return make(
            "v1", "Node", metadata,
            (
                "spec",
                .make(
                    ("podCIDRs", texts(node.podCIDRs)),
                    (
                        "taints",
                        node.isGivenUp
                            ? .array([.make(("key", .string("node.kubernetes.io/unreachable")))]) : nil
                    ))
            ),
            (
                "status",
                .make(
                    (
                        "addresses",
                        addresses(
                            [("InternalIP", node.internalIPs), ("ExternalIP", node.externalIPs)], key: "address")
                    ))
            ))
    }

    private static func ciliumNode(_ node: CiliumNode) -> JSON {
        make(
            "cilium.io/v2", "CiliumNode", metadata(name: node.name, labels: node.labels),
            (
                "spec",
                .make(
                    (
                        "addresses",
                        addresses(
                            [
                                ("InternalIP", node.internalIPs), ("ExternalIP", node.externalIPs),
                                ("CiliumInternalIP", node.overlayAddresses),
                            ], key: "ip")
                    ), ("ipam", .make(("podCIDRs", texts(node.podCIDRs)))))
            ))
    }

    private static func pod(_ pod: Pod) -> JSON {
        make(
            "v1", "Pod",
            metadata(
                name: pod.name, namespace: pod.namespace, uid: pod.uid, labels: pod.labels,
                annotations: pod.annotations),
            (
                "spec",
                .make(
                    ("nodeName", .string(pod.nodeName)), ("serviceAccountName", .string(pod.serviceAccount)),
                    ("hostNetwork", .bool(pod.hostNetwork)))
            ),
            (
                "status",
                .make(
                    ("phase", .string(pod.phase)),
                    ("startTime", pod.startTime.map { .string(Timestamp.text($0)) }),
                    ("podIPs", .array(pod.addresses.map { .make(("ip", .string("\($0)"))) })))
            ))
    }

    private static func peer(_ peer: MeshPeer) -> JSON {
        let endpoint = peer.endpoint.map { endpoint -> JSON in
            let host: (String, JSON) =
                switch endpoint.host {
                case .address(let address): ("ip", .string("\(address)"))
                case .name(let name): ("dns", .string(name))
                }
            return .make(
                ("dnsOrIP", .make(host)), ("port", .integer(Int64(endpoint.port))))
        }
        return make(
            "kilo.squat.ai/v1alpha1", "Peer", metadata(name: peer.name),
            (
                "spec",
                .make(
                    ("publicKey", .string(peer.publicKey.text)),
                    ("presharedKey", peer.presharedKey.map { .string($0.text) }), ("endpoint", endpoint),
                    ("persistentKeepalive", .integer(Int64(peer.persistentKeepalive))),
                    ("allowedIPs", texts(peer.allowedIPs)))
            ))
    }

    private static func selector(_ selector: LabelSelector) -> JSON {
        .make(
            ("matchLabels", map(selector.matchLabels)),
            (
                "matchExpressions",
                .array(
                    selector.matchExpressions.map {
                        .make(
                            ("key", .string($0.key)), ("operator", .string($0.operation.rawValue)),
                            ("values", texts($0.values)))
                    })
            ))
    }

    private static func policy(_ policy: EgressPolicy) -> JSON {
        var spec: [JSON.Member] = [
            JSON.Member(
                "selectors",
                .array(
                    policy.selectors.map {
                        .make(
                            ("podSelector", $0.pod.map(selector)), ("namespaceSelector", $0.namespace.map(selector)),
                            ("nodeSelector", $0.node.map(selector)))
                    })), JSON.Member("destinationCIDRs", texts(policy.destinations)),
            JSON.Member("excludedCIDRs", texts(policy.exclusions)),
        ]
        func gateway(_ entry: EgressPolicy.GatewayEntry) -> JSON {
            var members: [JSON.Member] = [JSON.Member("nodeSelector", selector(entry.selector))]
            switch entry.egress {
            case .defaultAddress, .untranslated: break
            case .address(let address): members.append(.init("egressIP", .string("\(address)")))
            case .interface(let name): members.append(.init("interface", .string(name)))
            }
            return .object(members)
        }
        if policy.egress == .untranslated { spec.append(.init("snat", .bool(false))) }
        if policy.hasGatewayList {
            spec.append(.init("egressGateways", .array(policy.gatewayEntries.map(gateway))))
        } else {
            spec.append(.init("egressGateway", gateway(policy.gatewayEntries[0])))
        }
        if policy.source == .culvert {
            let checks = policy.healthChecks
            spec += [
                .init("mode", .string(policy.mode.rawValue)), .init("locality", .string(policy.locality.rawValue)),
                // Where it is empty, the release before must not find a field that it does not know.
                .init(
                    "allowAnnotation",
                    policy.allowAnnotation.names.isEmpty ? .null : texts(policy.allowAnnotation.names)),
                .init("failBack", policy.failBack.map { .bool($0) } ?? .null),
                .init(
                    "healthChecks",
                    .make(
                        ("interval", .string("\(checks.interval)ms")),
                        ("multiplier", .integer(Int64(checks.multiplier))),
                        ("targets", .array(checks.targets.map { .string("\($0)") })))),
            ]
        }
        // What a refused policy was refused for is not written here: so that it is refused again, and for that reason.
        if !policy.refusal.isEmpty {
            spec.append(
                .init(
                    PolicyManifest.cachedRefusal,
                    .make(
                        ("reason", .string(policy.refusal)), ("unknownSelectors", .bool(policy.hasUnknownSelectors)),
                        ("unknownDestinations", .bool(policy.hasUnknownDestinations)))))
        }
        return make(
            policy.source == .cilium ? "cilium.io/v2" : "culvert.dev/v1alpha1", policy.source.rawValue,
            metadata(name: policy.name).setting(
                "generation", to: policy.generation.map { .integer($0) } ?? .null), ("spec", .object(spec)))
    }
}

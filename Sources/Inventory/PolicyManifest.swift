import Jansson
import Model

/// CiliumEgressGatewayPolicy and EgressPolicy.
///
/// A field that this release does not support refuses the whole policy, because ignoring it would widen it. A wrong
/// value is an error of the file.
enum PolicyManifest {
    typealias Failure = ManifestReader.Failure

    static func read(_ reader: ManifestReader, _ source: EgressPolicy.Source) throws(Failure) -> EgressPolicy {
        var policy = EgressPolicy(name: try Manifests.metadata(reader).required("name"), source: source)
        guard let spec = try reader.object("spec") else { throw reader.fail("spec", "is missing") }
        var known: Set = ["selectors", "destinationCIDRs", "excludedCIDRs", "egressGateway"]
        if source == .culvert { known.insert("snat") }
        refuse(&policy, spec.unknownMember(besides: known))

        policy.destinations = try spec.networks("destinationCIDRs")
        if policy.destinations.isEmpty { throw spec.fail("destinationCIDRs", "is missing or empty") }
        policy.exclusions = try spec.networks("excludedCIDRs")
        for selector in try spec.objects("selectors") ?? [] {
            refuse(&policy, selector.unknownMember(besides: ["podSelector", "namespaceSelector", "nodeSelector"]))
            policy.selectors.append(
                EgressPolicy.Selector(
                    pod: try labelSelector(selector, "podSelector", &policy),
                    namespace: try labelSelector(selector, "namespaceSelector", &policy),
                    node: try labelSelector(selector, "nodeSelector", &policy)))
        }
        guard let gateway = try spec.object("egressGateway") else {
            // With several gateways the policy is refused already.
            if !policy.refusal.isEmpty { return policy }
            throw spec.fail("egressGateway", "is missing")
        }
        refuse(&policy, gateway.unknownMember(besides: ["nodeSelector", "egressIP", "interface"]))
        guard let nodeSelector = try labelSelector(gateway, "nodeSelector", &policy) else {
            throw gateway.fail("nodeSelector", "is missing")
        }
        policy.gatewaySelector = nodeSelector
        try readEgress(spec, gateway, &policy)
        if policy.destinations.contains(where: { $0.family == .v6 }) && policy.refusal.isEmpty
            && policy.destinations.allSatisfy({ $0.family == .v6 })
        {
            policy.refusal = "spec.destinationCIDRs has only IPv6 networks, and this release routes IPv4"
        }
        return policy
    }

    private static func readEgress(
        _ spec: ManifestReader, _ gateway: ManifestReader, _ policy: inout EgressPolicy
    ) throws(Failure) {
        let addressText = try gateway.string("egressIP") ?? ""
        let interface = try gateway.string("interface") ?? ""
        let translated = policy.source == .culvert ? try spec.bool("snat") ?? true : true
        if !addressText.isEmpty && !interface.isEmpty {
            throw gateway.fail("egressIP", "cannot be set together with interface")
        }
        if !translated && !(addressText.isEmpty && interface.isEmpty) {
            throw spec.fail(
                "snat", "false leaves the pod's own address, so egressIP and interface make no sense with it")
        }
        if !addressText.isEmpty {
            guard let address = IPAddress(addressText) else {
                throw gateway.fail("egressIP", "\"\(addressText)\" is not an IP address")
            }
            policy.egress = .address(address)
            if address.family == .v6 { policy.refusal = "egressIP \(address) is IPv6, and this release routes IPv4" }
        } else if !interface.isEmpty {
            guard interface.utf8.count <= 15 else {
                throw gateway.fail(
                    "interface", "\"\(interface)\" is longer than the 15 characters of an interface name")
            }
            policy.egress = .interface(interface)
        } else if !translated {
            policy.egress = .untranslated
        }
    }

    private static func refuse(_ policy: inout EgressPolicy, _ field: String?) {
        if let field, policy.refusal.isEmpty {
            policy.refusal = "\(field) is not supported by this release, and ignoring it would widen the policy"
        }
    }

    private static func labelSelector(
        _ reader: ManifestReader, _ key: String, _ policy: inout EgressPolicy
    ) throws(Failure) -> LabelSelector? {
        guard let selector = try reader.object(key) else { return nil }
        refuse(&policy, selector.unknownMember(besides: ["matchLabels", "matchExpressions"]))
        var result = LabelSelector()
        for (label, value) in try selector.map("matchLabels") { result.matchLabels[plain(label)] = value }
        for expression in try selector.objects("matchExpressions") ?? [] {
            refuse(&policy, expression.unknownMember(besides: ["key", "operator", "values"]))
            let name = try expression.required("operator")
            guard let operation = LabelSelector.Operator(rawValue: name) else {
                throw expression.fail("operator", "\"\(name)\" is none of In, NotIn, Exists, DoesNotExist")
            }
            let values = try expression.strings("values") ?? []
            switch operation {
            case .isIn, .notIn:
                if values.isEmpty { throw expression.fail("values", "must not be empty for \(name)") }
            case .exists, .doesNotExist:
                if !values.isEmpty { throw expression.fail("values", "must be empty for \(name)") }
            }
            result.matchExpressions.append(
                .init(key: plain(try expression.required("key")), operation: operation, values: values))
        }
        return result
    }

    /// Cilium's users write the source of a label before it: `k8s:app`, `any:app`.
    private static func plain(_ label: String) -> String {
        for prefix in ["k8s:", "any:"] where label.hasPrefix(prefix) { return String(label.dropFirst(prefix.count)) }
        return label
    }
}

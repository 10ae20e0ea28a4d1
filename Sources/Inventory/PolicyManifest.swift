import Jansson
import Model

/// CiliumEgressGatewayPolicy and EgressPolicy.
///
/// A policy whose name can be read never fails its file. A field that this release does not support (ignoring it would
/// widen the policy) or a malformed value refuses the whole policy; what could be read is filled in, and
/// `hasUnknownSelectors` and `hasUnknownDestinations` say what could not.
struct PolicyManifest {
    typealias Failure = ManifestReader.Failure

    private var policy: EgressPolicy

    /// - Throws: where the policy has no name.
    static func read(_ reader: ManifestReader, _ source: EgressPolicy.Source) throws(Failure) -> EgressPolicy {
        var manifest = PolicyManifest(
            policy: EgressPolicy(name: try Manifests.metadata(reader).required("name"), source: source))
        manifest.policy.generation = reader.value["metadata"]?["generation"]?.integer
        do throws(Failure) {
            guard let spec = try reader.object("spec") else { throw reader.fail("spec", "is missing") }
            manifest.read(spec)
        } catch {
            manifest.refuse(error)
            manifest.policy.hasUnknownSelectors = true
            manifest.policy.hasUnknownDestinations = true
        }
        return manifest.policy
    }

    private mutating func read(_ spec: ManifestReader) {
        readCachedRefusal(spec)
        var known: Set = [
            "selectors", "destinationCIDRs", "excludedCIDRs", "egressGateway", "egressGateways",
            PolicyManifest.cachedRefusal,
        ]
        if policy.source == .culvert {
            known.formUnion(["snat", "mode", "failBack", "locality", "healthChecks", "allowAnnotation"])
        }
        attempt { (_) throws(Failure) in try PolicyManifest.only(known, in: spec) }
        readSelectors(spec)
        readNetworks(spec)
        attempt { (manifest) throws(Failure) in try manifest.readGateways(spec) }
        if policy.source == .culvert {
            attempt { (manifest) throws(Failure) in try manifest.readChoice(spec) }
            attempt { (manifest) throws(Failure) in try manifest.readHealthChecks(spec) }
            attempt { (manifest) throws(Failure) in
                manifest.policy.allowAnnotation = try spec.namespaces("allowAnnotation")
            }
        }
        if !policy.destinations.isEmpty && policy.destinations.allSatisfy({ $0.family == .v6 }) {
            refuse("spec.destinationCIDRs has only IPv6 networks, and this release routes IPv4")
        }
    }

    // MARK: refusing

    /// The first reason stays: it is the one that a person mends first.
    private mutating func refuse(_ reason: String) {
        if policy.refusal.isEmpty { policy.refusal = reason }
    }
    private mutating func refuse(_ failure: Failure) { refuse("\(failure.field) \(failure.message)") }

    /// Reads a part of the policy; what is wrong with that part refuses the policy.
    private mutating func attempt(_ read: (inout PolicyManifest) throws(Failure) -> Void) {
        do throws(Failure) { try read(&self) } catch { refuse(error) }
    }

    /// - Throws: where there is a member that this release does not know.
    private static func only(_ known: Set<String>, in reader: ManifestReader) throws(Failure) {
        if let field = reader.unknownMember(besides: known) {
            throw Failure(
                field: field,
                message:
                    "is not supported by this release, and ignoring it would widen the policy: remove it, or update culvertd on this node"
            )
        }
    }

    // MARK: the cache on disk

    /// In the inventory on disk (ManifestWriter) a refused policy says so in a field of this name, because what it was
    /// refused for is not written: `{reason, unknownSelectors, unknownDestinations}`.
    static let cachedRefusal = "refused"

    private mutating func readCachedRefusal(_ spec: ManifestReader) {
        guard let value = spec.value[PolicyManifest.cachedRefusal], !value.isNull else { return }
        // The release before this one wrote the reason alone.
        refuse((value["reason"] ?? value).string.flatMap { $0.isEmpty ? nil : $0 } ?? "spec.refused is set")
        policy.hasUnknownSelectors = value["unknownSelectors"]?.bool ?? true
        policy.hasUnknownDestinations = value["unknownDestinations"]?.bool ?? true
    }

    // MARK: whom it selects

    /// A selector that cannot be read completely is left out: a part of it would select more pods than the whole.
    private mutating func readSelectors(_ spec: ManifestReader) {
        do throws(Failure) {
            for element in try spec.list("selectors") ?? [] {
                do throws(Failure) { policy.selectors.append(try PolicyManifest.selector(element)) } catch {
                    refuse(error)
                    policy.hasUnknownSelectors = true
                }
            }
        } catch {
            refuse(error)
            policy.hasUnknownSelectors = true
        }
    }

    private static func selector(_ reader: ManifestReader) throws(Failure) -> EgressPolicy.Selector {
        guard reader.value.members != nil else { throw Failure(field: reader.path, message: "is not an object") }
        try only(["podSelector", "namespaceSelector", "nodeSelector"], in: reader)
        return EgressPolicy.Selector(
            pod: try labelSelector(reader, "podSelector"), namespace: try labelSelector(reader, "namespaceSelector"),
            node: try labelSelector(reader, "nodeSelector"))
    }

    private static func labelSelector(_ reader: ManifestReader, _ key: String) throws(Failure) -> LabelSelector? {
        guard let selector = try reader.object(key) else { return nil }
        try only(["matchLabels", "matchExpressions"], in: selector)
        var result = LabelSelector()
        for (label, value) in try selector.map("matchLabels").sorted(by: { $0.key < $1.key }) {
            guard LabelSyntax.isName(plain(label)) else {
                throw selector.fail("matchLabels", "has \"\(label)\", which \(LabelSyntax.nameRule)")
            }
            guard LabelSyntax.isValue(value) else {
                throw selector.fail("matchLabels.\(label)", "\"\(value)\" \(LabelSyntax.valueRule)")
            }
            result.matchLabels[plain(label)] = value
        }
        for expression in try selector.objects("matchExpressions") ?? [] {
            try only(["key", "operator", "values"], in: expression)
            let operatorName = try expression.required("operator")
            guard let operation = LabelSelector.Operator(rawValue: operatorName) else {
                throw expression.fail("operator", "\"\(operatorName)\" is none of In, NotIn, Exists, DoesNotExist")
            }
            let values = try expression.strings("values") ?? []
            switch operation {
            case .isIn, .notIn:
                if values.isEmpty { throw expression.fail("values", "must not be empty for \(operatorName)") }
            case .exists, .doesNotExist:
                if !values.isEmpty { throw expression.fail("values", "must be empty for \(operatorName)") }
            }
            for value in values where !LabelSyntax.isValue(value) {
                throw expression.fail("values", "has \"\(value)\", which \(LabelSyntax.valueRule)")
            }
            let name = try expression.string("key") ?? ""
            let label = plain(name)
            guard LabelSyntax.isName(label) else {
                throw expression.fail("key", name.isEmpty ? "is missing" : "\"\(name)\" \(LabelSyntax.nameRule)")
            }
            result.matchExpressions.append(.init(key: label, operation: operation, values: values))
        }
        return result
    }

    /// Cilium's users write the source of a label before it: `k8s:app`, `any:app`.
    private static func plain(_ label: String) -> String {
        for prefix in ["k8s:", "any:"] where label.hasPrefix(prefix) { return String(label.dropFirst(prefix.count)) }
        return label
    }

    // MARK: which destinations it claims

    private mutating func readNetworks(_ spec: ManifestReader) {
        let destinations = networks(spec, "destinationCIDRs")
        policy.destinations = destinations.list ?? []
        if !destinations.isComplete { policy.hasUnknownDestinations = true }
        if destinations.isComplete && policy.destinations.isEmpty {
            let isMissing = destinations.list == nil
            if isMissing { policy.hasUnknownDestinations = true }
            refuse(
                spec.fail(
                    "destinationCIDRs",
                    "is \(isMissing ? "missing" : "empty"): name the networks that are reached through the gateway, 0.0.0.0/0 for all"
                ))
        }
        // Without an exclusion that cannot be read the policy claims more than it should, which holds packets that may
        // leave and lets none leave that may not.
        policy.exclusions = networks(spec, "excludedCIDRs").list ?? []
    }

    /// Those of a list that can be read.
    ///
    /// - Returns: no list where there is none, or something else.
    private mutating func networks(_ spec: ManifestReader, _ key: String) -> (list: [IPNetwork]?, isComplete: Bool) {
        let elements: [ManifestReader]
        do throws(Failure) {
            guard let found = try spec.list(key) else { return (nil, true) }
            elements = found
        } catch {
            refuse(error)
            return (nil, false)
        }
        var networks: [IPNetwork] = []
        for element in elements {
            // (Kubernetes refuses an IPv4 network that is written as IPv6.)
            if let network = element.value.string.flatMap({ IPNetwork($0) }), !network.address.isMappedV4 {
                networks.append(network)
            } else {
                refuse(
                    Failure(
                        field: element.path,
                        message:
                            "\(element.value.string.map { "\"\($0)\"" } ?? "is no text and") is not a network in CIDR notation, such as 203.0.113.0/24"
                    ))
            }
        }
        return (networks, networks.count == elements.count)
    }

    // MARK: by which gateway, and with which address

    /// `egressGateways`, and where it is missing or empty `egressGateway`, as Cilium reads them.
    private mutating func readGateways(_ spec: ManifestReader) throws(Failure) {
        let list = try spec.objects("egressGateways") ?? []
        policy.hasGatewayList = !list.isEmpty
        if list.isEmpty {
            guard let gateway = try spec.object("egressGateway") else {
                throw spec.fail("egressGateway", "is missing, and so is egressGateways")
            }
            policy.gatewayEntries = [try readGateway(spec, gateway)]
            return
        }
        var entries: [EgressPolicy.GatewayEntry] = []
        for gateway in list {
            let entry = try readGateway(spec, gateway)
            if !entries.contains(entry) { entries.append(entry) }
        }
        policy.gatewayEntries = entries
    }

    private mutating func readGateway(
        _ spec: ManifestReader, _ gateway: ManifestReader
    ) throws(Failure) -> EgressPolicy.GatewayEntry {
        attempt { (_) throws(Failure) in
            try PolicyManifest.only(["nodeSelector", "egressIP", "interface"], in: gateway)
        }
        guard let nodes = try PolicyManifest.labelSelector(gateway, "nodeSelector") else {
            throw gateway.fail("nodeSelector", "is missing: it names the nodes that may be the gateway")
        }
        return EgressPolicy.GatewayEntry(nodes, egress: try readEgress(spec, gateway))
    }

    private mutating func readEgress(
        _ spec: ManifestReader, _ gateway: ManifestReader
    ) throws(Failure) -> EgressPolicy.Egress {
        let addressText = try gateway.string("egressIP") ?? ""
        let interface = try gateway.string("interface") ?? ""
        let translated = policy.source == .culvert ? try spec.bool("snat") ?? true : true
        if !addressText.isEmpty && !interface.isEmpty {
            throw gateway.fail("egressIP", "cannot be set together with interface: remove one of the two")
        }
        if !translated && !(addressText.isEmpty && interface.isEmpty) {
            throw spec.fail(
                "snat", "false leaves the pod's own address, so egressIP and interface make no sense with it")
        }
        if !addressText.isEmpty {
            guard let address = IPAddress(addressText) else {
                throw gateway.fail("egressIP", "\"\(addressText)\" is not an IP address")
            }
            if address.family == .v6 { refuse("egressIP \(address) is IPv6, and this release routes IPv4") }
            return .address(address)
        }
        if !interface.isEmpty {
            guard interface.utf8.count <= 15 else {
                throw gateway.fail(
                    "interface", "\"\(interface)\" is longer than the 15 characters of an interface name")
            }
            return .interface(interface)
        }
        return translated ? .defaultAddress : .untranslated
    }

    // MARK: which of several gateways, and how they are watched

    private mutating func readChoice(_ spec: ManifestReader) throws(Failure) {
        policy.mode = try choice(spec, "mode") ?? policy.mode
        policy.locality = try choice(spec, "locality") ?? policy.locality
        policy.failBack = try spec.bool("failBack")
    }

    private func choice<T: RawRepresentable & CaseIterable>(
        _ spec: ManifestReader, _ key: String
    ) throws(Failure) -> T? where T.RawValue == String {
        guard let text = try spec.string(key) else { return nil }
        if let value = T(rawValue: text) { return value }
        throw spec.fail(key, "\"\(text)\" is none of \(T.allCases.map(\.rawValue).joined(separator: ", "))")
    }

    private mutating func readHealthChecks(_ spec: ManifestReader) throws(Failure) {
        guard let checks = try spec.object("healthChecks") else { return }
        try PolicyManifest.only(["interval", "multiplier", "targets"], in: checks)
        if let text = try checks.string("interval") {
            guard let interval = PolicyManifest.milliseconds(text), HealthChecks.intervals.contains(interval) else {
                throw checks.fail("interval", "\"\(text)\" is not a duration between 20ms and 10s, such as 100ms")
            }
            policy.healthChecks.interval = interval
        }
        if let multiplier = try checks.integer("multiplier") {
            guard HealthChecks.multipliers.contains(Int(clamping: multiplier)) else {
                throw checks.fail("multiplier", "is \(multiplier), and must be between 2 and 50")
            }
            policy.healthChecks.multiplier = Int(multiplier)
        }
        for (place, text) in (try checks.strings("targets") ?? []).enumerated() {
            guard let target = HealthTarget(text) else {
                throw checks.fail(
                    "targets[\(place)]", "\"\(text)\" is not an IPv4 address with a TCP port, such as 192.0.2.1:443")
            }
            if !policy.healthChecks.targets.contains(target) { policy.healthChecks.targets.append(target) }
        }
        guard policy.healthChecks.targets.count <= HealthChecks.mostTargets else {
            throw checks.fail("targets", "has more than \(HealthChecks.mostTargets) targets")
        }
    }

    /// `100ms` or `2s`; nil where it is neither.
    private static func milliseconds(_ text: String) -> Int? {
        if text.hasSuffix("ms") { return Int(text.dropLast(2)).flatMap { $0 < 0 ? nil : $0 } }
        guard text.hasSuffix("s"), let seconds = Int(text.dropLast()), (0...3600).contains(seconds) else { return nil }
        return seconds * 1000
    }
}

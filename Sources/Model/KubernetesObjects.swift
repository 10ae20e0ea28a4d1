/// The fields that Culvert reads of the Kubernetes objects of its inventory. Names are Kubernetes' own.

/// `v1` Node, merged with the CiliumNode of the same name. Its fields are shared by its copies until one is changed: a
/// plan sorts and copies thousands of them.
public struct Node: Equatable, Sendable {
    private struct Fields: Equatable, Sendable {
        var name: String
        var labels: [String: String] = [:]
        var annotations: [String: String] = [:]
        var internalIPs: [IPAddress] = []
        var externalIPs: [IPAddress] = []
        var overlayAddresses: [IPAddress] = []
        var podCIDRs: [IPNetwork] = []
        var mesh: MeshAnnotations = MeshAnnotations()
        var isGivenUp = false
    }
    /// Only changed while nobody else holds it.
    private final class Storage: @unchecked Sendable {
        @exclusivity(unchecked) var fields: Fields
        init(_ fields: Fields) { self.fields = fields }
    }
    private var storage: Storage
    private var fields: Fields {
        get { storage.fields }
        _modify {
            if !isKnownUniquelyReferenced(&storage) { storage = Storage(storage.fields) }
            yield &storage.fields
        }
    }

    public init(name: String) { storage = Storage(Fields(name: name)) }

    /// The same object, not only an equal one: known at a glance.
    public func isIdentical(to other: Node) -> Bool { storage === other.storage }

    public static func == (a: Node, b: Node) -> Bool { a.storage === b.storage || a.storage.fields == b.storage.fields }

    public var name: String {
        _read { yield storage.fields.name }
        _modify { yield &fields.name }
    }
    public var labels: [String: String] {
        _read { yield storage.fields.labels }
        _modify { yield &fields.labels }
    }
    public var annotations: [String: String] {
        _read { yield storage.fields.annotations }
        _modify { yield &fields.annotations }
    }
    /// InternalIP addresses; the first is the node address.
    public var internalIPs: [IPAddress] {
        _read { yield storage.fields.internalIPs }
        _modify { yield &fields.internalIPs }
    }
    public var externalIPs: [IPAddress] {
        _read { yield storage.fields.externalIPs }
        _modify { yield &fields.externalIPs }
    }
    /// Address of `cilium_host`.
    public var overlayAddresses: [IPAddress] {
        _read { yield storage.fields.overlayAddresses }
        _modify { yield &fields.overlayAddresses }
    }
    public var podCIDRs: [IPNetwork] {
        _read { yield storage.fields.podCIDRs }
        _modify { yield &fields.podCIDRs }
    }
    /// Kubernetes has given it up: it has the taint `node.kubernetes.io/unreachable` or `out-of-service`.
    public var isGivenUp: Bool {
        _read { yield storage.fields.isGivenUp }
        _modify { yield &fields.isGivenUp }
    }
    /// What its annotations say about the mesh.
    public var mesh: MeshAnnotations {
        _read { yield storage.fields.mesh }
        _modify { yield &fields.mesh }
    }

    /// Every address of the node.
    public var addresses: [IPAddress] { internalIPs + externalIPs + overlayAddresses }
    public var overlayV4: IPAddress? {
        for address in storage.fields.overlayAddresses where address.family == .v4 { return address }
        return nil
    }
    public var nodeV4: IPAddress? {
        for address in storage.fields.internalIPs where address.family == .v4 { return address }
        return nil
    }
    /// Every address, without a list being made.
    public func forEachAddress(_ body: (IPAddress) -> Void) {
        for address in storage.fields.internalIPs { body(address) }
        for address in storage.fields.externalIPs { body(address) }
        for address in storage.fields.overlayAddresses { body(address) }
    }
    /// The pod CIDRs and every address as a network of its own. No list is made: thousands of nodes are asked.
    public func forEachNetwork(_ body: (IPNetwork) -> Void) {
        for network in storage.fields.podCIDRs { body(network) }
        for address in storage.fields.internalIPs { body(IPNetwork(host: address)) }
        for address in storage.fields.externalIPs { body(IPNetwork(host: address)) }
        for address in storage.fields.overlayAddresses { body(IPNetwork(host: address)) }
    }
}

/// `v1` Pod.
public struct Pod: Equatable, Sendable {
    public var namespace: String
    public var name: String
    public var uid: String
    public var labels: [String: String] = [:]
    public var annotations: [String: String] = [:]
    public var nodeName = ""
    public var serviceAccount = ""
    public var hostNetwork = false
    public var phase = ""
    public var addresses: [IPAddress] = []
    /// When the kubelet took it on, else when it was made, seconds since 1970; nil: not told. Its sandbox may be younger.
    public var startTime: Int64?
    public init(namespace: String, name: String, uid: String) {
        self.namespace = namespace
        self.name = name
        self.uid = uid
    }
    public var isFinished: Bool { phase == "Succeeded" || phase == "Failed" }
    /// What the runtime calls its UID.
    public var runtimeUID: String { annotations["kubernetes.io/config.hash"] ?? uid }
    /// For a mirror pod the runtime hands over the hash of its static manifest instead of the UID.
    public func hasUID(_ other: String) -> Bool {
        uid == other || annotations["kubernetes.io/config.hash"] == other
    }
    /// The runtime means this pod, of whose name it speaks: where it gives no UID, or a hand-written inventory has none, the
    /// pod of that name, whichever it is.
    public func isMeant(byUID uid: String) -> Bool { uid.isEmpty || self.uid.isEmpty || hasUID(uid) }
}

/// `metav1.LabelSelector`.
public struct LabelSelector: Hashable, Sendable {
    public enum Operator: String, Sendable {
        case isIn = "In"
        case notIn = "NotIn"
        case exists = "Exists"
        case doesNotExist = "DoesNotExist"
    }
    public struct Requirement: Hashable, Sendable {
        public let key: String
        public let operation: Operator
        public let values: [String]
        public init(key: String, operation: Operator, values: [String]) {
            self.key = key
            self.operation = operation
            self.values = values
        }
    }
    public var matchLabels: [String: String]
    public var matchExpressions: [Requirement]
    public init(matchLabels: [String: String] = [:], matchExpressions: [Requirement] = []) {
        self.matchLabels = matchLabels
        self.matchExpressions = matchExpressions
    }

    /// Kubernetes' semantics: everything must match; an empty selector matches all; NotIn matches where the key is
    /// absent.
    public func matches(_ labels: [String: String]) -> Bool {
        for (key, value) in matchLabels where labels[key] != value { return false }
        for requirement in matchExpressions {
            let value = labels[requirement.key]
            let holds =
                switch requirement.operation {
                case .isIn: value.map { requirement.values.contains($0) } ?? false
                case .notIn: value.map { !requirement.values.contains($0) } ?? true
                case .exists: value != nil
                case .doesNotExist: value == nil
                }
            if !holds { return false }
        }
        return true
    }
}

extension LabelSelector: CustomStringConvertible {
    /// As kubectl writes it: `zone=z2,tier in (a,b),!spot`; `everything` where it is empty.
    public var description: String {
        let all = text()
        return all.isEmpty ? "everything" : all
    }

    /// The requirements whose key is wanted, as kubectl and a list request's `labelSelector` write them; empty where there is
    /// none.
    public func text(_ isWanted: (_ key: String) -> Bool = { _ in true }) -> String {
        let equalities = matchLabels.filter { isWanted($0.key) }.sorted { $0.key < $1.key }.map {
            "\($0.key)=\($0.value)"
        }
        let sets = matchExpressions.filter { isWanted($0.key) }.map { requirement in
            let values = requirement.values.joined(separator: ",")
            return switch requirement.operation {
            case .isIn: "\(requirement.key) in (\(values))"
            case .notIn: "\(requirement.key) notin (\(values))"
            case .exists: requirement.key
            case .doesNotExist: "!\(requirement.key)"
            }
        }
        return (equalities + sets).joined(separator: ",")
    }
}

/// Labels that no object has, and that Cilium derives and its users select by (Cilium, "Labels").
public enum DerivedLabels {
    static let podNamespace = "io.kubernetes.pod.namespace"
    public static let serviceAccount = "io.cilium.k8s.policy.serviceaccount"
    static let namespaceLabelPrefix = "io.cilium.k8s.namespace.labels."
    /// Cilium's own labels, as its agent tells them (`LabelPrefix`, without a dot behind it).
    static let ciliumPrefix = "io.cilium.k8s"

    /// No pod has it of itself: Cilium takes it off what a pod's creator wrote, and so does Culvert.
    public static func isDerived(_ key: String) -> Bool { key == podNamespace || key.hasPrefix(ciliumPrefix) }

    /// A pod's labels with the derived ones. Empty strings: not known. What the pod's creator wrote in the place of a derived
    /// label is taken off: otherwise the creator could be of any namespace and any service account.
    public static func pod(
        _ labels: [String: String], namespace: String, namespaceLabels: [String: String], serviceAccount: String
    ) -> [String: String] {
        var labels = labels.filter { !isDerived($0.key) }
        if !namespace.isEmpty { labels[podNamespace] = namespace }
        if !serviceAccount.isEmpty { labels[DerivedLabels.serviceAccount] = serviceAccount }
        for (key, value) in namespaceLabels { labels[namespaceLabelPrefix + key] = value }
        return labels
    }

    /// A namespace's labels with its name, which every API server sets since 1.21; a hand-written inventory may lack it.
    public static func namespace(_ labels: [String: String], name: String) -> [String: String] {
        name.isEmpty ? labels : labels.merging(["kubernetes.io/metadata.name": name]) { _, new in new }
    }
}

/// `CiliumEgressGatewayPolicy` (cilium.io/v2) or `EgressPolicy` (culvert.dev/v1alpha1).
public struct EgressPolicy: Equatable, Sendable {
    public enum Source: String, Sendable {
        case culvert = "EgressPolicy"
        case cilium = "CiliumEgressGatewayPolicy"
    }

    /// One of `spec.selectors`: a pod must match all that are set.
    public struct Selector: Equatable, Sendable {
        public var pod: LabelSelector?
        public var namespace: LabelSelector?
        public var node: LabelSelector?
        public init(pod: LabelSelector? = nil, namespace: LabelSelector? = nil, node: LabelSelector? = nil) {
            self.pod = pod
            self.namespace = namespace
            self.node = node
        }
    }

    /// With which address packets leave the gateway.
    public enum Egress: Hashable, Sendable {
        case defaultAddress
        case address(IPAddress)
        case interface(String)
        /// `snat: false`
        case untranslated
    }

    /// `spec.egressGateway`, or one of `spec.egressGateways`.
    public struct GatewayEntry: Hashable, Sendable {
        public var selector: LabelSelector
        public var egress: Egress
        public init(_ selector: LabelSelector = LabelSelector(), egress: Egress = .defaultAddress) {
            self.selector = selector
            self.egress = egress
        }
    }

    /// `spec.mode`: how many candidates carry traffic at a time.
    public enum Mode: String, Sendable, CaseIterable {
        /// One at a time, for all pods.
        case activeStandby = "active-standby"
        /// Each pod has one of its own, by a hash of its UID.
        case spread
    }

    /// `spec.locality`: whether candidates in the pod's own location go first, or are the only ones.
    public enum Locality: String, Sendable, CaseIterable { case none, prefer, only }

    public var name: String
    public var source: Source
    /// `metadata.generation`, which increases with every change of the spec. nil: the source does not have it.
    public var generation: Int64?
    public var selectors: [Selector] = []
    public var destinations: [IPNetwork] = []
    public var exclusions: [IPNetwork] = []
    /// At least one.
    public var gatewayEntries = [GatewayEntry()]
    /// `spec.allowAnnotation`: pods of these namespaces may name the policy in their annotation, besides those that its own
    /// selectors match.
    public var allowAnnotation = NamespaceList()
    /// `spec.egressGateways` is set, so `spec.egressGateway` is ignored.
    public var hasGatewayList = false
    public var mode = Mode.activeStandby
    /// `spec.failBack`. nil: the default of the mode.
    public var failBack: Bool?
    public var locality = Locality.none
    public var healthChecks = HealthChecks()
    /// The selector of the first entry.
    public var gatewaySelector: LabelSelector {
        get { gatewayEntries[0].selector }
        set { gatewayEntries[0].selector = newValue }
    }
    /// The address of the first entry.
    public var egress: Egress {
        get { gatewayEntries[0].egress }
        set { gatewayEntries[0].egress = newValue }
    }
    /// Each pod has a first choice of its own: of candidates, or with Cilium's objects of entries.
    public var isSpread: Bool { source == .cilium ? gatewayEntries.count > 1 : mode == .spread }
    /// A candidate that is preferred and up again takes back what it had.
    public var takesBack: Bool { failBack ?? isSpread }
    /// Why the whole policy is refused; empty when it is not.
    public var refusal = ""
    /// The selectors of the refused policy could not be read, so it is not known which pods it selects. It keeps those
    /// that it had.
    public var hasUnknownSelectors = false
    /// The refused policy's destinations could not be read: pods that it selects anew are held for everything.
    public var hasUnknownDestinations = false
    public init(name: String, source: Source) {
        self.name = name
        self.source = source
    }
    /// Policies of both kinds may have one name: EgressPolicy comes first.
    public var sortKey: String { name + (source == .culvert ? "\u{0}0" : "\u{0}1") }
}

/// The settings of the ConfigMap `cilium-config` that matter to Culvert.
public struct CiliumSettings: Equatable, Sendable {
    /// Every key of `data`, as it is.
    public var data: [String: String]
    public init(data: [String: String]) { self.data = data }

    private func isTrue(_ key: String) -> Bool? { data[key].map { $0.lowercased() == "true" } }

    var endpointRoutes: Bool { isTrue("enable-endpoint-routes") ?? false }

    /// Cilium's own egress gateway is on. (The key was renamed in 1.18.)
    public var hasEgressGateway: Bool {
        isTrue("enable-egress-gateway") == true || isTrue("enable-ipv4-egress-gateway") == true
    }

    /// Bytes that Cilium's own transparent encryption takes from the overlay's MTU.
    public var encryptionOverhead: Int {
        if isTrue("enable-wireguard") == true { return 80 }
        if isTrue("enable-ipsec") == true { return 77 }
        return 0
    }

    /// BPF host routing: packets of pods pass netfilter by. As Cilium decides it: its kube-proxy replacement and BPF
    /// masquerading, and not `enable-host-legacy-routing`.
    public var hasHostRouting: Bool {
        isTrue("enable-bpf-masquerade") == true && isTrue("enable-host-legacy-routing") != true
            && (isTrue("kube-proxy-replacement") == true || data["kube-proxy-replacement"] == "strict")
    }

    /// Pods' packets go from node to node without a tunnel, by the nodes' own routes.
    public var isNative: Bool { data["routing-mode"] == "native" || data["tunnel"] == "disabled" }

    /// Whether Cilium is built to skip the route lookup (`ENABLE_SKIP_FIB`, removed at the end of 2025): BPF host
    /// routing, one native device, no endpoint routes. nil where the settings do not tell.
    public var skipsRouteLookup: (reason: String, certain: Bool)? {
        guard hasHostRouting else { return nil }
        if endpointRoutes { return nil }
        let devices = (data["devices"] ?? "").split(whereSeparator: { $0 == " " || $0 == "," })
        if devices.count > 1 { return nil }
        if let version = data["cilium-version"] ?? data["version"], CiliumSettings.isAtLeastOneTwenty(version) {
            return nil
        }
        if devices.count == 1, !devices[0].hasSuffix("+") {
            return (
                "Cilium before 1.20 with BPF host routing, one device (\(devices[0])) and no endpoint routes skips the "
                    + "route lookup: set endpointRoutes.enabled=true, or bpf.hostLegacyRouting=true, or name a second device",
                true
            )
        }
        return (
            "BPF host routing without endpoint routes: Cilium before 1.20 skips the route lookup when the node has just "
                + "one native device, and the settings do not say which devices it uses",
            false
        )
    }

    static func isAtLeastOneTwenty(_ text: String) -> Bool {
        let numbers = text.drop { !$0.isNumber }.split(separator: ".").prefix(2).compactMap {
            Int($0.prefix { $0.isNumber })
        }
        guard numbers.count == 2 else { return false }
        return (numbers[0], numbers[1]) >= (1, 20)
    }
}

/// Everything that an inventory knows.
public struct Inventory: Equatable, Sendable {
    public var nodes: [String: Node] = [:]
    public var pods: [Pod] = []
    /// Labels by namespace name.
    public var namespaces: [String: [String: String]] = [:]
    public var policies: [EgressPolicy] = []
    public var peers: [MeshPeer] = []
    public var cilium: CiliumSettings?
    public var services = ServiceNetworks()
    /// What is wrong with the objects, for people.
    public var problems: [InventoryProblem] = []
    /// Why the inventory is not completely known, one reason each; empty when it is known. An inventory that is not
    /// known says nothing about what is absent from it.
    public var unknown: [String] = []
    /// What the Nodes say of themselves arrives at this moment. False while their source does not answer, and for what was
    /// read from the disk: then their silence says nothing.
    public var followsNodes = true
    /// A number by which an older inventory of the same source can be told from a newer one.
    public var revision = Revision(number: 0)
    public init() {}

    /// All are equal: what counts is the content.
    public struct Revision: Equatable, Sendable {
        public let number: UInt64
        public init(number: UInt64) { self.number = number }
        public static func == (a: Self, b: Self) -> Bool { true }
    }
}

/// Something in the inventory that was not understood.
public struct InventoryProblem: Error, Hashable, CustomStringConvertible {
    public let file: String
    /// 1-based; 0 for the file as a whole.
    public let document: Int
    /// Path of the field, e.g. `spec.destinationCIDRs[0]`, or empty.
    public let field: String
    public let message: String
    public init(file: String, document: Int = 0, field: String = "", message: String) {
        self.file = file
        self.document = document
        self.field = field
        self.message = message
    }
    public var description: String {
        file + (document > 0 ? ", document \(document)" : "") + (field.isEmpty ? "" : ", \(field)") + ": \(message)"
    }
}

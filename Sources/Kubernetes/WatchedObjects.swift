import Inventory
import Jansson
import Logging
import Model

/// What the watches have brought, object by object, and the inventory that is made of it.
struct WatchedObjects: Sendable {
    static let resources: [Resource] = [
        .nodes, .ciliumNodes, .namespaces, .pods, .egressPolicies, .ciliumEgressGatewayPolicies, .peers,
        .serviceCIDRs,
    ]

    /// What came of one object.
    private struct Entry: Equatable {
        var objects: [ManifestObject] = []
        var problem: InventoryProblem?
    }
    /// What follows from a change.
    struct Effect {
        /// The inventory is another one.
        var isNews = false
        /// The own Node was put together anew.
        var hasOwnNode = false
    }

    private let nodeName: String
    private let logger: Logger
    private(set) var nodeReading: KubernetesInventory.NodeReading
    /// By `namespace/name`.
    private var entries: [Resource: [String: Entry]] = [:]
    private var known = Inventory()
    private var nodeProblems: [String: [InventoryProblem]] = [:]
    /// Objects that are malformed, by `resource namespace/name`: few, so that thousands need not be looked through.
    private var malformed: [String: InventoryProblem] = [:]
    private var listed: Set<Resource> = []
    /// Resources whose content is known, from the server or from disk: at some time everything of them was.
    private(set) var everKnown: Set<Resource> = []
    /// What is known of gateways beyond their CiliumNodes, where their whole Nodes are not watched.
    private var gateways: [String: GatewayLookups.Found] = [:]

    init(nodeName: String, nodes: KubernetesInventory.NodeReading, logger: Logger) {
        self.nodeName = nodeName
        nodeReading = nodes
        self.logger = logger
    }

    // MARK: reading

    /// The inventory, and what is wrong with its objects.
    var inventory: Inventory {
        var inventory = known
        inventory.problems =
            malformed.values.sorted { $0.description < $1.description }
            + nodeProblems.sorted { $0.key < $1.key }.flatMap(\.value)
        return inventory
    }
    /// Grows with every change of the inventory.
    var revision: UInt64 { known.revision.number }
    /// Everything that is watched has been listed once.
    var isComplete: Bool { listed.count == WatchedObjects.resources.count }
    /// ConfigMaps of which it is known what they say, or that they say nothing.
    private(set) var knownConfigMaps: Set<String> = []
    /// nil: there is none, or the Nodes are not listed.
    var ownNode: Node? { listed.contains(.nodes) ? known.nodes[nodeName] : nil }

    func knows(namespace: String) -> Bool { known.namespaces[namespace] != nil }
    func knows(_ pod: PodReference) -> Bool {
        knows(namespace: pod.namespace)
            && known.pods.contains {
                $0.namespace == pod.namespace && $0.name == pod.name && (pod.uid.isEmpty || $0.hasUID(pod.uid))
            }
    }

    /// All objects, for the disk.
    var manifests: [ManifestObject] {
        let objects = WatchedObjects.resources.flatMap { resource in
            (entries[resource] ?? [:]).sorted { $0.key < $1.key }.flatMap(\.value.objects)
        }
        return objects + (known.cilium.map { [.ciliumConfig($0.data)] } ?? [])
            + (known.services.kubeadm.isEmpty ? [] : [.kubeadmConfig(known.services.kubeadm)])
    }

    // MARK: changes

    mutating func set(_ object: JSON, of resource: Resource) -> Effect {
        let key = WatchedObjects.key(object)
        let before = entries[resource]?[key]
        let entry = read(object, before: before)
        entries[resource, default: [:]][key] = entry
        // Most changes are the kubelets' reports of their nodes' state, of which Culvert reads nothing but the annotation
        // kilo.squat.ai/last-seen. A newer one is put into the inventory, and is no reason to plan anew.
        if entry == before && resource != .nodes { return Effect() }
        let hasOwnNode = refresh(resource, [key])
        return entry == before ? Effect(hasOwnNode: hasOwnNode) : news(hasOwnNode: hasOwnNode)
    }

    mutating func delete(_ object: JSON, of resource: Resource) -> Effect {
        let key = WatchedObjects.key(object)
        // The deleted pod may have a successor of the same name, which the request of an ADD has brought in before this
        // event arrived.
        if case .pod(let known)? = entries[resource]?[key]?.objects.first,
            let uid = object["metadata"]?["uid"]?.string, known.uid != uid
        {
            return Effect()
        }
        entries[resource]?[key] = nil
        return news(hasOwnNode: refresh(resource, [key]))
    }

    /// Takes the whole content of a resource.
    mutating func replace(_ objects: [JSON], of resource: Resource) -> Effect {
        var listedEntries: [String: Entry] = [:]
        for object in objects {
            let key = WatchedObjects.key(object)
            listedEntries[key] = read(object, before: entries[resource]?[key])
        }
        let before = entries[resource] ?? [:]
        entries[resource] = listedEntries
        let isFirst = listed.insert(resource).inserted
        everKnown.insert(resource)
        if !isFirst && before == listedEntries {
            // Equal but for signs of life, which go into the inventory and are no news.
            return resource == .nodes ? Effect(hasOwnNode: refresh(resource, Set(listedEntries.keys))) : Effect()
        }
        // Once all Nodes are listed, a CiliumNode without a Node does not count any more.
        let others = resource == .nodes ? (entries[.ciliumNodes] ?? [:]).keys.map { $0 } : []
        return news(hasOwnNode: refresh(resource, Set(before.keys).union(listedEntries.keys).union(others)))
    }

    /// Takes what was written to disk, for resources that are not listed.
    mutating func load(_ objects: [ManifestObject]) -> Effect {
        for object in objects {
            let (resource, key): (Resource, String)
            switch object {
            case .node(let node), .publishedNode(let node): (resource, key) = (.nodes, "/" + node.name)
            case .ciliumNode(let node): (resource, key) = (.ciliumNodes, "/" + node.name)
            case .pod(let pod): (resource, key) = (.pods, pod.namespace + "/" + pod.name)
            case .namespace(let name, _): (resource, key) = (.namespaces, "/" + name)
            case .policy(let policy):
                (resource, key) = (Resource.policies(policy.source), "/" + policy.name)
            case .peer(let peer): (resource, key) = (.peers, "/" + peer.name)
            case .ciliumConfig(let data):
                known.cilium = known.cilium ?? CiliumSettings(data: data)
                continue
            case .kubeadmConfig(let networks):
                if !knownConfigMaps.contains("kubeadm-config") { known.services.kubeadm = networks }
                continue
            case .serviceCIDR(let name, _): (resource, key) = (.serviceCIDRs, "/" + name)
            case .apiServerService: continue
            }
            if !listed.contains(resource) { entries[resource, default: [:]][key] = Entry(objects: [object]) }
        }
        var hasOwnNode = false
        for resource in WatchedObjects.resources where refresh(resource, Set((entries[resource] ?? [:]).keys)) {
            hasOwnNode = true
        }
        everKnown = Set(WatchedObjects.resources)
        knownConfigMaps = Set(ConfigMapReader.names)
        return Effect(hasOwnNode: hasOwnNode)
    }

    /// Stores what the server answered about a ConfigMap. nil: it contains nothing of use.
    mutating func set(_ content: ManifestObject?, ofConfigMap name: String) -> Effect {
        knownConfigMaps.insert(name)
        switch content {
        case .ciliumConfig(let data)? where known.cilium?.data != data: known.cilium = CiliumSettings(data: data)
        case .kubeadmConfig(let networks)? where known.services.kubeadm != networks:
            known.services.kubeadm = networks
        default: return Effect()
        }
        return news()
    }

    /// An optional resource may not be read: what is known of it stays, and nobody waits for more.
    mutating func giveUp(_ resource: Resource) -> Effect {
        everKnown.insert(resource)
        return listed.insert(resource).inserted ? news() : Effect()
    }

    /// Takes what was found of a gateway; nil: the node is not a gateway any more, and keeps the annotations until it
    /// changes.
    mutating func set(_ found: GatewayLookups.Found?, ofGateway name: String) -> Effect {
        gateways[name] = found
        return found == nil ? Effect() : news(hasOwnNode: refresh(.nodes, ["/" + name]))
    }

    private mutating func news(hasOwnNode: Bool = false) -> Effect {
        known.revision = .init(number: known.revision.number + 1)
        return Effect(isNews: true, hasOwnNode: hasOwnNode)
    }

    // MARK: one object

    private static func key(_ object: JSON) -> String {
        let metadata = object["metadata"]
        return (metadata?["namespace"]?.string ?? "") + "/" + (metadata?["name"]?.string ?? "")
    }

    /// A malformed object keeps its last good content in force.
    private func read(_ object: JSON, before: Entry?) -> Entry {
        switch Manifests.read(object) {
        case .success(let objects):
            return Entry(
                objects: objects.map {
                    // Nodes have the same labels.
                    if knowsAllNodes, case .ciliumNode(var node) = $0 {
                        node.labels = [:]
                        return .ciliumNode(node)
                    }
                    return WatchedObjects.lean($0)
                })
        case .failure(let problem):
            if before?.problem != problem { logger.warning("inventory: \(problem)") }
            return Entry(objects: before?.objects ?? [], problem: problem)
        }
    }

    private static let lastSeen = "kilo.squat.ai/last-seen"

    /// Annotations that nobody here reads are left out: thousands of nodes have kilobytes of them.
    private static func lean(_ object: ManifestObject) -> ManifestObject {
        switch object {
        case .node(var node), .publishedNode(var node):
            node.annotations = node.annotations.filter { entry in
                ["kilo.squat.ai/", "culvert.dev/", "network.cilium.io/"].contains { entry.key.hasPrefix($0) }
            }
            // As a text, a sign of life would be news every half minute. (One that is malformed stays, and is reported.)
            if let seconds = node.annotations[lastSeen].flatMap({ Int64($0) }) {
                node.mesh.lastSeen = .init(seconds: seconds)
                node.annotations[lastSeen] = nil
            }
            return .node(node)
        case .pod(var pod):
            pod.annotations = pod.annotations.filter {
                $0.key.hasPrefix("culvert.dev/") || $0.key == "kubernetes.io/config.hash"
            }
            // Asked of pods with an address only: that it is told of each new pod would be one change of the inventory more.
            if pod.addresses.isEmpty { pod.startTime = nil }
            return .pod(pod)
        default: return object
        }
    }

    // MARK: nodes

    /// All Nodes are watched, so a name that is not in the list does not exist.
    private var knowsAllNodes: Bool { nodeReading != .own && listed.contains(.nodes) }

    /// The CiliumNodes have no labels, which Cilium's agent copies from the Nodes, and only the own Node is watched.
    var lacksNodeLabels: Bool {
        let (node, cilium) = node("/" + nodeName)
        let label = "kubernetes.io/hostname"
        guard nodeReading == .own, let node, let cilium else { return false }
        return node.labels[label] != nil && cilium.labels[label] == nil
    }

    /// From now on the metadata of all Nodes is watched. Until they are listed, what is known stays as it is.
    mutating func readAllNodes() {
        nodeReading = .metadata
        listed.remove(.nodes)
    }

    private func node(_ key: String) -> (Node?, CiliumNode?) {
        var node: Node?
        var cilium: CiliumNode?
        if case .node(let found)? = entries[.nodes]?[key]?.objects.first { node = found }
        if case .ciliumNode(let found)? = entries[.ciliumNodes]?[key]?.objects.first { cilium = found }
        return (node, cilium)
    }

    private mutating func mergeNode(_ key: String) {
        let (node, cilium) = self.node(key)
        let name = String(key.dropFirst())
        // A CiliumNode outlives its Node for a while: where all Nodes are known, it counts with its Node only.
        let hasNode = node != nil || (!knowsAllNodes && name != nodeName)
        var (merged, found) = NodeMerge.merge(node, cilium: hasNode ? cilium : nil)
        if let found = gateways[name] {
            // Where the metadata of all Nodes is watched, that is newer.
            if !knowsAllNodes { merged?.annotations.merge(found.annotations) { _, new in new } }
            if found.isGivenUp { merged?.isGivenUp = true }
        }
        known.nodes[name] = merged
        nodeProblems[name] = found.isEmpty ? nil : found
    }

    // MARK: the inventory

    /// Puts what has changed into the inventory.
    ///
    /// - Returns: whether the own Node was put together anew.
    private mutating func refresh(_ resource: Resource, _ keys: Set<String>) -> Bool {
        for key in keys { malformed["\(resource) \(key)"] = entries[resource]?[key]?.problem }
        switch resource {
        case .nodes, .ciliumNodes:
            for key in keys { mergeNode(key) }
            return keys.contains("/" + nodeName)
        case .pods:
            known.pods = objects(.pods) { if case .pod(let pod) = $0 { pod } else { nil } }
        case .namespaces:
            for key in keys {
                let name = String(key.dropFirst())
                if case .namespace(_, let labels)? = entries[.namespaces]?[key]?.objects.first {
                    known.namespaces[name] = labels
                } else {
                    known.namespaces[name] = nil
                }
            }
            return false
        case .serviceCIDRs:
            var networks: [String: [IPNetwork]] = [:]
            for case .serviceCIDR(let name, let found) in objects(.serviceCIDRs, { $0 }) { networks[name] = found }
            known.services.objects = networks
        case .peers:
            known.peers = objects(.peers) { if case .peer(let peer) = $0 { peer } else { nil } }
        default:
            known.policies = Resource.policyKinds.flatMap { resource in
                objects(resource) { if case .policy(let policy) = $0 { policy } else { nil } }
            }
        }
        known.putInOrder()
        return false
    }

    private func objects<T>(_ resource: Resource, _ pick: (ManifestObject) -> T?) -> [T] {
        (entries[resource] ?? [:]).values.flatMap { $0.objects.compactMap(pick) }
    }
}

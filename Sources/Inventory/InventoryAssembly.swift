import Model

extension Inventory {
    /// All objects of all files as one inventory. Of an object that is there twice the first, by file name, counts.
    init(assembling files: [String: [ManifestObject]]) {
        self.init()
        var nodes: [String: Node] = [:]
        var published: [String: Node] = [:]
        var ciliumNodes: [String: CiliumNode] = [:]
        var seen: [String: String] = [:]
        func isNew(_ key: String, _ file: String) -> Bool {
            if let first = seen[key] {
                problems.append(
                    InventoryProblem(file: file, message: "\(key) is also in \(first), which is the one that is used"))
                return false
            }
            seen[key] = file
            return true
        }
        for (file, objects) in files.sorted(by: { $0.key < $1.key }) {
            for object in objects {
                switch object {
                case .node(let node): if isNew("Node \(node.name)", file) { nodes[node.name] = node }
                case .publishedNode(let node):
                    if isNew("published Node \(node.name)", file) { published[node.name] = node }
                case .ciliumNode(let node):
                    if isNew("CiliumNode \(node.name)", file) { ciliumNodes[node.name] = node }
                case .pod(let pod):
                    if isNew("Pod \(pod.namespace)/\(pod.name)", file) { pods.append(pod) }
                case .namespace(let name, let labels):
                    if isNew("Namespace \(name)", file) { namespaces[name] = labels }
                case .policy(let policy):
                    if isNew("\(policy.source.rawValue) \(policy.name)", file) { policies.append(policy) }
                case .peer(let peer): if isNew("Peer \(peer.name)", file) { peers.append(peer) }
                case .ciliumConfig(let data):
                    if isNew("ConfigMap cilium-config", file) { cilium = CiliumSettings(data: data) }
                case .serviceCIDR(let name, let networks):
                    if isNew("ServiceCIDR \(name)", file) { services.objects[name] = networks }
                case .kubeadmConfig(let networks):
                    if isNew("ConfigMap kubeadm-config", file) { services.kubeadm = networks }
                case .apiServerService(let addresses):
                    if isNew("Service default/kubernetes", file) { services.apiServer = addresses }
                }
            }
        }
        for name in Set(nodes.keys).union(published.keys).union(ciliumNodes.keys).sorted() {
            let (node, found) = NodeMerge.merge(nodes[name], published: published[name], cilium: ciliumNodes[name])
            self.nodes[name] = node
            problems += found
        }
        putInOrder()
    }

    /// Lists in the order that makes equal content equal.
    public mutating func putInOrder() {
        peers.sort { $0.name < $1.name }
        pods.sort { ($0.namespace, $0.name) < ($1.namespace, $1.name) }
        policies.sort { $0.sortKey < $1.sortKey }
    }
}

/// Puts together what several objects contain about one node.
public enum NodeMerge {
    /// - Parameters:
    ///   - published: what the node says of itself.
    /// - Returns: the node, with its annotations about the mesh read; nil where there is none of the three.
    public static func merge(
        _ object: Node?, published: Node? = nil, cilium: CiliumNode?
    ) -> (node: Node?, problems: [InventoryProblem]) {
        guard let name = object?.name ?? published?.name ?? cilium?.name else { return (nil, []) }
        var node = object ?? published ?? Node(name: name)
        if let published, object != nil {
            node.labels.merge(published.labels) { _, new in new }
            node.annotations.merge(published.annotations) { _, new in new }
            node.internalIPs = Manifests.unique(published.internalIPs + node.internalIPs)
            node.overlayAddresses = Manifests.unique(published.overlayAddresses + node.overlayAddresses)
        }
        if let cilium {
            if object == nil && published == nil { node.labels = cilium.labels }
            node.internalIPs = Manifests.unique(node.internalIPs + cilium.internalIPs)
            node.externalIPs = Manifests.unique(node.externalIPs + cilium.externalIPs)
            node.overlayAddresses = Manifests.unique(node.overlayAddresses + cilium.overlayAddresses)
            // Cilium's own IPAM takes precedence over the Node.
            if !cilium.podCIDRs.isEmpty { node.podCIDRs = Manifests.unique(cilium.podCIDRs) }
        }
        node.overlayAddresses = Manifests.unique(
            node.overlayAddresses
                + NodeAddressAnnotations.addresses(NodeAddressAnnotations.lastOverlayAddresses, of: node.annotations))
        let (mesh, problems) = MeshAnnotationReader.read(node)
        node.mesh = mesh
        return (node, NodeAddressAnnotations.problems(of: node) + problems)
    }
}

import Jansson
import Model

/// One object of a manifest, of the kinds that Culvert reads.
public enum ManifestObject: Equatable, Sendable {
    case node(Node)
    /// A Node of metadata only, as nodes publish it of themselves: goes over the Node of that name.
    case publishedNode(Node)
    /// Addresses and pod CIDRs of the Node of this name.
    case ciliumNode(CiliumNode)
    case pod(Pod)
    case namespace(name: String, labels: [String: String])
    case policy(EgressPolicy)
    case peer(MeshPeer)
    case ciliumConfig([String: String])
    /// A ServiceCIDR (networking.k8s.io/v1).
    case serviceCIDR(name: String, networks: [IPNetwork])
    /// What kubeadm's ConfigMap says of Services' networks.
    case kubeadmConfig([IPNetwork])
    /// Addresses of the Service `kubernetes` in `default`.
    case apiServerService([IPAddress])
}

/// What a CiliumNode (cilium.io/v2), or Cilium's key-value store, says of the Node of its name.
public struct CiliumNode: Equatable, Sendable {
    public var name: String
    /// Those of the Node, which Cilium's agent keeps up to date.
    public var labels: [String: String] = [:]
    public var internalIPs: [IPAddress] = []
    public var externalIPs: [IPAddress] = []
    /// Addresses of `cilium_host`.
    public var overlayAddresses: [IPAddress] = []
    /// Of whatever IPAM mode; empty where a node has addresses and no networks.
    public var podCIDRs: [IPNetwork] = []
    public init(name: String) { self.name = name }
}

/// Kubernetes manifests: YAML or JSON, one or more documents, `List`s too.
public enum Manifests {
    /// Everything in one file, or what is wrong with it.
    public static func parse(_ text: String, file: String) -> Result<[ManifestObject], Problems> {
        let documents: [(number: Int, value: JSON)]
        do { documents = try YAMLDocuments.parse(text) } catch {
            return .failure(
                Problems(list: [InventoryProblem(file: file, document: error.document, message: error.message)]))
        }
        var objects: [ManifestObject] = []
        var problems: [InventoryProblem] = []
        for (number, value) in documents {
            do throws(ManifestReader.Failure) { try read(ManifestReader(value), into: &objects, depth: 0) } catch {
                problems.append(
                    InventoryProblem(file: file, document: number, field: error.field, message: error.message))
            }
        }
        return problems.isEmpty ? .success(objects) : .failure(Problems(list: problems))
    }

    /// One object as an API server sends it.
    public static func read(_ object: JSON) -> Result<[ManifestObject], InventoryProblem> {
        var objects: [ManifestObject] = []
        do throws(ManifestReader.Failure) {
            try read(ManifestReader(object), into: &objects, depth: 0)
            return .success(objects)
        } catch {
            let metadata = object["metadata"]
            let name = [metadata?["namespace"]?.string, metadata?["name"]?.string].compactMap { $0 }
            return .failure(
                InventoryProblem(
                    file: "\(object["kind"]?.string ?? "object") \(name.joined(separator: "/"))", field: error.field,
                    message: error.message))
        }
    }

    public struct Problems: Error, Equatable {
        public let list: [InventoryProblem]
    }

    private static func read(
        _ reader: ManifestReader, into objects: inout [ManifestObject], depth: Int
    ) throws(ManifestReader.Failure) {
        guard reader.value.members != nil else {
            throw ManifestReader.Failure(field: reader.path, message: "is not a Kubernetes object")
        }
        let kind = try reader.required("kind")
        let apiVersion = try reader.required("apiVersion")
        if kind.hasSuffix("List"), let items = try reader.objects("items") {
            guard depth < 4 else { throw reader.fail("items", "has Lists that are nested too deeply") }
            for item in items { try read(item, into: &objects, depth: depth + 1) }
            return
        }
        let group = apiVersion.split(separator: "/").count == 2 ? apiVersion.split(separator: "/")[0] : ""
        switch (group, kind) {
        case ("", "Node"):
            let spec = try reader.object("spec")
            let status = try reader.object("status")
            let isWhole = spec != nil || status != nil
            objects.append(isWhole ? .node(try node(reader)) : .publishedNode(try node(reader)))
        case ("cilium.io", "CiliumNode"): objects.append(.ciliumNode(try ciliumNode(reader)))
        case ("", "Pod"): objects.append(.pod(try pod(reader)))
        case ("", "Namespace"):
            let metadata = try metadata(reader)
            objects.append(.namespace(name: try metadata.required("name"), labels: try metadata.map("labels")))
        case ("cilium.io", "CiliumEgressGatewayPolicy"):
            objects.append(.policy(try PolicyManifest.read(reader, .cilium)))
        case ("culvert.dev", "EgressPolicy"): objects.append(.policy(try PolicyManifest.read(reader, .culvert)))
        case ("kilo.squat.ai", "Peer"): objects.append(.peer(try PeerManifest.read(reader)))
        case ("", "ConfigMap"):
            switch try metadata(reader).required("name") {
            case "cilium-config": objects.append(.ciliumConfig(try reader.map("data")))
            // Anybody may have one of this name in a namespace of their own.
            case "kubeadm-config" where try metadata(reader).string("namespace") ?? "kube-system" == "kube-system":
                objects.append(.kubeadmConfig(try ServiceNetworkManifests.kubeadm(reader)))
            default: break
            }
        case ("networking.k8s.io", "ServiceCIDR"):
            objects.append(try ServiceNetworkManifests.serviceCIDR(reader))
        case ("", "Service"):
            if let addresses = try ServiceNetworkManifests.apiServer(reader) {
                objects.append(.apiServerService(addresses))
            }
        default: break
        }
    }

    static func metadata(_ reader: ManifestReader) throws(ManifestReader.Failure) -> ManifestReader {
        guard let metadata = try reader.object("metadata") else { throw reader.fail("metadata", "is missing") }
        return metadata
    }

    private static func address(_ reader: ManifestReader, _ key: String) throws(ManifestReader.Failure) -> IPAddress? {
        guard let text = try reader.string(key), !text.isEmpty else { return nil }
        guard let address = IPAddress(text) else { throw reader.fail(key, "\"\(text)\" is not an IP address") }
        return address
    }

    /// Taints by which Kubernetes says that it has given a node up.
    private static let givenUpTaints: Set = [
        "node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service",
    ]

    private static func node(_ reader: ManifestReader) throws(ManifestReader.Failure) -> Node {
        let metadata = try metadata(reader)
        var node = Node(name: try metadata.required("name"))
        node.labels = try metadata.map("labels")
        node.annotations = try metadata.map("annotations")
        node.internalIPs = NodeAddressAnnotations.addresses(
            NodeAddressAnnotations.nodeAddresses, of: node.annotations)
        for address in try reader.object("status")?.objects("addresses") ?? [] {
            switch try address.string("type") ?? "" {
            case "InternalIP": node.internalIPs += [try Manifests.address(address, "address")].compactMap { $0 }
            case "ExternalIP": node.externalIPs += [try Manifests.address(address, "address")].compactMap { $0 }
            default: break
            }
        }
        node.overlayAddresses = NodeAddressAnnotations.addresses(
            NodeAddressAnnotations.overlayAddresses, of: node.annotations)
        if let spec = try reader.object("spec") {
            node.podCIDRs = try spec.networks("podCIDRs")
            if node.podCIDRs.isEmpty, let text = try spec.string("podCIDR"), !text.isEmpty {
                guard let network = IPNetwork(text) else {
                    throw spec.fail("podCIDR", "\"\(text)\" is not a network in CIDR notation")
                }
                node.podCIDRs = [network]
            }
            for taint in try spec.objects("taints") ?? []
            where givenUpTaints.contains(try taint.string("key") ?? "") {
                node.isGivenUp = true
            }
        }
        for network in NodeAddressAnnotations.networks(NodeAddressAnnotations.podCIDRs, of: node.annotations)
        where !node.podCIDRs.contains(where: { $0.family == network.family }) {
            node.podCIDRs.append(network)
        }
        node.internalIPs = unique(node.internalIPs)
        return node
    }

    static func unique<T: Hashable>(_ values: [T]) -> [T] {
        var seen: Set<T> = []
        return values.filter { seen.insert($0).inserted }
    }

    private static func ciliumNode(_ reader: ManifestReader) throws(ManifestReader.Failure) -> CiliumNode {
        let metadata = try metadata(reader)
        var node = CiliumNode(name: try metadata.required("name"))
        node.labels = try metadata.map("labels")
        guard let spec = try reader.object("spec") else { return node }
        for entry in try spec.objects("addresses") ?? [] {
            guard let address = try address(entry, "ip") else { continue }
            switch try entry.string("type") ?? "" {
            case "InternalIP": node.internalIPs.append(address)
            case "ExternalIP": node.externalIPs.append(address)
            case "CiliumInternalIP": node.overlayAddresses.append(address)
            default: break
            }
        }
        if let ipam = try spec.object("ipam") {
            // kubernetes and cluster-pool: one list. multi-pool: networks of every pool.
            node.podCIDRs = try ipam.networks("podCIDRs")
            for pool in try ipam.object("pools")?.objects("allocated") ?? [] {
                node.podCIDRs += try pool.networks("cidrs")
            }
            // CRD mode, and clouds' own (ENI, Azure): single addresses, and no network of that family.
            let families = Set(node.podCIDRs.map(\.family))
            for key in ["pool", "available"] {
                guard let pool = try ipam.object(key) else { continue }
                node.podCIDRs += (pool.value.members ?? []).compactMap { IPAddress($0.key) }.map {
                    IPNetwork(host: $0)
                }.filter { !families.contains($0.family) }.sorted()
            }
            node.podCIDRs = unique(node.podCIDRs)
        }
        return node
    }

    private static func pod(_ reader: ManifestReader) throws(ManifestReader.Failure) -> Pod {
        let metadata = try metadata(reader)
        var pod = Pod(
            namespace: try metadata.string("namespace") ?? "default", name: try metadata.required("name"),
            uid: try metadata.string("uid") ?? "")
        pod.labels = try metadata.map("labels")
        pod.annotations = try metadata.map("annotations")
        // A time that makes no sense takes nothing else with it.
        pod.startTime = metadata.value["creationTimestamp"]?.string.flatMap { Timestamp.seconds($0) }
        if let spec = try reader.object("spec") {
            pod.nodeName = try spec.string("nodeName") ?? ""
            pod.serviceAccount = try spec.string("serviceAccountName") ?? ""
            pod.hostNetwork = try spec.bool("hostNetwork") ?? false
        }
        if let status = try reader.object("status") {
            pod.phase = try status.string("phase") ?? ""
            pod.startTime = status.value["startTime"]?.string.flatMap { Timestamp.seconds($0) } ?? pod.startTime
            var addresses: [IPAddress] = []
            if let address = try address(status, "podIP") { addresses.append(address) }
            for entry in try status.objects("podIPs") ?? [] {
                if let address = try address(entry, "ip") { addresses.append(address) }
            }
            pod.addresses = unique(addresses)
        }
        return pod
    }
}

import FoundationEssentials
import Inventory
import Jansson
import Model

/// A node as Cilium keeps it in its key-value store: `cilium/state/nodes/v1/<cluster>/<node>` (Cilium's pkg/node/types).
struct CiliumNodeRecord: Equatable, Sendable {
    static let statePrefix = "cilium/state/nodes/v1"
    /// What kvstoremesh copies from other clusters.
    static let cachePrefix = "cilium/cache/nodes/v1"
    /// Written every minute by Cilium's operator.
    static let heartbeatKey = "cilium/.heartbeat"

    let cluster: String
    let clusterID: Int64
    let node: Node
    /// Its own part, which goes over what the Node says.
    let cilium: CiliumNode

    struct Malformed: Error, Equatable {
        let message: String
    }

    init(cluster: String, clusterID: Int64, node: Node, cilium: CiliumNode) {
        self.cluster = cluster
        self.clusterID = clusterID
        self.node = node
        self.cilium = cilium
    }

    /// - Parameters:
    ///   - cluster: as the key says.
    ///   - name: as the key says, and the value repeats.
    init(cluster: String, name: String, value: [UInt8]) throws(Malformed) {
        guard !name.isEmpty, !name.contains("/") else {
            throw Malformed(message: "the key is not …/nodes/v1/CLUSTER/NODE")
        }
        self.cluster = cluster
        let root: JSON
        do { root = try JSON.parse(value) } catch { throw Malformed(message: "is not JSON: \(error.description)") }
        clusterID = root["ClusterID"]?.integer ?? 0
        guard root["Name"]?.string ?? name == name else {
            throw Malformed(message: "Name is \"\(root["Name"]?.string ?? "")\"")
        }
        var node = Node(name: name)
        var cilium = CiliumNode(name: name)
        func map(_ key: String) -> [String: String] {
            var map: [String: String] = [:]
            for member in root[key]?.members ?? [] { map[member.key] = member.value.string }
            return map
        }
        node.labels = map("Labels")
        node.annotations = map("Annotations")
        for entry in root["IPAddresses"]?.elements ?? [] {
            let text = entry["IP"]?.string ?? ""
            guard let address = IPAddress(text) else {
                throw Malformed(message: "IPAddresses: \"\(text)\" is not an IP address")
            }
            switch entry["Type"]?.string {
            case "InternalIP": node.internalIPs.append(address)
            case "ExternalIP": node.externalIPs.append(address)
            case "CiliumInternalIP": cilium.overlayAddresses.append(address)
            default: break
            }
        }
        for key in ["IPv4AllocCIDR", "IPv6AllocCIDR"] {
            if let network = root[key], !network.isNull {
                cilium.podCIDRs.append(try CiliumNodeRecord.network(network, key))
            }
        }
        for key in ["IPv4SecondaryAllocCIDRs", "IPv6SecondaryAllocCIDRs"] {
            for network in root[key]?.elements ?? [] {
                cilium.podCIDRs.append(try CiliumNodeRecord.network(network, key))
            }
        }
        self.node = node
        self.cilium = cilium
    }

    /// Go's `net.IPNet`: the mask is base64 of its bytes.
    private static func network(_ value: JSON, _ field: String) throws(Malformed) -> IPNetwork {
        guard let address = value["IP"]?.string.flatMap({ IPAddress($0) }),
            let mask = value["Mask"]?.string.flatMap({ Data(base64Encoded: $0) })
        else { throw Malformed(message: "\(field) is not a network") }
        let bits = mask.reduce(0) { $0 + $1.nonzeroBitCount }
        // Ones, then zeros.
        var isOver = false
        for byte in mask {
            if isOver && byte != 0 { throw Malformed(message: "\(field): the mask is not contiguous") }
            if byte != 0xFF {
                isOver = true
                guard (~byte &+ 1) & ~byte == 0 else {
                    throw Malformed(message: "\(field): the mask is not contiguous")
                }
            }
        }
        guard mask.count * 8 == address.family.bits else {
            throw Malformed(message: "\(field): the mask is of another family")
        }
        return IPNetwork(address, prefixLength: bits)
    }
}

import Foundation
import Inventory
import Jansson
import Model

/// What a cluster holds, as the tests know it: the judge of what the inventory must come to.
struct ClusterContent {
    /// Manifests as JSON texts, by `Kind/namespace/name`.
    private(set) var objects: [String: String] = [:]

    /// A change that was made: what to say to the server.
    enum Step {
        case set(String)
        case delete(String)
    }

    mutating func set(_ kind: String, _ name: String, namespace: String = "", _ manifest: String) -> String {
        objects["\(kind)/\(namespace)/\(name)"] = manifest
        return manifest
    }

    /// A random change.
    mutating func change(_ random: inout some RandomNumberGenerator) -> Step {
        if objects.count > 10, Int.random(in: 0..<4, using: &random) == 0,
            let key = objects.keys.sorted().filter({ !$0.hasPrefix("Namespace") }).randomElement(using: &random)
        {
            return .delete(objects.removeValue(forKey: key) ?? "")
        }
        let n = Int.random(in: 0..<12, using: &random)
        let r = Int.random(in: 0..<200, using: &random)
        switch Int.random(in: 0..<7, using: &random) {
        case 0: return .set(set("Node", "n\(n)", Self.node(n, r)))
        case 1: return .set(set("CiliumNode", "n\(n)", Self.ciliumNode(n, r)))
        case 2:
            return .set(set("Pod", "p\(n)", namespace: "ns\(n % 3)", Self.pod(n, node: "n\(r % 2)", label: "v\(r)")))
        case 3: return .set(set("Namespace", "ns\(n % 3)", Self.namespace(n % 3, "v\(r)")))
        case 4:
            return .set(set("EgressPolicy", "e\(n)", Self.policy("culvert.dev/v1alpha1", "EgressPolicy", "e\(n)", r)))
        case 5:
            return .set(
                set(
                    "CiliumEgressGatewayPolicy", "c\(n)",
                    Self.policy("cilium.io/v2", "CiliumEgressGatewayPolicy", "c\(n)", r)))
        default: return .set(set("Peer", "peer\(n)", Self.peer(n, r)))
        }
    }

    static func node(_ n: Int, _ r: Int) -> String {
        """
        {"apiVersion":"v1","kind":"Node","metadata":{"name":"n\(n)","labels":{"zone":"z\(r)"},"annotations":{"kilo.squat.ai/location":"l\(r % 3)"}},
         "spec":{"podCIDRs":["10.244.\(n).0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.\(n + 1)"},{"type":"Hostname","address":"n\(n)"}]}}
        """
    }
    static func ciliumNode(_ n: Int, _ r: Int) -> String {
        """
        {"apiVersion":"cilium.io/v2","kind":"CiliumNode","metadata":{"name":"n\(n)"},
         "spec":{"addresses":[{"type":"CiliumInternalIP","ip":"10.244.\(n).\(r)"}],"ipam":{"podCIDRs":["10.244.\(n).0/24"]}}}
        """
    }
    static func pod(_ n: Int, node: String, label: String) -> String {
        """
        {"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"ns\(n % 3)","name":"p\(n)","uid":"uid-\(n)","labels":{"app":"\(label)"}},
         "spec":{"nodeName":"\(node)","containers":[{"name":"c","image":"i"}]},"status":{"phase":"Running","podIPs":[{"ip":"10.244.0.\(n + 10)"}]}}
        """
    }
    static func namespace(_ n: Int, _ label: String) -> String {
        """
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"ns\(n)","labels":{"team":"\(label)","kubernetes.io/metadata.name":"ns\(n)"}}}
        """
    }
    static func policy(_ version: String, _ kind: String, _ name: String, _ r: Int) -> String {
        """
        {"apiVersion":"\(version)","kind":"\(kind)","metadata":{"name":"\(name)"},"spec":{"selectors":[{"podSelector":{"matchLabels":{"app":"v\(r)"}}}],
         "destinationCIDRs":["203.0.\(r).0/24"],"egressGateway":{"nodeSelector":{"matchLabels":{"zone":"z1"}}}}}
        """
    }
    static func peer(_ n: Int, _ r: Int) -> String {
        let key = Data((0..<32).map { UInt8($0 == 0 ? n + 1 : 7) }).base64EncodedString()
        return """
            {"apiVersion":"kilo.squat.ai/v1alpha1","kind":"Peer","metadata":{"name":"peer\(n)"},
             "spec":{"publicKey":"\(key)","allowedIPs":["10.5.\(n).\(r)/32"],"endpoint":{"dnsOrIP":{"ip":"198.51.100.7"},"port":51820}}}
            """
    }

    /// What a helper on the node must come to know: nodes that have a Node, pods of its own.
    func expected(on nodeName: String) -> Inventory {
        var inventory = Inventory()
        var nodes: [String: Node] = [:]
        var ciliumNodes: [String: CiliumNode] = [:]
        for manifest in objects.values {
            guard let json = try? JSON.parse(Array(manifest.utf8)), case .success(let found) = Manifests.read(json)
            else {
                continue
            }
            for object in found {
                switch object {
                case .node(let node), .publishedNode(let node): nodes[node.name] = node
                case .ciliumNode(let node): ciliumNodes[node.name] = node
                case .pod(let pod): if pod.nodeName == nodeName { inventory.pods.append(pod) }
                case .namespace(let name, let labels): inventory.namespaces[name] = labels
                case .policy(let policy): inventory.policies.append(policy)
                case .peer(let peer): inventory.peers.append(peer)
                case .serviceCIDR(let name, let networks): inventory.services.objects[name] = networks
                case .ciliumConfig, .kubeadmConfig, .apiServerService: break
                }
            }
        }
        for (name, node) in nodes { inventory.nodes[name] = NodeMerge.merge(node, cilium: ciliumNodes[name]).node }
        inventory.putInOrder()
        return inventory
    }
}

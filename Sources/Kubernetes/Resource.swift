import Jansson
import Model

/// A resource of the API server.
public struct Resource: Hashable, Sendable, CustomStringConvertible {
    public let group: String
    public let version: String
    public let plural: String
    public let kind: String
    /// False where a cluster may lack the resource: it comes with a CustomResourceDefinition, or with a later release.
    public let isBuiltIn: Bool

    init(_ group: String, _ version: String, _ plural: String, _ kind: String) {
        self.group = group
        self.version = version
        self.plural = plural
        self.kind = kind
        isBuiltIn = group.isEmpty
    }

    public static let nodes = Resource("", "v1", "nodes", "Node")
    public static let pods = Resource("", "v1", "pods", "Pod")
    public static let namespaces = Resource("", "v1", "namespaces", "Namespace")
    public static let configMaps = Resource("", "v1", "configmaps", "ConfigMap")
    public static let events = Resource("", "v1", "events", "Event")
    public static let ciliumNodes = Resource("cilium.io", "v2", "ciliumnodes", "CiliumNode")
    public static let ciliumEgressGatewayPolicies = Resource(
        "cilium.io", "v2", "ciliumegressgatewaypolicies", "CiliumEgressGatewayPolicy")
    public static let egressPolicies = Resource("culvert.dev", "v1alpha1", "egresspolicies", "EgressPolicy")
    public static let peers = Resource("kilo.squat.ai", "v1alpha1", "peers", "Peer")

    /// Networks of Services; Kubernetes has them since 1.33.
    public static let serviceCIDRs = Resource("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR")

    /// Whether a cluster works without this resource: one that the server does not serve, or does not let us read, says
    /// nothing, and holds nothing up.
    var isOptional: Bool { self == .serviceCIDRs }

    /// The kinds of policies.
    static let policyKinds = [egressPolicies, ciliumEgressGatewayPolicies]

    /// The policies of one kind.
    static func policies(_ source: EgressPolicy.Source) -> Resource {
        source == .culvert ? egressPolicies : ciliumEgressGatewayPolicies
    }

    /// The object with the resource's own apiVersion and kind: lists of built-in resources leave them out, and metadata has
    /// others.
    func stamp(_ object: JSON) -> JSON {
        guard let members = object.members else { return object }
        return .object(
            [.init("apiVersion", .string(apiVersion)), .init("kind", .string(kind))]
                + members.filter { $0.key != "kind" && $0.key != "apiVersion" })
    }

    public var apiVersion: String { group.isEmpty ? version : "\(group)/\(version)" }
    public var description: String { group.isEmpty ? plural : "\(plural).\(group)" }

    /// Path below the server.
    public func path(namespace: String? = nil, name: String? = nil, subresource: String? = nil) -> String {
        var path = group.isEmpty ? "/api/\(version)" : "/apis/\(group)/\(version)"
        if let namespace { path += "/namespaces/\(namespace)" }
        path += "/\(plural)"
        if let name { path += "/\(name)" }
        if let subresource { path += "/\(subresource)" }
        return path
    }
}

import Foundation
import Jansson
import Model

/// The helper's configuration file, `culvertd.yaml`. Every key is optional; `install/culvertd.yaml` has them all with
/// their defaults.
public struct HelperConfiguration: Equatable, Sendable {
    public var node: String?
    public var source = Source.file
    /// `file`: directory of manifests.
    public var inventoryPath = "/etc/culvert/inventory.d"
    /// `kubernetes`: a kubeconfig; nil: the pod's service account.
    public var kubeconfig: String?
    /// `kubernetes`: instead of the kubeconfig's current one.
    public var context: String?
    /// `etcd`: Cilium's own configuration of its key-value store.
    public var etcdConfiguration = "/var/lib/etcd-config/etcd.config"
    /// `etcd`: its addresses, instead of such a file; empty: the file says them.
    public var etcdEndpoints: [String] = []
    /// `etcd`: PEM files that go with `etcdEndpoints`.
    public var etcdAuthorityFile: String?
    public var etcdCertificateFile: String?
    public var etcdKeyFile: String?
    /// `etcd`: where nodes are, without the cluster's name; nil: where the store says.
    public var etcdPrefix: String?
    /// `etcd`: Cilium's directory of other clusters of the mesh, a file each; nil: there are none.
    public var clusterMesh: String?
    /// `etcd`: Cilium's `cluster-name`.
    public var clusterName = "default"
    /// `kubernetes`: instead of the API server that the environment or the kubeconfig names.
    public var server: String?
    public var planner = Configuration()
    public var logLevel = "info"
    public init() {}

    /// Where nodes, pods and policies come from.
    public enum Source: String, Sendable { case file, kubernetes, etcd }

    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// - Throws: what is wrong with which key, and what it may be.
    public init(contentsOf path: String) throws(Failure) {
        guard let data = FileManager.default.contents(atPath: path), let text = String(data: data, encoding: .utf8)
        else {
            throw Failure(description: "\(path): cannot be read")
        }
        do throws(Failure) { try self.init(text: text) } catch {
            throw Failure(description: "\(path): \(error.description)")
        }
    }

    public init(text: String) throws(Failure) {
        let documents: [(number: Int, value: JSON)]
        do { documents = try YAMLDocuments.parse(text) } catch { throw Failure(description: error.message) }
        guard documents.count <= 1 else { throw Failure(description: "has more than one document") }
        guard let root = documents.first?.value else { return }
        guard root.members != nil else { throw Failure(description: "is not a map") }
        do throws(ManifestReader.Failure) { try read(ManifestReader(root)) } catch {
            throw Failure(description: "\(error.field) \(error.message)")
        }
    }

    private mutating func read(_ root: ManifestReader) throws(ManifestReader.Failure) {
        try HelperConfiguration.only(
            root, ["node", "inventory", "encapsulation", "mesh", "egress", "cluster", "listen", "log"])
        node = try root.string("node")
        if let inventory = try root.object("inventory") {
            try HelperConfiguration.only(
                inventory,
                [
                    "source", "path", "kubeconfig", "context", "server", "etcdConfig", "clusterMesh", "clusterName",
                    "endpoints", "prefix", "caFile", "certFile", "keyFile",
                ])
            let name = try inventory.string("source") ?? "file"
            guard let source = Source(rawValue: name) else {
                throw inventory.fail("source", "\"\(name)\" is none of file, kubernetes, etcd")
            }
            self.source = source
            inventoryPath = try inventory.string("path") ?? inventoryPath
            kubeconfig = try inventory.string("kubeconfig")
            context = try inventory.string("context")
            server = try inventory.string("server")
            etcdConfiguration = try inventory.string("etcdConfig") ?? etcdConfiguration
            etcdEndpoints = try inventory.strings("endpoints") ?? []
            etcdPrefix = try inventory.string("prefix")
            etcdAuthorityFile = try inventory.string("caFile")
            etcdCertificateFile = try inventory.string("certFile")
            etcdKeyFile = try inventory.string("keyFile")
            for (key, value) in [
                ("caFile", etcdAuthorityFile), ("certFile", etcdCertificateFile), ("keyFile", etcdKeyFile),
            ] where value != nil && etcdEndpoints.isEmpty {
                throw inventory.fail(key, "goes with endpoints; with etcdConfig, that file names it")
            }
            clusterMesh = try inventory.string("clusterMesh")
            clusterName = try inventory.string("clusterName") ?? clusterName
        }
        if let encapsulation = try root.object("encapsulation") {
            try HelperConfiguration.only(encapsulation, ["protocol", "overlay", "strategy"])
            let name = try encapsulation.string("protocol") ?? "ipip"
            guard let choice = Configuration.TunnelProtocol(rawValue: name) else {
                throw encapsulation.fail("protocol", "\"\(name)\" is none of ipip, fou, vxlan")
            }
            planner.tunnelProtocol = choice
            let overlay = try encapsulation.string("overlay") ?? "cilium"
            guard let carrier = Configuration.Overlay(rawValue: overlay) else {
                throw encapsulation.fail("overlay", "\"\(overlay)\" is none of cilium, flannel, none")
            }
            planner.overlay = carrier
            let strategy = try encapsulation.string("strategy") ?? "always"
            guard let when = MeshConfiguration.Strategy(rawValue: strategy) else {
                throw encapsulation.fail("strategy", "\"\(strategy)\" is none of always, crosssubnet, never")
            }
            planner.mesh.strategy = when
        }
        if let mesh = try root.object("mesh") {
            try read(mesh: mesh)
        }
        if let egress = try root.object("egress") {
            try HelperConfiguration.only(egress, ["honorCiliumPolicies"])
            planner.honorCiliumPolicies = try egress.bool("honorCiliumPolicies") ?? true
        }
        if let cluster = try root.object("cluster") {
            try HelperConfiguration.only(cluster, ["serviceCIDRs", "excludedCIDRs", "nodeCIDRs"])
            planner.nodeCIDRs = try cluster.networks("nodeCIDRs")
            planner.serviceCIDRs = try cluster.networks("serviceCIDRs")
            planner.excludedCIDRs = try cluster.networks("excludedCIDRs")
        }
        if let listen = try root.object("listen") {
            try HelperConfiguration.only(listen, ["metrics"])
            if try listen.string("metrics") != nil {
                throw listen.fail("metrics", "is not supported by this release; leave it null")
            }
        }
        if let log = try root.object("log") {
            try HelperConfiguration.only(log, ["level"])
            logLevel = try log.string("level") ?? "info"
            let levels = ["trace", "debug", "info", "notice", "warning", "error", "critical"]
            guard levels.contains(logLevel) else {
                throw log.fail("level", "\"\(logLevel)\" is none of \(levels.joined(separator: ", "))")
            }
        }
    }

    private mutating func read(mesh: ManifestReader) throws(ManifestReader.Failure) {
        try HelperConfiguration.only(
            mesh,
            [
                "enabled", "kiloInterop", "granularity", "subnet", "port", "interface", "manageLocalRoutes",
                "topologyLabel", "persistentKeepalive", "allowedLocationCIDRs",
            ])
        planner.mesh.allowedLocationCIDRs = try mesh.networks("allowedLocationCIDRs")
        planner.mesh.enabled = try mesh.bool("enabled") ?? true
        planner.mesh.kiloInterop = try mesh.bool("kiloInterop") ?? false
        if let text = try mesh.string("granularity") {
            guard let granularity = MeshConfiguration.Granularity(rawValue: text) else {
                throw mesh.fail("granularity", "\"\(text)\" is neither location nor full")
            }
            planner.mesh.granularity = granularity
        }
        if let text = try mesh.string("subnet") {
            guard let subnet = IPNetwork(text), subnet.family == .v4, subnet.prefixLength <= 30 else {
                throw mesh.fail("subnet", "\"\(text)\" is not an IPv4 network of at least four addresses")
            }
            planner.mesh.subnet = subnet
        }
        if let port = try mesh.integer("port") {
            guard let value = UInt16(exactly: port), value > 0 else { throw mesh.fail("port", "is not a port") }
            planner.mesh.port = value
        }
        if let name = try mesh.string("interface") {
            // Cilium takes other devices with an address and a route for its own, and masquerades on them.
            guard name.hasPrefix(Ownership.linkPrefix), name.utf8.count <= 15, name != Ownership.mainTunnel else {
                throw mesh.fail(
                    "interface",
                    "\"\(name)\" must begin with \(Ownership.linkPrefix) and have at most 15 characters, and not be \(Ownership.mainTunnel)"
                )
            }
            planner.mesh.interface = name
        }
        planner.mesh.topologyLabel = try mesh.string("topologyLabel") ?? planner.mesh.topologyLabel
        if let seconds = try mesh.integer("persistentKeepalive") {
            guard let value = UInt16(exactly: seconds) else {
                throw mesh.fail("persistentKeepalive", "is not a number of seconds, 0 to 65535")
            }
            planner.mesh.persistentKeepalive = value
        }
        if planner.mesh.kiloInterop && source != .kubernetes {
            throw mesh.fail(
                "kiloInterop",
                "needs inventory.source kubernetes: what the nodes say of themselves must reach Kilo's nodes within a minute"
            )
        }
        planner.mesh.manageLocalRoutes = try mesh.bool("manageLocalRoutes") ?? false
        if planner.mesh.manageLocalRoutes && planner.overlay != .none {
            throw mesh.fail(
                "manageLocalRoutes",
                "cannot be true with encapsulation.overlay \(planner.overlay.rawValue): pods of the own location are the overlay's, and a second route to them would take its packets away; set it to false, or the overlay to none"
            )
        }
    }

    private static func only(_ reader: ManifestReader, _ keys: Set<String>) throws(ManifestReader.Failure) {
        if let unknown = reader.unknownMember(besides: keys) {
            throw ManifestReader.Failure(field: unknown, message: "is no key of this release's configuration")
        }
    }
}

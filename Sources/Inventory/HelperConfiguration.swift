import FoundationEssentials
import Glibc
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
    /// The group that `api.sock` belongs to, by name or number; nil: the helper's own.
    public var apiGroup: String?
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
        var found: [Problem] = []
        self.init(text: text, problems: &found)
        if let first = found.first { throw Failure(description: first.description) }
    }

    /// Everything that is wrong with a configuration file, in the file's order of sections; empty: it is valid.
    public static func problems(text: String) -> [Problem] {
        var found: [Problem] = []
        _ = HelperConfiguration(text: text, problems: &found)
        return found
    }

    /// What is wrong with one key.
    public struct Problem: Equatable, Sendable, CustomStringConvertible {
        /// e.g. `mesh.port`; empty: the file as a whole.
        public let key: String
        /// What is wrong, and what may stand there.
        public let message: String
        public var description: String { key.isEmpty ? message : "\(key) \(message)" }
    }

    /// What is wrong keeps its default, so that one error does not hide the next.
    private init(text: String, problems: inout [Problem]) {
        let documents: [(number: Int, value: JSON)]
        do { documents = try YAMLDocuments.parse(text) } catch {
            problems.append(Problem(key: "", message: error.message))
            return
        }
        guard documents.count <= 1 else {
            problems.append(Problem(key: "", message: "has more than one document"))
            return
        }
        guard let root = documents.first?.value else { return }
        guard root.members != nil else {
            problems.append(Problem(key: "", message: "is not a map"))
            return
        }
        var errors = Errors()
        read(ManifestReader(root), &errors)
        problems += errors.found
    }

    /// Collects what is wrong, so that the reading goes on.
    private struct Errors {
        private(set) var found: [Problem] = []

        mutating func add(_ failure: ManifestReader.Failure) {
            found.append(Problem(key: failure.field, message: failure.message))
        }
        /// The value, nil where it is absent or wrong.
        mutating func value<T>(_ read: () throws(ManifestReader.Failure) -> T?) -> T? {
            do throws(ManifestReader.Failure) { return try read() } catch {
                add(error)
                return nil
            }
        }
        /// One of an enumeration's names.
        mutating func choice<T: RawRepresentable>(
            _ reader: ManifestReader, _ key: String, _ names: [String], of type: T.Type
        ) -> T? where T.RawValue == String {
            guard let name = value({ () throws(ManifestReader.Failure) in try reader.string(key) }) else { return nil }
            guard let choice = T(rawValue: name) else {
                add(reader.fail(key, "\"\(name)\" is none of \(names.joined(separator: ", "))"))
                return nil
            }
            return choice
        }
        /// A section, which has these keys and no others.
        mutating func section(_ root: ManifestReader, _ key: String, _ keys: [String]) -> ManifestReader? {
            guard let reader = value({ () throws(ManifestReader.Failure) in try root.object(key) }) else { return nil }
            only(reader, keys)
            return reader
        }
        mutating func only(_ reader: ManifestReader, _ keys: [String]) {
            for unknown in reader.unknownMembers(besides: Set(keys)) {
                add(
                    ManifestReader.Failure(
                        field: unknown,
                        message:
                            "is not a key of this release's configuration; the keys here are \(keys.joined(separator: ", "))"
                    ))
            }
        }
        mutating func string(_ reader: ManifestReader, _ key: String) -> String? {
            value { () throws(ManifestReader.Failure) in try reader.string(key) }
        }
        mutating func bool(_ reader: ManifestReader, _ key: String) -> Bool? {
            value { () throws(ManifestReader.Failure) in try reader.bool(key) }
        }
        mutating func networks(_ reader: ManifestReader, _ key: String) -> [IPNetwork] {
            value { () throws(ManifestReader.Failure) in try reader.networks(key) } ?? []
        }
    }

    private mutating func read(_ root: ManifestReader, _ errors: inout Errors) {
        errors.only(root, ["node", "inventory", "encapsulation", "mesh", "egress", "cluster", "listen", "log"])
        node = errors.string(root, "node")
        let inventory = errors.section(
            root, "inventory",
            [
                "source", "path", "kubeconfig", "context", "server", "etcdConfig", "clusterMesh", "clusterName",
                "endpoints", "prefix", "caFile", "certFile", "keyFile",
            ])
        if let inventory { read(inventory: inventory, &errors) }
        let encapsulation = errors.section(root, "encapsulation", ["protocol", "overlay", "strategy"])
        if let encapsulation {
            let protocols = Configuration.TunnelProtocol.allCases.map(\.rawValue)
            planner.tunnelProtocol =
                errors.choice(encapsulation, "protocol", protocols, of: Configuration.TunnelProtocol.self)
                ?? planner.tunnelProtocol
            planner.overlay =
                errors.choice(
                    encapsulation, "overlay", ["cilium", "flannel", "none"], of: Configuration.Overlay.self)
                ?? planner.overlay
            planner.mesh.strategy =
                errors.choice(
                    encapsulation, "strategy", ["always", "crosssubnet", "never"], of: MeshConfiguration.Strategy.self)
                ?? planner.mesh.strategy
        }
        let mesh = errors.section(
            root, "mesh",
            [
                "enabled", "kiloInterop", "granularity", "subnet", "port", "interface", "manageLocalRoutes",
                "topologyLabel", "persistentKeepalive", "allowedLocationCIDRs",
            ])
        if let mesh { read(mesh: mesh, &errors) }
        if let egress = errors.section(root, "egress", ["honorCiliumPolicies", "allowNone", "defaultPolicy"]) {
            planner.defaultPolicy = errors.string(egress, "defaultPolicy")
            planner.allowNone =
                errors.value { () throws(ManifestReader.Failure) in try egress.namespaces("allowNone") }
                ?? planner.allowNone
            planner.honorCiliumPolicies = errors.bool(egress, "honorCiliumPolicies") ?? true
        }
        if let cluster = errors.section(root, "cluster", ["serviceCIDRs", "excludedCIDRs", "nodeCIDRs"]) {
            planner.nodeCIDRs = errors.networks(cluster, "nodeCIDRs")
            planner.serviceCIDRs = errors.networks(cluster, "serviceCIDRs")
            planner.excludedCIDRs = errors.networks(cluster, "excludedCIDRs")
        }
        if let listen = errors.section(root, "listen", ["metrics", "apiGroup"]) {
            apiGroup = errors.string(listen, "apiGroup")
            if errors.string(listen, "metrics") != nil {
                errors.add(listen.fail("metrics", "is not supported by this release; leave it null"))
            }
        }
        if let log = errors.section(root, "log", ["level"]), let level = errors.string(log, "level") {
            let levels = ["trace", "debug", "info", "notice", "warning", "error", "critical"]
            if levels.contains(level) {
                logLevel = level
            } else {
                errors.add(log.fail("level", "\"\(level)\" is none of \(levels.joined(separator: ", "))"))
            }
        }
    }

    private mutating func read(inventory: ManifestReader, _ errors: inout Errors) {
        source = errors.choice(inventory, "source", ["file", "kubernetes", "etcd"], of: Source.self) ?? source
        inventoryPath = errors.string(inventory, "path") ?? inventoryPath
        kubeconfig = errors.string(inventory, "kubeconfig")
        context = errors.string(inventory, "context")
        server = errors.string(inventory, "server")
        etcdConfiguration = errors.string(inventory, "etcdConfig") ?? etcdConfiguration
        etcdEndpoints =
            errors.value { () throws(ManifestReader.Failure) in try inventory.strings("endpoints") } ?? []
        etcdPrefix = errors.string(inventory, "prefix")
        etcdAuthorityFile = errors.string(inventory, "caFile")
        etcdCertificateFile = errors.string(inventory, "certFile")
        etcdKeyFile = errors.string(inventory, "keyFile")
        for (key, value) in [
            ("caFile", etcdAuthorityFile), ("certFile", etcdCertificateFile), ("keyFile", etcdKeyFile),
        ] where value != nil && etcdEndpoints.isEmpty {
            errors.add(
                inventory.fail(key, "can only be set together with endpoints; with etcdConfig, that file contains it"))
        }
        clusterMesh = errors.string(inventory, "clusterMesh")
        clusterName = errors.string(inventory, "clusterName") ?? clusterName
    }

    private mutating func read(mesh: ManifestReader, _ errors: inout Errors) {
        planner.mesh.allowedLocationCIDRs = errors.networks(mesh, "allowedLocationCIDRs")
        planner.mesh.enabled = errors.bool(mesh, "enabled") ?? true
        planner.mesh.kiloInterop = errors.bool(mesh, "kiloInterop") ?? false
        if let text = errors.string(mesh, "granularity") {
            if let granularity = MeshConfiguration.Granularity(rawValue: text) {
                planner.mesh.granularity = granularity
            } else {
                errors.add(mesh.fail("granularity", "\"\(text)\" is neither location nor full"))
            }
        }
        if let text = errors.string(mesh, "subnet") {
            if let subnet = IPNetwork(text), subnet.family == .v4, subnet.prefixLength <= 30 {
                planner.mesh.subnet = subnet
            } else {
                errors.add(mesh.fail("subnet", "\"\(text)\" is not an IPv4 network of at least four addresses"))
            }
        }
        if let port = errors.value({ () throws(ManifestReader.Failure) in try mesh.integer("port") }) {
            if let value = UInt16(exactly: port), value > 0 {
                planner.mesh.port = value
            } else {
                errors.add(mesh.fail("port", "is not a port, 1 to 65535"))
            }
        }
        if let name = errors.string(mesh, "interface") {
            // Cilium takes other devices with an address and a route for its own, and masquerades on them.
            if name.hasPrefix(Ownership.linkPrefix), name.utf8.count <= 15, name != Ownership.mainTunnel {
                planner.mesh.interface = name
            } else {
                errors.add(
                    mesh.fail(
                        "interface",
                        "\"\(name)\" must begin with \(Ownership.linkPrefix) and have at most 15 characters, and not be \(Ownership.mainTunnel)"
                    ))
            }
        }
        planner.mesh.topologyLabel = errors.string(mesh, "topologyLabel") ?? planner.mesh.topologyLabel
        if let seconds = errors.value({ () throws(ManifestReader.Failure) in try mesh.integer("persistentKeepalive") })
        {
            if let value = UInt16(exactly: seconds) {
                planner.mesh.persistentKeepalive = value
            } else {
                errors.add(mesh.fail("persistentKeepalive", "is not a number of seconds, 0 to 65535"))
            }
        }
        if planner.mesh.kiloInterop && source != .kubernetes {
            errors.add(
                mesh.fail(
                    "kiloInterop",
                    "needs inventory.source kubernetes: Kilo's nodes must see the annotations of this node within a minute"
                ))
        }
        planner.mesh.manageLocalRoutes = errors.bool(mesh, "manageLocalRoutes") ?? false
        if planner.mesh.manageLocalRoutes && planner.overlay != .none {
            errors.add(
                mesh.fail(
                    "manageLocalRoutes",
                    "cannot be true with encapsulation.overlay \(planner.overlay.rawValue): the overlay routes packets to the pods of the same location, and a second route would take them; set it to false, or set the overlay to none"
                ))
        }
    }
}

import Foundation
import Jansson
import Model

/// The helper's configuration file, `culvertd.yaml`. Every key is optional; `install/culvertd.yaml` has them all with
/// their defaults.
public struct HelperConfiguration: Equatable, Sendable {
    public var node: String?
    public var inventoryPath = "/etc/culvert/inventory.d"
    public var planner = Configuration()
    public var logLevel = "info"
    public init() {}

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
            try HelperConfiguration.only(inventory, ["source", "path"])
            let source = try inventory.string("source") ?? "file"
            guard source == "file" else {
                throw inventory.fail("source", "\"\(source)\" is not supported by this release; it must be file")
            }
            inventoryPath = try inventory.string("path") ?? inventoryPath
        }
        if let encapsulation = try root.object("encapsulation") {
            try HelperConfiguration.only(encapsulation, ["protocol", "overlay"])
            let name = try encapsulation.string("protocol") ?? "ipip"
            guard let choice = Configuration.TunnelProtocol(rawValue: name) else {
                throw encapsulation.fail("protocol", "\"\(name)\" is none of ipip, fou, vxlan")
            }
            planner.tunnelProtocol = choice
            let overlay = try encapsulation.string("overlay") ?? "cilium"
            guard overlay == "cilium" else {
                throw encapsulation.fail(
                    "overlay", "\"\(overlay)\" is not supported by this release; it must be cilium")
            }
        }
        if let mesh = try root.object("mesh") {
            try HelperConfiguration.only(mesh, ["enabled"])
            if try mesh.bool("enabled") ?? false {
                throw mesh.fail("enabled", "true is not supported by this release")
            }
        }
        if let egress = try root.object("egress") {
            try HelperConfiguration.only(egress, ["honorCiliumPolicies"])
            planner.honorCiliumPolicies = try egress.bool("honorCiliumPolicies") ?? true
        }
        if let cluster = try root.object("cluster") {
            try HelperConfiguration.only(cluster, ["serviceCIDRs", "excludedCIDRs"])
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

    private static func only(_ reader: ManifestReader, _ keys: Set<String>) throws(ManifestReader.Failure) {
        if let unknown = reader.unknownMember(besides: keys) {
            throw ManifestReader.Failure(field: unknown, message: "is no key of this release's configuration")
        }
    }
}

import Etcd
import Foundation
import Inventory
import Kubernetes
import Logging

/// The source that the configuration names.
enum InventorySources {
    /// - Throws: where it cannot be had at all; a server that does not answer is waited for.
    static func make(
        _ settings: HelperConfiguration, nodeName: String, stateDirectory: String, logger: Logger
    ) async throws -> any InventorySource {
        switch settings.source {
        case .file: return FileSource(directory: settings.inventoryPath)
        case .kubernetes:
            let access =
                if let path = settings.kubeconfig {
                    try ClusterAccess.kubeconfig(path, context: settings.context, server: settings.server)
                } else {
                    try ClusterAccess.inCluster(
                        server: settings.server, environment: ProcessInfo.processInfo.environment)
                }
            let client = try KubernetesClient(
                access: access, userAgent: "culvertd/\(Culvertd.configuration.version) (\(nodeName))")
            // Before the sockets' umask, which would take the directory's x bits.
            mkdir(stateDirectory, 0o750)
            let inventory = KubernetesInventory(
                client: client, nodeName: nodeName, cachePath: stateDirectory + "/inventory.json",
                nodes: settings.planner.overlay != .cilium
                    ? .whole : settings.planner.mesh.enabled ? .metadata : .own, logger: logger)
            await inventory.start()
            return inventory
        case .etcd:
            let own =
                settings.etcdEndpoints.isEmpty
                ? try EtcdConfiguration(contentsOf: settings.etcdConfiguration)
                : try EtcdConfiguration(
                    endpoints: settings.etcdEndpoints,
                    files: .init(
                        certificateAuthority: settings.etcdAuthorityFile, certificate: settings.etcdCertificateFile,
                        key: settings.etcdKeyFile))
            var clusters = [
                EtcdInventory.Cluster(name: settings.clusterName, configuration: own, prefix: settings.etcdPrefix)
            ]
            if let directory = settings.clusterMesh {
                // A file each, named like the cluster; keys and certificates beside them have other endings.
                let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
                for name in names.sorted() where !name.contains(".") && name != settings.clusterName {
                    clusters.append(
                        .init(name: name, configuration: try EtcdConfiguration(contentsOf: "\(directory)/\(name)")))
                }
            }
            mkdir(stateDirectory, 0o750)
            let inventory = try EtcdInventory(
                clusters: clusters, directory: settings.inventoryPath, cachePath: stateDirectory + "/etcd-nodes.json",
                logger: logger)
            await inventory.start()
            return inventory
        }
    }
}

import ArgumentParser
import Etcd
import FoundationEssentials
import Glibc
import Inventory
import Kubernetes
import Logging

/// The source that the configuration names, and the publisher that goes with it.
enum InventorySources {
    private static func client(_ settings: HelperConfiguration, nodeName: String) throws -> KubernetesClient {
        let access =
            if let path = settings.kubeconfig {
                try ClusterAccess.kubeconfig(path, context: settings.context, server: settings.server)
            } else {
                try ClusterAccess.inCluster(
                    server: settings.server, environment: ProcessInfo.processInfo.environment)
            }
        return try KubernetesClient(
            access: access, userAgent: "culvertd/\(Culvertd.configuration.version) (\(nodeName))")
    }

    /// Takes back what the helper has written into its Node.
    ///
    /// - Throws: why it cannot be done.
    static func withdraw(_ settings: HelperConfiguration, nodeName: String) async throws {
        let client = try client(settings, nodeName: nodeName)
        do {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { try await KubernetesPublisher.withdraw(fromNode: nodeName, client: client) }
                group.addTask {
                    try await Task.sleep(for: patience)
                    throw ValidationError("the API server has not answered for \(patience.components.seconds) s")
                }
                defer { group.cancelAll() }
                try await group.next()
            }
        } catch {
            await client.shutdown()
            throw error
        }
        await client.shutdown()
    }

    /// For so long somebody who waits at a terminal is kept waiting by a server that accepts and says nothing.
    private static let patience = Duration.seconds(10)

    /// What `make` has chosen.
    struct Chosen: Sendable {
        let source: any InventorySource
        let publisher: any NodePublisher
        /// Begins to read, and waits until what is there is known. A server that does not answer is waited for without
        /// limit where no inventory is on disk.
        let begin: @Sendable () async -> Void
    }

    /// - Throws: where it cannot be had at all.
    static func make(
        _ settings: HelperConfiguration, nodeName: String, stateDirectory: String, logger: Logger
    ) throws -> Chosen {
        switch settings.source {
        case .file:
            return Chosen(source: FileSource(directory: settings.inventoryPath), publisher: NoPublisher(), begin: {})
        case .kubernetes:
            let client = try client(settings, nodeName: nodeName)
            // Before the sockets' umask, which would take the directory's x bits.
            mkdir(stateDirectory, 0o750)
            let inventory = KubernetesInventory(
                client: client, nodeName: nodeName, cachePath: stateDirectory + "/inventory.json",
                nodes: settings.planner.overlay != .cilium
                    ? .whole : settings.planner.mesh.enabled ? .metadata : .own, logger: logger)
            let publisher = KubernetesPublisher(
                client: client, nodeName: nodeName, inventory: inventory, logger: logger)
            return Chosen(source: inventory, publisher: publisher) {
                await publisher.start()
                await inventory.start()
            }
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
            return Chosen(source: inventory, publisher: NoPublisher()) { await inventory.start() }
        }
    }
}

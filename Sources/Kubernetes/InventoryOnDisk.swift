import Foundation
import Inventory
import Logging
import Model

/// The last inventory on disk, from which a helper goes on while the API server cannot be reached.
extension KubernetesInventory {
    /// Writes the inventory to disk once it is whole, and then a minute after a change at the latest.
    func keepCache() async {
        while !Task.isCancelled {
            let isWhole = cachedAt == nil && isComplete
            if isWhole && isCacheStale { await saveCache() }
            try? await clock.sleep(for: isWhole ? .seconds(60) : .milliseconds(100))
        }
    }

    public func saveCache() async {
        guard let cachePath, isComplete else { return }
        isCacheStale = false
        var objects = KubernetesInventory.watched.flatMap { resource in
            (entries[resource] ?? [:]).sorted { $0.key < $1.key }.flatMap(\.value.objects)
        }
        if let cilium = known.cilium { objects.append(.ciliumConfig(cilium.data)) }
        do { try await InventoryCache.write(objects, to: cachePath) } catch {
            logger.warning("the inventory cannot be kept on disk", metadata: ["error": "\(error)"])
        }
    }

    /// - Returns: whether there was one to go on from.
    func loadCache() -> Bool {
        guard let cachePath, let (objects, date) = InventoryCache.read(cachePath) else { return false }
        for object in objects {
            let (resource, key): (Resource, String)
            switch object {
            case .node(let node), .publishedNode(let node): (resource, key) = (.nodes, "/" + node.name)
            case .ciliumNode(let node): (resource, key) = (.ciliumNodes, "/" + node.name)
            case .pod(let pod): (resource, key) = (.pods, pod.namespace + "/" + pod.name)
            case .namespace(let name, _): (resource, key) = (.namespaces, "/" + name)
            case .policy(let policy):
                (resource, key) = (Resource.policies(policy.source), "/" + policy.name)
            case .peer(let peer): (resource, key) = (.peers, "/" + peer.name)
            case .ciliumConfig(let data):
                known.cilium = known.cilium ?? CiliumSettings(data: data)
                continue
            }
            if !listed.contains(resource) { entries[resource, default: [:]][key] = Entry(objects: [object]) }
        }
        for resource in KubernetesInventory.watched { refresh(resource, Set((entries[resource] ?? [:]).keys)) }
        everKnown = Set(KubernetesInventory.watched)
        cachedAt = date
        logger.warning(
            "the API server cannot be reached: going on from the inventory on disk",
            metadata: ["written": "\(date)", "problem": "\(problemText)"])
        return true
    }
}

import FoundationEssentials
import Glibc
import Inventory
import Logging

/// The last inventory on disk, from which a helper goes on while the API server cannot be reached.
actor InventoryOnDisk {
    private let path: String
    private let clock: any Clock<Duration>
    private let logger: Logger
    /// Of the inventory that was written last.
    private var savedRevision: UInt64 = 0

    init(path: String, clock: any Clock<Duration>, logger: Logger) {
        self.path = path
        self.clock = clock
        self.logger = logger
    }

    /// Writes the inventory to disk once it is whole, and then a minute after a change at the latest. Until the task is
    /// cancelled.
    ///
    /// - Parameter content: what the watches have brought; nil: it is not whole.
    func keep(_ content: @Sendable () async -> WatchedObjects?) async {
        while !Task.isCancelled {
            let objects = await content()
            if let objects, objects.revision != savedRevision { await save(objects) }
            try? await clock.sleep(for: objects == nil ? .milliseconds(100) : .seconds(60))
        }
    }

    func save(_ objects: WatchedObjects) async {
        do {
            try await InventoryCache.write(objects.manifests, to: path)
            savedRevision = objects.revision
        } catch {
            logger.warning("the inventory cannot be saved to disk", metadata: ["error": "\(error)"])
        }
    }

    /// nil where there is none, or where it is damaged.
    nonisolated func load() -> (objects: [ManifestObject], written: Date)? { InventoryCache.read(path) }

    /// Whether an object of this resource is in it.
    nonisolated func has(_ resource: Resource) -> Bool { InventoryCache.has(resource.kind, path) }
}

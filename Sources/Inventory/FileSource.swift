import CLinux
import Jansson
import Model

/// The inventory directory as a source: read at the start and whenever something in it changes.
public actor FileSource: InventorySource {
    public nonisolated let changes: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation
    private let directory: String
    private var manifests: FileInventory
    public nonisolated var files: FileSource? { self }

    public init(directory: String) {
        self.directory = directory
        manifests = FileInventory(directory: directory)
        (changes, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    /// Watches the directory, for as long as the process lives. Blocks: for a thread of its own.
    public nonisolated func watch() {
        var watch: DirectoryWatch?
        while true {
            if let present = watch, access(directory, R_OK) == 0 {
                if present.wait(milliseconds: 5000) { signal.yield() }
            } else {
                watch = DirectoryWatch(directory)
                if watch == nil { sleep(1) }
                // Whatever happened before the watch began.
                signal.yield()
            }
        }
    }

    public func inventory() -> Inventory { manifests.read() }
    /// Files are complete by definition: a pod that they do not hold has no labels.
    public func identify(_ pod: PodReference) -> PodLookup { PodLookup(.given) }
    /// `<run-dir>/published` is all there is.
    public func publish(annotations: [String: String]) {}
    public func report(_ policies: [PolicyReport]) {}
    public func useGateways(_ names: Set<String>) {}
    public func record(_ event: ObjectEvent) {}
    public func status() -> JSON { .make(("source", .string("file")), ("path", .string(directory))) }
}

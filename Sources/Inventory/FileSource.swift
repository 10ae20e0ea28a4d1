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

    /// How long a directory must have had no manifests to count as empty: whoever replaces all files may take the old ones
    /// away first.
    static let emptyPatience = Duration.milliseconds(200)
    private var emptySince: ContinuousClock.Instant?
    /// Signals the end of that time.
    private var emptyTimer: Task<Void, Never>?

    public init(directory: String) {
        self.directory = directory
        manifests = FileInventory(directory: directory)
        (changes, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    }

    /// Watches the directory, for as long as the process lives. Blocks: for a thread of its own.
    public nonisolated func watch() {
        var current: DirectoryWatch?
        while true {
            if let watch = current, watch.isWatching(directory) {
                switch watch.wait(milliseconds: 1000) {
                case .changed: signal.yield()
                case .unchanged: break
                case .ended: current = nil
                }
            } else {
                current = DirectoryWatch(directory)
                if current == nil { sleep(1) }
                // Whatever happened before the watch began.
                signal.yield()
            }
        }
    }

    public func inventory() -> Inventory {
        if let inventory = manifests.readUnlessEmpty() {
            emptySince = nil
            return inventory
        }
        let since = emptySince ?? .now
        emptySince = since
        let left = FileSource.emptyPatience - (.now - since)
        guard left > .zero else { return manifests.read() }
        emptyTimer?.cancel()
        emptyTimer = Task { [signal] in
            try? await Task.sleep(for: left)
            if !Task.isCancelled { signal.yield() }
        }
        return manifests.lastRead(unknown: "\(directory): empty for less than 200 ms")
    }

    /// Files are complete by definition: a pod that they do not hold has no labels.
    public nonisolated func identify(_ pod: PodReference) -> PodLookup { PodLookup(.given) }
    /// All annotations in the files are read anyway.
    public nonisolated func look(atGateways names: Set<String>, inDoubt: Set<String>) {}
    public func status() -> JSON { SourceField.object((.source, .string("file")), (.path, .string(directory))) }
}

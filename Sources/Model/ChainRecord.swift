import Jansson

/// Since when the plugin has been called for the containers of this node: what `culvertd install` keeps for the helper.
public struct ChainRecord: Equatable, Sendable {
    /// When `culvertd install` chained the plugin for the first time, seconds since 1970.
    public var since: Int64
    /// The plugin was in the chain already when the installer first looked, so it may have been there for longer.
    public var isFound: Bool
    /// The plugin's entry lets, or may have let, pods start while the helper cannot be reached.
    public var allowsWithoutHelper: Bool

    public init(since: Int64, isFound: Bool = false, allowsWithoutHelper: Bool = false) {
        self.since = since
        self.isFound = isFound
        self.allowsWithoutHelper = allowsWithoutHelper
    }

    /// nil: it makes no sense, and so nothing is known.
    public init?(_ json: JSON) {
        guard let since = json["since"]?.string.flatMap({ Timestamp.seconds($0) }) else { return nil }
        // Where a later release leaves something out, the less is claimed.
        self.init(
            since: since, isFound: json["found"]?.bool ?? true,
            allowsWithoutHelper: json["allowsWithoutHelper"]?.bool ?? true)
    }

    public var json: JSON {
        .make(
            ("version", .integer(1)), ("since", .string(Timestamp.text(since))), ("found", .bool(isFound)),
            ("allowsWithoutHelper", .bool(allowsWithoutHelper)))
    }
}

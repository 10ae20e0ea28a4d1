import Jansson

/// What `culvertd install` has come to on this node: for its readiness probe, and for the helper's status. It is a small file
/// in the run directory. What is new in a release is added to it, so that the release before reads it too.
public struct ChainState: Equatable, Sendable {
    public enum Phase: String, Sendable {
        /// The plugin is called exactly once for each container that starts now.
        case chained
        /// Nothing can be done yet.
        case waiting
        /// Another program has taken the plugin out, and it is not put back at once.
        case resting
        /// Given up, or ended with an error.
        case failed
    }
    public let phase: Phase
    /// Why the plugin is not in the chain, and the remedy; empty where it is.
    public let reason: String
    /// The network's own file; empty where none is chained.
    public let file: String
    /// How the plugin got into the chain, for example `own-list`; empty where it is not, or where somebody else wrote the
    /// entry.
    public let method: String

    public init(_ phase: Phase, reason: String, file: String = "", method: String = "") {
        self.phase = phase
        self.reason = reason
        self.file = file
        self.method = method
    }

    /// nil: the outcome is of no duration, and what was before stays.
    public init?(_ outcome: ChainWatch.Outcome) {
        switch outcome {
        case .chained(let file, let method):
            self.init(.chained, reason: "", file: file, method: method?.rawValue ?? "")
        case .waiting(let why), .obstructed(let why): self.init(.waiting, reason: why)
        case .resting:
            self.init(
                .resting,
                reason: "another program takes Culvert's plugin out of the chain: waiting before it is put back")
        case .failed(let why), .defeated(let why): self.init(.failed, reason: why)
        case .overtaken: return nil
        }
    }

    public init?(_ json: JSON) {
        guard let phase = json["state"]?.string.flatMap({ Phase(rawValue: $0) }) else { return nil }
        self.init(
            phase, reason: json["reason"]?.string ?? "", file: json["file"]?.string ?? "",
            method: json["method"]?.string ?? "")
    }

    public var json: JSON {
        .make(
            ("state", .string(phase.rawValue)), ("reason", .string(reason)), ("file", .string(file)),
            ("method", .string(method)))
    }

    /// One line.
    public var line: String {
        guard phase == .chained else { return "\(phase.rawValue): \(reason)" }
        return "chained: \(method.isEmpty ? "an entry that somebody else wrote" : method), \(file)"
    }

    /// Where it is kept.
    public static func path(runDirectory: String) -> String { runDirectory + "/chain.json" }

    /// nil: no installer has been at work here.
    public static func read(runDirectory: String) -> ChainState? {
        guard let file = try? FileAccess.read(path(runDirectory: runDirectory), most: 1 << 16),
            let json = try? JSON.parse(file.bytes)
        else { return nil }
        return ChainState(json)
    }
}

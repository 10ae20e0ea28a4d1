import Jansson

/// Culvert's entry in a network's list of plugins, as the installer writes it.
public struct PluginEntry: Equatable, Sendable {
    /// The plugin's type, which is the name of its program.
    public static let type = "culvert"
    /// A member that the plugin does not read. It tells the installer's entries from those that an administrator wrote, also
    /// after the file was rewritten by somebody.
    static let markKey = "installedBy"
    static let mark = "culvertd install"

    /// Compact JSON, one line.
    public let text: [UInt8]

    /// - Parameters:
    ///   - socket: the helper's `cni.sock`.
    ///   - allowsWithoutHelper: pods start without Culvert while the helper cannot be reached.
    public init(socket: String, allowsWithoutHelper: Bool = false) {
        text = JSON.make(
            ("type", .string(PluginEntry.type)), ("socket", .string(socket)),
            ("whenHelperUnavailable", .string(allowsWithoutHelper ? "allow" : "refuse")),
            ("capabilities", .make(("io.kubernetes.cri.pod-annotations", .bool(true)))),
            (PluginEntry.markKey, .string(PluginEntry.mark))
        ).bytes()
    }
}

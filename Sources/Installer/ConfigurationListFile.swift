import Jansson

/// One network's configuration as a CNI runtime reads it (CNI specification 1.1.0, section 1): a list of plugins in a
/// `.conflist` file, or a single plugin in a `.conf` or `.json` file. What is changed in it keeps every other byte.
public struct ConfigurationListFile: Equatable, Sendable {
    /// The bytes of the file.
    public let text: [UInt8]
    /// The network's name. It has only characters that libcni accepts, so it is a safe name of a directory.
    public let network: String
    /// In a `.conf` or `.json` file there is one plugin, and no list to add one to.
    public let isList: Bool
    /// libcni 1.3 reads further plugins from `<network>/*.conf` unless the list says `loadOnlyInlinedPlugins`.
    public let takesDropIns: Bool
    private let plugins: [Plugin]
    private let version: Range<Int>?
    private let name: Range<Int>

    private struct Plugin: Equatable, Sendable {
        let range: Range<Int>
        let type: String
        let isMarked: Bool
        let takesAnnotations: Bool
    }

    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// - Parameter fileName: decides how a runtime reads the text.
    /// - Throws: why a runtime could not use the text.
    public init(_ text: [UInt8], fileName: String) throws(Failure) {
        let root: JSONOutline.Value
        do throws(JSONOutline.Failure) { root = try JSONOutline.read(text) } catch {
            throw Failure(description: "is not JSON: \(error.message) (byte \(error.offset))")
        }
        guard case .object(let members) = root.kind else { throw Failure(description: "is not a JSON object") }
        // The last one counts where a key is there twice, as it does for the runtimes, which are written in Go.
        func member(_ key: String) -> JSONOutline.Value? { members.last { $0.key == key }?.value }
        guard let name = member("name"), case .string(let network) = name.kind,
            ConfigurationListFile.isNetworkName(network)
        else { throw Failure(description: "has no network name") }
        self.text = text
        self.network = network
        self.name = name.range
        version = member("cniVersion")?.range
        isList = fileName.hasSuffix(".conflist")
        switch member("loadOnlyInlinedPlugins")?.kind {
        case .bool(true)?: takesDropIns = false
        case .string(let text)? where text.lowercased() == "true": takesDropIns = false
        default: takesDropIns = isList
        }
        guard isList else {
            guard let plugin = ConfigurationListFile.plugin(root) else {
                throw Failure(description: "has no plugin type")
            }
            plugins = [plugin]
            return
        }
        guard let list = member("plugins"), case .array(let elements) = list.kind, !elements.isEmpty else {
            throw Failure(description: "has no plugins")
        }
        var plugins: [Plugin] = []
        for (index, element) in elements.enumerated() {
            guard let plugin = ConfigurationListFile.plugin(element) else {
                throw Failure(description: "has no type in plugin \(index + 1)")
            }
            plugins.append(plugin)
        }
        self.plugins = plugins
    }

    private static func plugin(_ value: JSONOutline.Value) -> Plugin? {
        guard case .object(let members) = value.kind,
            case .string(let type)? = members.last(where: { $0.key == "type" })?.value.kind, !type.isEmpty
        else { return nil }
        var isMarked = false
        if case .string(PluginEntry.mark)? = members.last(where: { $0.key == PluginEntry.markKey })?.value.kind {
            isMarked = type == PluginEntry.type
        }
        var takesAnnotations = false
        if case .object(let capabilities)? = members.last(where: { $0.key == "capabilities" })?.value.kind,
            case .bool(true)? = capabilities.last(where: { $0.key == "io.kubernetes.cri.pod-annotations" })?.value.kind
        {
            takesAnnotations = true
        }
        return Plugin(range: value.range, type: type, isMarked: isMarked, takesAnnotations: takesAnnotations)
    }

    /// libcni's rule: a letter or digit, then letters, digits, `_`, `.` and `-`.
    static func isNetworkName(_ name: String) -> Bool {
        func isAlphanumeric(_ byte: UInt8) -> Bool {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                true
            default: false
            }
        }
        guard let first = name.utf8.first, isAlphanumeric(first), name.utf8.count <= 200 else { return false }
        return name.utf8.allSatisfy { isAlphanumeric($0) || [0x5F, 0x2E, 0x2D].contains($0) }
    }

    /// How often a runtime would call Culvert's plugin for one container.
    public var calls: Int { plugins.filter { $0.type == PluginEntry.type }.count }
    /// Entries that the installer wrote.
    public var markedEntries: Int { plugins.filter(\.isMarked).count }
    /// Entries that somebody else wrote.
    public var foreignEntries: Int { calls - markedEntries }
    /// Pod annotations are handed to every one of Culvert's entries.
    public var handsAnnotationsOver: Bool {
        plugins.allSatisfy { $0.type != PluginEntry.type || $0.takesAnnotations }
    }
    /// There is exactly one entry of the installer's, and `entry` says the same, however both are written.
    func hasOnce(_ entry: PluginEntry) -> Bool {
        guard markedEntries == 1, let plugin = plugins.first(where: \.isMarked) else { return false }
        return text[plugin.range].elementsEqual(entry.text)
            || (try? JSON.parse(Array(text[plugin.range]))) == (try? JSON.parse(entry.text))
    }
    /// No plugin but the installer's own entries.
    var isOnlyOurs: Bool { plugins.allSatisfy(\.isMarked) }

    /// The text with `entry` as the last plugin, written with the white space that stands before the last plugin there is.
    /// Of a file with a single plugin: a list of that plugin and `entry`.
    func adding(_ entry: PluginEntry) -> [UInt8] {
        guard isList else {
            var list = Array("{".utf8)
            if let version { list += Array("\"cniVersion\": ".utf8) + text[version] + Array(", ".utf8) }
            list += Array("\"name\": ".utf8) + text[name] + Array(", \"plugins\": [\n".utf8)
            return list + text[plugins[0].range] + Array(",\n".utf8) + entry.text + Array("\n]}\n".utf8)
        }
        let last = plugins[plugins.count - 1].range
        var start = last.lowerBound
        while start > 0, [0x20, 0x09, 0x0A, 0x0D].contains(text[start - 1]) { start -= 1 }
        let separator = [UInt8(ascii: ",")] + text[start..<last.lowerBound]
        return text[..<last.upperBound] + separator + entry.text + text[last.upperBound...]
    }

    /// The text without the installer's entries: where they were added by `adding`, the text from before, byte for byte.
    func withoutMarkedEntries() -> [UInt8] {
        guard isList, markedEntries > 0, !isOnlyOurs else { return text }
        var kept: [UInt8] = []
        var place = 0
        for (index, plugin) in plugins.enumerated() where plugin.isMarked {
            // With the comma and white space that lead to the entry; at the beginning of the list with those behind it.
            let hasKeptBefore = plugins[..<index].contains { !$0.isMarked }
            let start = hasKeptBefore ? plugins[index - 1].range.upperBound : plugin.range.lowerBound
            let end = hasKeptBefore ? plugin.range.upperBound : plugins[index + 1].range.lowerBound
            kept += text[place..<max(place, start)]
            place = end
        }
        return kept + text[place...]
    }
}

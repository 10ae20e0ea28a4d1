/// In which directory does the container runtime look for plugins? containerd's configuration says so: Debian's package of
/// it, for one, names another directory than the usual one.
public enum PluginDirectory {
    /// Where Kubernetes nodes have their plugins.
    public static let usual = "/opt/cni/bin"
    /// Where containerd is configured, on the distributions that a package of ours is for.
    public static let containerdConfiguration = "/etc/containerd/config.toml"

    /// The directory that containerd's configuration names; the usual one where there is no configuration or it names none.
    public static func ofRuntime(configuration: String = containerdConfiguration) -> String {
        guard let file = try? FileAccess.read(configuration, most: FileAccess.mostConfiguration, followsLinks: true)
        else { return usual }
        return named(in: String(decoding: file.bytes, as: UTF8.self)) ?? usual
    }

    /// The first value of `bin_dir`, or of the list `bin_dirs` of containerd 2.2, in the table of the CRI's networks. nil:
    /// there is none, or it is not an absolute path.
    static func named(in configuration: String) -> String? {
        var isNetworkTable = false
        for line in configuration.split(whereSeparator: \.isNewline) {
            let line = line.drop(while: \.isWhitespace)
            if line.first == "[" {
                // [plugins."io.containerd.grpc.v1.cri".cni], and io.containerd.cri.v1.runtime from containerd 2.0 on.
                isNetworkTable = line.prefix { $0 != "]" }.hasSuffix(".cni")
                continue
            }
            let parts = line.split(separator: "=", maxSplits: 1)
            guard isNetworkTable, parts.count == 2, ["bin_dir", "bin_dirs"].contains(parts[0].trimmedOfSpaces),
                let quote = parts[1].first(where: { $0 == "\"" || $0 == "'" })
            else { continue }
            let value = parts[1].drop { $0 != quote }.dropFirst().prefix { $0 != quote }
            if value.hasPrefix("/") { return String(value) }
        }
        return nil
    }
}

extension Substring {
    fileprivate var trimmedOfSpaces: Substring {
        var text = self
        while text.last?.isWhitespace == true { text.removeLast() }
        return text
    }
}

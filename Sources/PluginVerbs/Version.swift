#if !hasFeature(Embedded)
    import CNI
    import Jansson
#endif

extension Plugin {
    /// VERSION: with or without a configuration on stdin. `cniVersion` is the one asked with, or the latest.
    static func versionResult(stdin: [UInt8]) throws(CNIError) -> String {
        var version = CNIVersion.latest.text
        if stdin.contains(where: { $0 > 32 }) {
            let root: JSON
            do { root = try JSON.parse(stdin) } catch {
                throw CNIError(.decodingFailure, "the configuration on stdin is not JSON", details: error.description)
            }
            if let asked = root["cniVersion"]?.string, !asked.isEmpty { version = asked }
        }
        return JSON.make(
            ("cniVersion", .string(version)),
            ("supportedVersions", .array(CNIVersion.allCases.map { .string($0.text) }))
        ).text(indent: 2)
    }
}

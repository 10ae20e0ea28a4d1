import CNI
import Foundation
import PluginVerbs

/// The plugin's stdin, for every verb. Whatever comes, the answer is an outcome, never a crash.
func check(_ bytes: [UInt8]) {
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
        let environment = [
            "CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": "/nowhere", "CNI_IFNAME": "eth0", "CNI_PATH": "/",
            "CNI_ARGS": String(decoding: bytes.prefix(64), as: UTF8.self),
        ]
        for arguments in [environment["CNI_ARGS"], nil] {
            _ = Plugin.run(
                variable: { $0 == "CNI_ARGS" ? arguments : environment[$0] }, stdin: { _ throws(CNIError) in bytes })
        }
    }
}

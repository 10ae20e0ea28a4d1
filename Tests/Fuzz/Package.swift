// swift-tools-version: 6.1
import Foundation
import PackageDescription

// The rooms that read what strangers write, compiled once more for libFuzzer and AddressSanitizer.
let toolchain: String = {
    for directory in (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":") {
        let candidate = URL(fileURLWithPath: String(directory) + "/swiftc").resolvingSymlinksInPath()
        let usr = candidate.deletingLastPathComponent().deletingLastPathComponent()
        if FileManager.default.fileExists(atPath: usr.path + "/lib/swift/embedded") { return usr.path }
    }
    return "/usr"
}()
let clang = (try? FileManager.default.contentsOfDirectory(atPath: toolchain + "/lib/clang"))?.first ?? ""
#if arch(arm64)
    let architecture = "aarch64"
#else
    let architecture = "x86_64"
#endif
let fuzzed: [SwiftSetting] = [.unsafeFlags(["-sanitize=fuzzer,address"])]
let fuzzer: [LinkerSetting] = [
    .unsafeFlags([
        "-sanitize=address",
        "\(toolchain)/lib/clang/\(clang)/lib/linux/libclang_rt.fuzzer_no_main-\(architecture).a",
        "-lstdc++", "-lm", "-Xlinker", "-l:libjansson.a", "-Xlinker", "-l:libyaml.a",
    ])
]
func target(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .executableTarget(name: name, dependencies: dependencies, swiftSettings: fuzzed, linkerSettings: fuzzer)
}

let package = Package(
    name: "culvert-fuzz",
    targets: [
        .target(name: "CLinux"),
        .systemLibrary(name: "CJansson"),
        .systemLibrary(name: "CYAML"),
        .target(name: "Jansson", dependencies: ["CJansson"], swiftSettings: fuzzed),
        .target(name: "CNI", dependencies: ["Jansson"], swiftSettings: fuzzed),
        .target(name: "HelperProtocol", dependencies: ["CNI", "Jansson", "CLinux"], swiftSettings: fuzzed),
        .target(
            name: "PluginVerbs", dependencies: ["CNI", "HelperProtocol", "Jansson", "CLinux"], swiftSettings: fuzzed),
        .target(name: "Model", dependencies: ["CLinux", "Jansson"], swiftSettings: fuzzed),
        .target(
            name: "Inventory", dependencies: ["Model", "Jansson", "CLinux", "CYAML"],
            swiftSettings: fuzzed),
        .target(name: "Planner", dependencies: ["Model", "Jansson"], swiftSettings: fuzzed),
        .target(
            name: "Liveness", dependencies: ["Planner"], sources: ["EchoPacket.swift", "EchoSession.swift"],
            swiftSettings: fuzzed),
        target("FuzzEcho", ["Liveness", "Planner"]),
        target("FuzzPlugin", ["PluginVerbs", "CNI"]),
        target("FuzzRequest", ["HelperProtocol"]),
        target("FuzzManifests", ["Inventory"]),
    ],
    swiftLanguageModes: [.v6]
)

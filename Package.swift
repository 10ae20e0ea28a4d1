// swift-tools-version: 6.1
import Foundation
import PackageDescription

// The plugin is built with Embedded Swift and linked fully static. Its linker flags need the
// toolchain's own directory, which is found next to the `swift` that runs this manifest.
let toolchain: String = {
    let environment = ProcessInfo.processInfo.environment
    if let explicit = environment["CULVERT_SWIFT_TOOLCHAIN"] { return explicit }
    for directory in (environment["PATH"] ?? "").split(separator: ":") {
        let candidate = URL(fileURLWithPath: String(directory) + "/swiftc").resolvingSymlinksInPath()
        let usr = candidate.deletingLastPathComponent().deletingLastPathComponent()
        if FileManager.default.fileExists(atPath: usr.path + "/lib/swift/embedded") { return usr.path }
    }
    return "/usr"
}()
#if arch(arm64)
    let embeddedTriple = "aarch64-none-none-elf"
    let musl = "/usr/lib/aarch64-linux-musl"
#else
    let embeddedTriple = "x86_64-unknown-linux-gnu"
    let musl = "/usr/lib/x86_64-linux-musl"
#endif

// The static standard library comes with an option that exports every symbol of a program, for plugins that it might load:
// 4 MB of names, and the linker may then leave out nothing.
let noExports: [LinkerSetting] = [.unsafeFlags(["-Xlinker", "--no-export-dynamic"])]

let janssonStatic: [LinkerSetting] = [.unsafeFlags(["-Xlinker", "-l:libjansson.a"])]

let clusterClient: [Target.Dependency] = [
    .product(name: "AsyncHTTPClient", package: "async-http-client"),
    .product(name: "NIOCore", package: "swift-nio"), .product(name: "Logging", package: "swift-log"),
]

let package = Package(
    name: "culvert",
    products: [
        .executable(name: "culvert", targets: ["culvert"]),
        .executable(name: "culvertd", targets: ["culvertd"]),
        .executable(name: "culvertctl", targets: ["culvertctl"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2"),
    ],
    targets: [
        // Function by function, so that the plugin leaves out what musl has not: mallinfo2 and renameat2.
        .target(name: "CLinux", cSettings: [.unsafeFlags(["-ffunction-sections"])]),
        .systemLibrary(name: "CMnl", pkgConfig: "libmnl", providers: [.apt(["libmnl-dev"])]),
        .systemLibrary(name: "CNftnl", pkgConfig: "libnftnl", providers: [.apt(["libnftnl-dev"])]),
        .systemLibrary(name: "CJansson", providers: [.apt(["libjansson-dev"])]),
        .systemLibrary(name: "CYAML", providers: [.apt(["libyaml-dev"])]),

        .target(name: "Jansson", dependencies: ["CJansson"], linkerSettings: janssonStatic),
        .target(name: "CNI", dependencies: ["Jansson"]),
        .target(name: "HelperProtocol", dependencies: ["CNI", "Jansson", "CLinux"]),
        .target(name: "PluginVerbs", dependencies: ["CNI", "HelperProtocol", "Jansson", "CLinux"]),
        // What the plugin has in place of, or besides, parts of its C library.
        .target(name: "CPluginRuntime", cSettings: [.unsafeFlags(["-fno-builtin"])]),
        // The same four rooms once more, through symbolic links, as one Embedded Swift module. Linked with musl, because a
        // static program with glibc asks the processor for its features and the size of its caches when it starts, and touches
        // more memory. It is compiled with the system's headers: Tests/Plugin/libc.sh checks that both libraries mean the same.
        .executableTarget(
            name: "culvert",
            dependencies: ["CJansson", "CLinux", "CPluginRuntime"],
            swiftSettings: [.enableExperimentalFeature("Embedded"), .unsafeFlags(["-wmo", "-Osize"])],
            linkerSettings: [
                .unsafeFlags([
                    "-enable-experimental-feature", "Embedded", "-Xclang-linker", "-static",
                    "-Xclang-linker", "-nostdlib", "\(musl)/crt1.o", "\(musl)/crti.o",
                    "-Xlinker", "-l:libjansson.a",
                    "\(toolchain)/lib/swift/embedded/\(embeddedTriple)/libswiftUnicodeDataTables.a",
                    // On arm64 musl and libjansson need libgcc's arithmetic and atomics, and those need musl.
                    "-Xlinker", "--start-group", "-Xlinker", "\(musl)/libc.a", "-Xlinker", "-lgcc", "-Xlinker",
                    "--end-group",
                    "-Xlinker", "\(musl)/crtn.o", "-Xlinker", "--gc-sections", "-Xlinker", "-s",
                ])
            ]),

        .target(name: "Model", dependencies: ["CLinux", "Jansson"]),
        .target(name: "Netlink", dependencies: ["Model", "CMnl", "CLinux"]),
        .target(name: "Firewall", dependencies: ["Model", "Netlink", "CMnl", "CNftnl", "CLinux"]),
        .target(name: "WireGuard", dependencies: ["Model", "Netlink", "CMnl", "CLinux"]),
        .target(
            name: "Inventory", dependencies: ["Model", "Jansson", "CLinux", "CYAML"],
            linkerSettings: [.unsafeFlags(["-Xlinker", "-l:libyaml.a"])]),
        // What both clients of a cluster's servers share.
        .target(
            name: "ClusterTransport",
            dependencies: [
                "CLinux", .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOSSL", package: "swift-nio-ssl"),
            ]),
        .target(
            name: "Etcd", dependencies: ["ClusterTransport", "Inventory", "Model", "Jansson"] + clusterClient),
        .target(
            name: "Kubernetes",
            dependencies: [
                "ClusterTransport", "Inventory", "Model", "Jansson", "CLinux",
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "Subprocess", package: "swift-subprocess"),
            ] + clusterClient),
        .target(name: "Planner", dependencies: ["Model", "Jansson"]),
        // Makes the kernel equal to a plan: what is there, what differs, in which steps.
        .target(
            name: "Reconcile",
            dependencies: ["Planner", "Netlink", "Firewall", "WireGuard", "Model", "CLinux"]),
        // Whether gateways are alive, and what is switched when one is not.
        .target(name: "Liveness", dependencies: ["Planner", "Netlink", "Model", "CLinux"]),
        .target(
            name: "Agent",
            dependencies: [
                "Installer", "Liveness", "Reconcile", "Planner", "Inventory", "Netlink", "Firewall", "WireGuard",
                "Model",
                "HelperProtocol",
                "CNI",
                "CLinux", "Jansson",
                .product(name: "Logging", package: "swift-log"),
                .product(name: "Crypto", package: "swift-crypto"),
            ]),
        .target(
            name: "API",
            dependencies: [
                "Agent", "CNI", "Firewall", "Installer", "Liveness", "Planner", "WireGuard", "Model", "Jansson",
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "Logging", package: "swift-log"),
            ]),
        // Puts the plugin onto a node and into the chain, and takes it away again.
        .target(name: "Installer", dependencies: ["CLinux", "Jansson"]),
        // The commands of culvertctl, which culvertd has too.
        .target(
            name: "ControlCommands",
            dependencies: [
                "CLinux", "CNI", "Installer", "Inventory", "Planner", "Model", "Jansson",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "NIOCore", package: "swift-nio"),
            ]),
        .executableTarget(
            name: "culvertd",
            dependencies: [
                "API", "Agent", "CNI", "ControlCommands", "Etcd", "Installer", "Inventory", "Kubernetes", "Planner",
                "Model", "CLinux",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "Logging", package: "swift-log"),
            ], linkerSettings: noExports),
        .executableTarget(name: "culvertctl", dependencies: ["ControlCommands"], linkerSettings: noExports),
        .executableTarget(
            name: "culvert-bench", dependencies: ["Reconcile", "Planner", "Model", "CLinux"], path: "Benchmarks/Bench"),
        .target(
            name: "TestSupport",
            dependencies: [
                "CLinux", "Jansson", "Model", "Planner", "Inventory", .product(name: "Logging", package: "swift-log"),
            ],
            path: "Tests/TestSupport"),
        .testTarget(
            name: "PlannerTests",
            dependencies: [
                "Installer", "Liveness", "Planner", "Reconcile", "Netlink", "Model", "Inventory", "Jansson", "CNI",
                "HelperProtocol", "PluginVerbs",
                "CLinux", "TestSupport",
            ]),
        .testTarget(
            name: "KernelTests",
            dependencies: [
                "Agent", "Liveness", "Reconcile", "Planner", "Model", "Netlink", "Firewall", "WireGuard", "Inventory",
                "Jansson", "CLinux", "CNI", "HelperProtocol", "TestSupport",
                .product(name: "Logging", package: "swift-log"),
            ]),
        .testTarget(
            name: "ProgramTests", dependencies: ["TestSupport", "HelperProtocol", "CNI", "Jansson", "CLinux"]),
        .testTarget(
            name: "KubernetesTests",
            dependencies: [
                "ClusterTransport", "Kubernetes", "Inventory", "Model", "Jansson", "CLinux", "TestSupport",
                .product(name: "Logging", package: "swift-log"),
            ]),
        .testTarget(
            name: "EtcdTests",
            dependencies: [
                "Etcd", "Inventory", "Model", "Jansson", "CLinux", "TestSupport",
                .product(name: "Logging", package: "swift-log"),
            ]),
        .testTarget(name: "ScenarioTests", dependencies: ["TestSupport", "Jansson"]),
    ],
    swiftLanguageModes: [.v6]
)

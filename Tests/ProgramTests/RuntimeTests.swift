import Foundation
import TestSupport
import Testing

/// Real runtimes, a real conflist (ptp + culvert), real containers.
@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root, containerd and podman; install/test.sh runs it"))
struct RuntimeTests {
    /// In the emulated VM containerd alone is slow enough.
    static let runtimes = [("ctr", 100), ("podman", 3)].filter {
        (ProcessInfo.processInfo.environment["CULVERT_LAB_RUNTIMES"] ?? "ctr podman").contains($0.0)
    }

    @Test(arguments: runtimes)
    func everyContainersFirstPacketLeavesThroughTheGateway(_ runtime: String, _ count: Int) throws {
        let lab = try Lab("r")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n3")
        let script = Shell.packageRoot + "/Tests/Lab/runtime.sh"
        let result = Shell.run("\(script) \(runtime) \(lab.prefix) \(lab.directory) \(count)", timeout: 900)
        #expect(result.status == 0, "\(result.output.suffix(1500)) \(result.errors.suffix(1500))")
        #expect(!result.output.contains("failed"), "\(result.output.suffix(1500)) \(result.errors.suffix(1500))")
        #expect(lab.seen("datagrams") == ["10.0.0.13 > 203.0.113.10": count])
        #expect(lab.eventually { lab.api("n1", "/v1/attachments")?.elements?.count == 0 })
        #expect(lab.ctl("n1", "diff").output == "[]\n")
    }

    /// The directory has the ptp list alone; the installer does the rest, and takes it away again.
    @Test(.enabled(if: runtimes.contains { $0.0 == "ctr" }), arguments: ["own-list", "in-place"])
    func whatTheInstallerChainsRoutesAContainersFirstPacketAndUninstallLeavesTheDirectoryAsItWas(_ method: String)
        throws
    {
        let lab = try Lab("r")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n3")
        let script = Shell.packageRoot + "/Tests/Lab/runtime.sh"
        let result = Shell.run("INSTALL=\(method) \(script) ctr \(lab.prefix) \(lab.directory) 3", timeout: 300)
        #expect(result.status == 0, "\(result.output.suffix(1500)) \(result.errors.suffix(1500))")
        #expect(result.output.hasSuffix("uninstalled\n") && !result.output.contains("failed"), "\(result.output)")
        #expect(lab.seen("datagrams") == ["10.0.0.13 > 203.0.113.10": 3])
        #expect(lab.eventually { lab.api("n1", "/v1/attachments")?.elements?.count == 0 })
    }
}

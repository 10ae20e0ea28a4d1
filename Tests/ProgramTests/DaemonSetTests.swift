import Foundation
import Jansson
import TestSupport
import Testing

/// The image and the DaemonSet's manifest, under containerd through the CRI. What a kubelet does is `Tests/Lab/cri.py`.
@Suite(.enabled(if: Lab.isPossible, "needs root and containerd; install/test.sh runs it"))
struct DaemonSetTests {
    @Test func theHelperInItsImageRoutesAPodsFirstPacket() throws {
        let lab = try Lab("d")
        try lab.inventory("policy.yaml", Lab.policy("shop", app: "shop", egress: "egressIP: 192.0.2.31"))
        let uid = UUID().uuidString.lowercased()
        try lab.inventory(
            "pod.yaml",
            """
            apiVersion: v1
            kind: Pod
            metadata: {name: web, namespace: default, uid: \(uid), labels: {app: shop}}
            spec: {nodeName: n1}

            """)
        try lab.start("n3")
        let script = Shell.packageRoot + "/Tests/Lab/daemonset.sh"
        let result = Shell.run("\(script) \(lab.prefix) \(lab.directory) \(uid)", timeout: 120)
        let said = "\(result.output.suffix(1500)) \(result.errors.suffix(1500)) \(lab.log("n1").suffix(1500))"
        let lines = result.output.split(separator: "\n").map(String.init)
        try #require(result.status == 0 && lines.count == 5, "\(said)")

        let made = try JSON.parse([UInt8](lines[0].utf8))
        #expect(made["startupProbe"]?.string == "ok" && made["readinessProbe"]?.string == "ok", "\(said)")
        // Uid and Gid as the kernel shows them: real, effective, saved, file system. NET_ADMIN is bit 12.
        for (container, user, capabilities) in [
            ("installer", "0", "0000000000000000"), ("culvertd", "47110", "0000000000001000"),
        ] {
            let process = made[container]
            #expect(process?["running"] == .bool(true), "\(container): \(said)")
            #expect(
                process?["Uid"]?.string == [user, user, user, user].joined(separator: "\t"), "\(container): \(said)")
            #expect(process?["Gid"]?.string == "47110\t47110\t47110\t47110", "\(container): \(said)")
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                #expect(process?[set]?.string == capabilities, "\(container), \(set): \(said)")
            }
            #expect(process?["CapAmb"]?.string == "0000000000000000", "\(container): \(said)")
            #expect(process?["NoNewPrivs"]?.string == "1", "\(container): \(said)")
            // 2: a filter is installed.
            #expect(process?["Seccomp"]?.string == "2", "\(container): \(said)")
            #expect(process?["rootIsReadOnly"] == .bool(true), "\(container): \(said)")
        }
        #expect(lines[1] == "exit 0", "the pod: \(said)")
        #expect(lab.seen("datagrams") == ["192.0.2.31 > 203.0.113.10": 1], "\(said)")
        #expect(lines[2] == "OK Attachments: 0", "culvertctl in the helper's container, after the pod: \(said)")
        // The same program as the helper's, so it has the file's capability, and gives it up.
        let none = "0000000000000000"
        #expect(lines[3] == "\(none) \(none) \(none) 0000000000001000 \(none)", "culvertctl: \(said)")
        #expect(lines[4] == #"{"culvertd": 0, "installer": 0}"#, "how the containers ended: \(said)")
    }

    /// Foundation as a whole brings 40 MB of tables for dates and languages, which nothing here needs.
    @Test func theHelperNeedsOnlyFoundationsEssentials() {
        let libraries = Shell.run("ldd \(Shell.binaries)/culvertd").output
        #expect(libraries.contains("libc.so.6") && !libraries.contains("FoundationICU"), "\(libraries)")
        // Where the runtime is linked statically, symbols tell.
        let symbols = Shell.run("nm \(Shell.binaries)/culvertd | grep -c icudt").output
        #expect(symbols == "0\n")
    }
}

import Foundation
import TestSupport
import Testing

/// A helper whose API server does not answer, with nothing on disk to go on from, and what is left to do without a
/// configuration: in a network namespace of its own.
@Suite(.enabled(if: Lab.isPossible, "needs root and CULVERT_LAB=1"))
struct StartTests {
    static let kubeconfig = """
        {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
         "users": [{"name": "u", "user": {"token": "none"}}],
         "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x"}
        """

    /// A startup probe must not end it, and a stop must not have to wait for the kubelet's SIGKILL.
    @Test func aHelperThatWaitsForTheAPIIsAliveAndSaysWhyAndStopsAtOnce() throws {
        let directory = NSTemporaryDirectory() + "\(Shell.prefix)-start"
        defer { Shell.run("rm -rf \(directory)") }
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        try Self.kubeconfig.write(toFile: directory + "/kubeconfig", atomically: true, encoding: .utf8)
        try "inventory: {source: kubernetes, kubeconfig: \(directory)/kubeconfig}\n".write(
            toFile: directory + "/culvertd.yaml", atomically: true, encoding: .utf8)
        let result = Shell.run(
            """
            cd \(directory) && chmod 600 kubeconfig
            # As the first process of its own namespace, as in a container: there no signal ends it by default.
            unshare --net --pid --kill-child \(Shell.binaries)/culvertd run --config culvertd.yaml --node n1 \
                --run-dir run --state-dir state > log 2>&1 & outer=$!
            for i in $(seq 100); do \(Shell.binaries)/culvertctl ready --live --run-dir run > /dev/null 2>&1 && break; sleep 0.05; done
            \(Shell.binaries)/culvertctl ready --live --run-dir run; echo "live $?"
            \(Shell.binaries)/culvertctl ready --run-dir run; echo "ready $?"
            echo '{"state":"waiting","reason":"there is no network configuration"}' > run/chain.json
            \(Shell.binaries)/culvertctl status --run-dir run | tee status | head -1
            grep '^Chain:' status
            test -e run/cni.sock; echo "cni.sock $?"
            kill $(cat /proc/$outer/task/$outer/children)
            for i in $(seq 40); do kill -0 $outer 2> /dev/null || break; sleep 0.05; done
            kill -9 $outer 2> /dev/null && echo "did not stop"
            wait $outer; echo "exit $?"
            """, timeout: 30)
        let lines = result.output.split(separator: "\n").map(String.init)
        let log = (try? String(contentsOfFile: directory + "/log", encoding: .utf8)) ?? ""
        #expect(lines.count == 8, "\(result.output) \(result.errors) \(log)")
        guard lines.count == 8 else { return }
        #expect(Array(lines[0...1]) == ["ok", "live 0"])
        #expect(lines[2].hasPrefix("starting: ") && lines[2].contains("127.0.0.1:1"), "\(lines[2])")
        #expect(lines[3] == "ready 1")
        #expect(lines[4].hasPrefix("HELD: no pod can start"), "\(lines[4])")
        // What the installer has come to is shown too.
        #expect(
            lines[4].contains("the plugin is not in the chain, so that new pods start without it: there is no network"))
        #expect(lines[5] == "Chain:            waiting: there is no network configuration")
        #expect(Array(lines[6...7]) == ["cni.sock 1", "exit 0"], "\(log)")
    }

    /// Without a configuration nobody knows whether the helper has written into its Node.
    @Test func aCleanupWithoutAConfigurationSaysHowTheAnnotationsGo() {
        let result = Shell.run(
            """
            unshare --net --mount --propagation private bash -c '
            test ! -d /etc/culvert || mount -t tmpfs none /etc/culvert
            exec \(Shell.binaries)/culvertd cleanup --node n1 --run-dir /nonexistent'
            """)
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output.contains("kubectl annotate node n1 culvert.dev/echo-interval- "), "\(result.output)")
    }
}

import Foundation
import Jansson
import TestSupport
import Testing

/// `culvertd install`, `uninstall` and `check-config` as whole programs, in directories of their own. No kernel object is
/// touched. Root: the programs make directories and set groups.
@Suite(.enabled(if: Shell.isRoot, "needs root; install/test.sh runs it"))
struct InstallTests {
    /// A node's directories.
    final class Node {
        let path: String
        var conf: String { path + "/net.d" }
        var bin: String { path + "/bin" }
        static let opponent = Shell.packageRoot + "/Tests/Lab/cilium_conf.py"
        static let cilium =
            "\n{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cilium\",\n  \"plugins\": [\n    {\n       \"type\": \"cilium-cni\",\n       \"enable-debug\": false,\n       \"log-file\": \"/var/run/cilium/cilium-cni.log\"\n    }\n  ]\n}"

        init(_ files: [String: String] = ["05-cilium.conflist": Node.cilium]) throws {
            path = NSTemporaryDirectory() + "\(Shell.prefix)-install-\(UInt32.random(in: 0 ... .max))"
            for directory in [conf, bin] {
                try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
            }
            for (name, text) in files { try write(name, text) }
        }
        deinit { try? FileManager.default.removeItem(atPath: path) }

        func write(_ name: String, _ text: String) throws {
            try text.write(toFile: conf + "/" + name, atomically: false, encoding: .utf8)
        }
        func read(_ name: String) -> String? { try? String(contentsOfFile: conf + "/" + name, encoding: .utf8) }
        var names: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: conf)) ?? []).sorted() }

        var installCommand: String {
            "\(Shell.binaries)/culvertd install --conf-dir \(conf) --bin-dir \(bin) --run-dir \(path)/run --state-dir \(path)/state"
        }
        func install(_ more: String = "--once", prefix: String = "", timeout: Int = 60) -> CommandResult {
            Shell.run("\(prefix) \(installCommand) \(more)", timeout: timeout)
        }
        func uninstall(_ more: String = "") -> CommandResult {
            Shell.run("\(uninstallCommand) \(more)")
        }
        var uninstallCommand: String {
            "\(Shell.binaries)/culvertd uninstall --conf-dir \(conf) --bin-dir \(bin) --state-dir \(path)/state"
        }
        /// What the installer tells the helper.
        var record: JSON? {
            FileManager.default.contents(atPath: path + "/state/chained.json").flatMap { try? JSON.parse([UInt8]($0)) }
        }
        /// Every file's name, mode and content.
        var state: String {
            Shell.run(
                "cd \(conf) && find . | sort | while read -r f; do stat -c '%n %a %F' \"$f\"; test -f \"$f\" && cksum < \"$f\"; done"
            )
            .output
        }
        /// What a runtime calls for a container of the first list.
        var calls: Int {
            let first = names.first { name in [".conf", ".conflist", ".json"].contains { name.hasSuffix($0) } }
            guard let first, let list = read(first), let root = try? JSON.parse([UInt8](list.utf8)) else { return -1 }
            return root["plugins"]?.elements?.filter { $0["type"]?.string == "culvert" }.count ?? -1
        }
    }

    @Test(arguments: ["own-list", "in-place"])
    func whatInstallDidUninstallUndoesByteForByte(_ method: String) throws {
        let node = try Node()
        chmod(node.conf + "/05-cilium.conflist", 0o640)
        let before = node.state
        let result = node.install("--once --chain-by \(method)")
        #expect(result.status == 0, "\(result.errors)")
        #expect(node.calls == 1 && node.state != before)
        let mode = Shell.run("stat -c %a \(node.conf)/*.conflist | sort -u").output
        #expect(mode == "640\n", "\(mode)")
        #expect(FileManager.default.isExecutableFile(atPath: node.bin + "/culvert"))
        #expect(
            Shell.run("stat -c %a \(node.path)/run \(node.path)/run/deleted \(node.path)/state").output
                == "2770\n2770\n2770\n")
        // Everybody may search the run directory, where an administrator has said so (a group of its own for api.sock).
        chmod(node.path + "/run", 0o2771)
        // Once more changes nothing.
        let (chained, record) = (node.state, node.record)
        #expect(record?["found"] == .bool(false) && record?["allowsWithoutHelper"] == .bool(false))
        sleep(1)
        #expect(node.install("--once --chain-by \(method)").status == 0)
        #expect(node.state == chained)
        #expect(node.record == record, "the first time counts")
        #expect(Shell.run("stat -c %a \(node.path)/run").output == "2771\n")
        for _ in 0..<2 {
            let undone = node.uninstall()
            #expect(undone.status == 0, "\(undone.errors)")
            #expect(node.state == before)
            #expect(!FileManager.default.fileExists(atPath: node.bin + "/culvert"))
            #expect(node.record == nil)
        }
    }

    /// The less is known, the less is claimed: somebody else has chained the plugin, and may let it allow anything.
    @Test func whatIsChainedAlreadyIsRecordedAsFound() throws {
        let node = try Node()
        try node.write(
            "05-cilium.conflist", #"{"name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"culvert"}]}"#)
        #expect(node.install().status == 0)
        #expect(node.record?["found"] == .bool(true) && node.record?["allowsWithoutHelper"] == .bool(true))
    }

    @Test func aDropInIsChosenWhereTheRuntimeIsKnownToReadIt() throws {
        let node = try Node()
        let runtime = node.path + "/containerd"
        for (version, status) in [("1.2.3", 1), ("1.3.0", 0)] {
            try "\u{7F}ELF\n dep\tgithub.com/containernetworking/cni\tv\(version)\th1:x=\n".write(
                toFile: runtime, atomically: true, encoding: .utf8)
            let result = node.install("--once --chain-by drop-in --runtime \(runtime)")
            #expect(result.status == status, "\(result.errors)")
        }
        #expect(node.names == ["05-cilium.conflist", "cilium"])
        #expect(node.read("05-cilium.conflist") == Node.cilium)
        #expect(node.read("cilium/90-culvert.conf")?.contains("\"type\":\"culvert\"") == true)
        #expect(node.uninstall().status == 0)
        #expect(node.names == ["05-cilium.conflist"])
        // A directory that was there before stays.
        try FileManager.default.createDirectory(atPath: node.conf + "/cilium", withIntermediateDirectories: false)
        #expect(node.install("--once --chain-by drop-in --runtime \(runtime)").status == 0)
        #expect(node.uninstall().status == 0)
        #expect(node.names == ["05-cilium.conflist", "cilium"])
    }

    /// setpriv drops every capability, as the container and the unit do.
    @Test func noCapabilityIsNeeded() throws {
        let node = try Node()
        let result = node.install(
            "--once", prefix: "setpriv --regid 54321 --clear-groups --bounding-set -all --inh-caps -all")
        #expect(result.status == 0, "\(result.errors)")
        #expect(Shell.run("stat -c '%u %g %a' \(node.path)/run/attachments").output == "0 54321 2770\n")
        #expect(node.calls == 1)
        #expect(!result.errors.contains("warning"), "\(result.errors)")
    }

    @Test func thePluginIsReplacedWhileItRuns() throws {
        let node = try Node()
        // Waits on its stdin with the old program; cp in its place would be ETXTBSY.
        let result = Shell.run(
            """
            cp \(Shell.binaries)/culvert \(node.bin)/culvert; printf x >> \(node.bin)/culvert
            mkfifo \(node.path)/in
            CNI_COMMAND=VERSION \(node.bin)/culvert < \(node.path)/in > /dev/null & pid=$!
            exec 3> \(node.path)/in
            sleep 0.2
            \(node.installCommand) --once; echo "install $?"
            cmp \(Shell.binaries)/culvert \(node.bin)/culvert && echo same
            exec 3>&-; wait $pid
            ls -A \(node.bin)
            """)
        #expect(result.output == "install 0\nsame\nculvert\n", "\(result.output) \(result.errors)")
    }

    @Test func whatIsNotCulvertsIsNotTouched() throws {
        let node = try Node()
        try "#!/bin/sh\n".write(toFile: node.bin + "/culvert", atomically: true, encoding: .utf8)
        let result = node.install()
        #expect(
            result.status == 1 && result.errors.contains("is not Culvert's plugin; move it away"), "\(result.errors)")
        #expect(node.uninstall().status == 0)
        #expect(FileManager.default.fileExists(atPath: node.bin + "/culvert"))
        try FileManager.default.removeItem(atPath: node.bin + "/culvert")
        // An entry that Cilium writes itself: nothing is done to the file, and the plugin stays as long as it is called.
        let custom = #"{"name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"culvert"}]}"#
        try node.write("05-cilium.conflist", custom)
        let chained = node.install()
        #expect(chained.status == 0 && chained.errors.contains("another program wrote"), "\(chained.errors)")
        #expect(node.names == ["05-cilium.conflist"] && node.read("05-cilium.conflist") == custom)
        let refused = node.uninstall()
        #expect(refused.status == 1 && refused.errors.contains("cni.configMap"), "\(refused.errors)")
        #expect(FileManager.default.fileExists(atPath: node.bin + "/culvert"))
    }

    @Test func whatCannotBeDoneIsSaidWithTheRemedy() throws {
        for (files, more, message) in [
            ([:], "", "there is no network configuration in"),
            (
                ["87-podman.conflist": #"{"name":"podman","plugins":[{"type":"bridge"}]}"#], "--chain-after cilium",
                "network cilium"
            ),
            (["05-cilium.conflist": "{"], "", "05-cilium.conflist is not JSON"),
            (["10-a.conf": #"{"name":"a","type":"bridge"}"#], "--chain-by in-place", "make it a .conflist"),
        ] as [([String: String], String, String)] {
            let node = try Node(files)
            let before = node.state
            let result = node.install("--once \(more)")
            #expect(result.status == 1 && result.errors.contains(message), "\(message): \(result.errors)")
            #expect(node.state == before)
        }
        let node = try Node()
        for (more, message) in [
            ("--plugin /nonexistent", "--plugin names its file"), ("--plugin /bin/true", "is not Culvert's plugin"),
            ("--bin-dir /nonexistent", "--bin-dir names the directory"), ("--conf-dir /nonexistent", "--conf-dir"),
            ("--group nosuchgroup", "groupadd -r nosuchgroup"),
        ] {
            let result = node.install("--once \(more)")
            #expect(result.status == 1 && result.errors.contains(message), "\(message): \(result.errors)")
        }
        #expect(node.install("--run-dir run").status == 64)
    }

    /// Beside a running `culvertd install`, while `body` runs. The program's exit code and what it said.
    static func watching(_ node: Node, more: String = "", _ body: String) -> CommandResult {
        Shell.run(
            """
            \(node.installCommand) \(more) 2> \(node.path)/log & pid=$!
            for i in $(seq 200); do grep -q 'chained after' \(node.path)/log && break; sleep 0.05; done
            \(body)
            """, timeout: 120)
    }
    static let stop = "kill $pid; wait $pid; echo \"exit $?\""

    @Test func theWatchFollowsWhatCiliumWritesAndEndsCleanly() throws {
        let node = try Node()
        let result = Self.watching(
            node,
            """
            printf '{"name":"cilium","plugins":[{"type":"cilium-cni","new":1}]}' > \(node.conf)/new; mv \(node.conf)/new \(node.conf)/05-cilium.conflist
            for i in $(seq 200); do grep -q '"new":1' \(node.conf)/02-culvert.conflist && break; sleep 0.05; done
            rm \(node.bin)/culvert
            for i in $(seq 200); do test -x \(node.bin)/culvert && break; sleep 0.05; done
            \(node.uninstallCommand) 2>&1 | grep -c 'stop it first'
            \(Self.stop)
            """)
        #expect(result.output == "1\nexit 0\n", "\(result.output) \(result.errors)")
        #expect(node.read("02-culvert.conflist")?.contains(#""new":1},{"type":"culvert""#) == true)
        #expect(FileManager.default.isExecutableFile(atPath: node.bin + "/culvert"))
        #expect(node.uninstall().status == 0)
        #expect(node.names == ["05-cilium.conflist"])
    }

    static let reader = "python3 \(Node.opponent) read"

    @Test func inAFightOverTheListTheEndIsChainedOnceAndAReaderSeesNoBrokenFile() throws {
        let seed = Int.random(in: 0...1_000_000)
        for method in ["", "--chain-by in-place"] {
            let node = try Node()
            let result = Self.watching(
                node, more: method,
                """
                \(Self.reader) \(node.conf) \(node.path)/end > \(node.path)/seen & reader=$!
                python3 \(Node.opponent) fight \(node.conf) 1000 \(seed) || echo opponent failed
                for i in $(seq 600); do
                    kill -0 $pid 2> /dev/null || break
                    sleep 0.05
                    grep -q '"culvert"' $(ls \(node.conf)/*.conflist | head -1) && break
                done
                touch \(node.path)/end; wait $reader
                \(Self.stop)
                """)
            let log = (try? String(contentsOfFile: node.path + "/log", encoding: .utf8)) ?? ""
            #expect(result.output == "exit 0\n", "seed \(seed) \(method): \(result.output) \(result.errors) \(log)")
            #expect(node.calls == 1, "seed \(seed) \(method): \(node.names) \(log)")
            let seen = try JSON.parse(
                FileManager.default.contents(atPath: node.path + "/seen").map { [UInt8]($0) } ?? [])
            // What the opponent itself has truncated is the opponent's.
            let broken = (seen["wrong"]?.members ?? []).filter { !($0.value.string?.utf8.count ?? 0 < 60) }
            #expect(broken.isEmpty && seen["looks"]?.integer ?? 0 > 100, "seed \(seed) \(method): \(seen.text())")
            #expect(node.uninstall().status == 0)
            #expect(
                node.names == ["05-cilium.conflist"] && node.read("05-cilium.conflist") == Node.cilium, "seed \(seed)")
        }
    }

    @Test func anOpponentThatTouchesOnlyItsOwnFileLeavesNoContainerUnrouted() throws {
        let node = try Node()
        let seed = Int.random(in: 0...1_000_000)
        let result = Self.watching(
            node,
            """
            \(Self.reader) \(node.conf) \(node.path)/end own > \(node.path)/seen & reader=$!
            python3 \(Node.opponent) own \(node.conf) 1000 \(seed) || echo opponent failed
            sleep 0.3; touch \(node.path)/end; wait $reader
            \(Self.stop)
            """)
        #expect(result.output == "exit 0\n", "\(result.output) \(result.errors)")
        let seen = try JSON.parse(FileManager.default.contents(atPath: node.path + "/seen").map { [UInt8]($0) } ?? [])
        #expect(seen["wrong"] == .object([]), "seed \(seed): \(seen.text())")
        #expect(seen["looks"]?.integer ?? 0 > 100)
        #expect(node.calls == 1)
    }

    @Test(arguments: ["relentless", "exclusive"])
    func aRelentlessOpponentIsNamedWithTheRemedy(_ kind: String) throws {
        let node = try Node()
        let result = Shell.run(
            """
            python3 \(Node.opponent) \(kind) \(node.conf) 60 & opponent=$!
            \(node.installCommand) --once --chain-by in-place --give-up-after 4; echo "exit $?"
            kill -9 $opponent; wait $opponent
            """)
        #expect(result.output.contains("exit 1"), "\(result.output) \(result.errors)")
        #expect(result.errors.contains("gave up") && result.errors.contains("cni.exclusive=false"), "\(result.errors)")
        #expect(node.calls == 0 && node.names == ["05-cilium.conflist"], "\(node.names)")
    }

    /// A supervisor would start a program anew that ends with exit code 1, and the fight would go on for ever.
    @Test(arguments: ["exit", "rest"])
    func aDefeatIsNoReasonToStartTheProgramAnew(_ after: String) throws {
        let node = try Node()
        let result = Shell.run(
            """
            python3 \(Node.opponent) relentless \(node.conf) 60 & opponent=$!
            \(node.installCommand) --chain-by in-place --give-up-after 3 --after-defeat \(after) 2> \(node.path)/log & pid=$!
            for i in $(seq 200); do grep -q 'gave up' \(node.path)/log && break; sleep 0.05; done
            sleep 0.3
            kill -0 $pid 2> /dev/null && echo alive
            \(Shell.binaries)/culvertctl ready --chain --run-dir \(node.path)/run; echo "ready $?"
            \(Self.stop)
            kill -9 $opponent; wait $opponent
            """)
        let lines = result.output.split(separator: "\n").map(String.init)
        #expect(lines.first == (after == "rest" ? "alive" : lines.first { $0.hasPrefix("failed: gave up") }))
        #expect(lines.suffix(2) == ["ready 1", after == "rest" ? "exit 0" : "exit 3"], "\(result.output)")
        #expect(result.output.contains("failed: gave up") && result.output.contains("cni.exclusive=false"))
        #expect(node.read("05-cilium.conflist") == Node.cilium)
    }

    @Test func anInstallerIsReadyWhenThePluginIsInTheChain() throws {
        let node = try Node([:])
        let ready = "\(Shell.binaries)/culvertctl ready --chain --run-dir \(node.path)/run"
        let result = Shell.run(
            """
            \(node.installCommand) 2> \(node.path)/log & pid=$!
            for i in $(seq 200); do grep -q 'waiting' \(node.path)/log && break; sleep 0.05; done
            \(ready); echo "ready $?"
            printf '{"name":"cilium","plugins":[{"type":"cilium-cni"}]}' > \(node.conf)/new; mv \(node.conf)/new \(node.conf)/05-cilium.conflist
            for i in $(seq 200); do \(ready) > /dev/null && break; sleep 0.05; done
            \(ready); echo "ready $?"
            stat -c %a \(node.path)/run/chain.json
            \(Self.stop)
            """)
        #expect(
            result.output
                == """
                waiting: there is no network configuration
                ready 1
                chained: own-list, 05-cilium.conflist
                ready 0
                640
                exit 0

                """, "\(result.output) \(result.errors)")
        #expect(node.uninstall("--run-dir \(node.path)/run").status == 0)
        #expect(Shell.run(ready).errors.contains("does culvertd install run"))
    }

    /// A container keeps the directory that was mounted when it started, also when the host has another one by now.
    @Test func aDirectoryThatWasReplacedEndsTheProgramSoThatItIsMountedAnew() throws {
        let node = try Node()
        let result = Shell.run(
            """
            mkdir \(node.path)/mounted
            cat > \(node.path)/container <<'END'
            mount --bind \(node.conf) \(node.path)/mounted
            exec \(node.installCommand) --conf-dir \(node.path)/mounted
            END
            unshare --mount --propagation private bash \(node.path)/container 2> \(node.path)/log & pid=$!
            for i in $(seq 200); do grep -q 'chained after' \(node.path)/log && break; sleep 0.05; done
            rm -rf \(node.conf); mkdir \(node.conf)
            for i in $(seq 100); do kill -0 $pid 2> /dev/null || break; sleep 0.05; done
            kill -9 $pid 2> /dev/null && echo "it stays"
            wait $pid; echo "exit $?"
            """)
        let log = (try? String(contentsOfFile: node.path + "/log", encoding: .utf8)) ?? ""
        #expect(result.output == "exit 1\n" && log.contains("was deleted or replaced"), "\(result.output) \(log)")
    }

    @Test func anExclusiveCiliumIsNoticedAndADropInTaken() throws {
        let node = try Node()
        let runtime = node.path + "/containerd"
        try "\u{7F}ELF\n dep\tgithub.com/containernetworking/cni\tv1.3.0\th1:x=\n".write(
            toFile: runtime, atomically: true, encoding: .utf8)
        let result = Shell.run(
            """
            python3 \(Node.opponent) exclusive \(node.conf) 60 & opponent=$!
            \(node.installCommand) --once --runtime \(runtime); echo "exit $?"
            kill -9 $opponent; wait $opponent
            """)
        #expect(result.output.contains("exit 0"), "\(result.output) \(result.errors)")
        #expect(result.errors.contains("cni.exclusive is true"), "\(result.errors)")
        #expect(node.names == ["05-cilium.conflist", "cilium"], "\(node.names)")
        #expect(node.uninstall().status == 0)
        #expect(node.names == ["05-cilium.conflist"])
    }

    @Test func checkConfigListsEveryError() throws {
        let node = try Node()
        let file = node.path + "/culvertd.yaml"
        func check(_ text: String) throws -> CommandResult {
            try text.write(toFile: file, atomically: true, encoding: .utf8)
            return Shell.run("\(Shell.binaries)/culvertd check-config --config \(file)")
        }
        let good = try check("node: n1\nmesh: {port: 51821}\n")
        #expect(good.status == 0 && good.output == "\(file): valid\n" && good.errors.isEmpty, "\(good.errors)")
        let bad = try check(
            """
            inventory: {source: nix, caFile: /ca.pem, endpoints: 3}
            encapsulation: {protocol: gre, overlay: calico, strategy: sometimes, colour: red}
            mesh: {port: 70000, subnet: 10.4.0.0/31, granularity: half, interface: wg0, persistentKeepalive: -1}
            cluster: {serviceCIDRs: [10.0.0.0/40], nodeCIDR: []}
            listen: {metrics: ':9100'}
            log: {level: loud}
            """)
        #expect(bad.status == 1 && bad.output.isEmpty)
        for key in [
            "inventory.source", "inventory.caFile", "inventory.endpoints", "encapsulation.protocol",
            "encapsulation.overlay", "encapsulation.strategy", "encapsulation.colour", "mesh.port", "mesh.subnet",
            "mesh.granularity", "mesh.interface", "mesh.persistentKeepalive", "cluster.serviceCIDRs[0]",
            "cluster.nodeCIDR", "listen.metrics", "log.level",
        ] {
            let lines = bad.errors.split(separator: "\n").filter { $0.hasPrefix("\(file): \(key) ") }
            #expect(lines.count == 1, "\(key): \(bad.errors)")
        }
        #expect(bad.errors.hasSuffix("\(file): 16 errors\n"), "\(bad.errors)")
        for text in ["- a", "a: [", "a: 1\n---\nb: 2\n"] { #expect(try check(text).status == 1) }
        #expect(Shell.run("\(Shell.binaries)/culvertd check-config --config /nonexistent").status == 1)
    }
}

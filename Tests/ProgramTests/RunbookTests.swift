import Foundation
import Jansson
import TestSupport
import Testing

/// The runbooks `docs/uninstall.md` and `docs/upgrade.md`: their commands are read from the page and carried out as printed.
/// Instead of systemd and apt there are programs of these names that do what those would do with the units and with the
/// package's own scripts, in the lab's directories.
@Suite(.enabled(if: Lab.isPossible, "needs root; install/test.sh runs it"))
struct RunbookTests {
    /// The commands of the code blocks below a heading, each block by itself, without comments.
    static func blocks(_ page: String, below heading: String) throws -> [[String]] {
        let text = try String(contentsOfFile: "\(Shell.packageRoot)/docs/\(page)", encoding: .utf8)
        let section = text.components(separatedBy: "\n## ").first { $0.hasPrefix(heading + "\n") }
        let parts = try #require(section, "\(page) has no section \(heading)").components(separatedBy: "```")
        return stride(from: 1, to: parts.count, by: 2).map { index in
            parts[index].split(separator: "\n").compactMap { line in
                let command = line.components(separatedBy: " #")[0].trimmingCharacters(in: .whitespaces)
                return command.isEmpty ? nil : command
            }
        }
    }

    /// A node of the lab on which the package is installed: the installer keeps watch, the helper runs.
    final class PackagedNode {
        let lab: Lab
        let place: String
        var directories: String {
            "--conf-dir \(place)/net.d --bin-dir \(place)/bin --state-dir \(lab.directory)/n1/state"
        }
        /// Files of the runtime, and the kernel, before anything of Culvert was there.
        private(set) var before: [String] = []

        init(_ name: String) throws {
            lab = try Lab(name)
            place = lab.directory + "/package"
            try lab.inventory("policy.yaml", LifecycleTests.policy)
            Shell.run(
                """
                mkdir -p \(place)/net.d \(place)/bin \(place)/etc \(place)/stand-ins
                printf '{\n "cniVersion": "0.3.1", "name": "cilium",\n "plugins": [{"type": "cilium-cni"}]\n}' > \(place)/net.d/05-cilium.conflist
                cp \(Shell.binaries)/culvert \(place)/plugin
                """)
            before = state()
            // What systemd, apt and PATH would do. `restart` is `stop` and `start`.
            try standIn(
                "systemctl",
                """
                echo "systemctl $*" >> \(place)/calls
                end() { p=$(cat "$1" 2> /dev/null) || return 0; rm -f "$1"; kill "$p"; for i in $(seq 20); do kill -0 "$p" 2> /dev/null || return 0; sleep 0.05; done; kill -9 "$p"; }
                stop() { case $1 in culvert-install*) end \(place)/installer.pid ;; culvertd*) end \(lab.directory)/n1.pid ;; esac; }
                start() {
                    case $1 in
                    culvert-install*)
                        \(Shell.binaries)/culvertd install \(directories) --run-dir \(lab.directory)/n1 --group 65534 --plugin \(place)/plugin > /dev/null 2>> \(place)/log < /dev/null &
                        echo $! > \(place)/installer.pid ;;
                    culvertd*) LAB_ROUTING=stack LAB_BIN=\(Shell.binaries) LAB_CONFIG=\(lab.directory)/culvertd.yaml \(Lab.script) helper \(lab.prefix) \(lab.directory) n1 > /dev/null 2>> \(place)/log ;;
                    esac
                }
                verb=; for word in "$@"; do
                    case $word in
                    -*) ;;
                    disable|stop|start|restart|try-restart|enable|daemon-reload|is-active|is-enabled) verb=$word ;;
                    *) case $verb in stop|disable) stop $word ;; start) start $word ;; restart|try-restart) stop $word; start $word ;; esac ;;
                    esac
                done
                """)
            try standIn(
                "culvertd",
                """
                echo "culvertd $*" >> \(place)/calls
                case $1 in
                uninstall) exec \(Shell.binaries)/culvertd "$@" \(directories) ;;
                cleanup) exec nsenter --net=/run/netns/\(lab.prefix)-n1 setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps -all,+net_admin --ambient-caps -all,+net_admin --bounding-set -all,+net_admin \(Shell.binaries)/culvertd "$@" --run-dir \(lab.directory)/n1 --state-dir \(lab.directory)/n1/state ;;
                *) echo "culvertd $* is not in the runbook's stand-in" >&2; exit 1 ;;
                esac
                """)
            for name in ["systemd-sysusers", "systemd-tmpfiles"] { try standIn(name, "exit 0") }
            // Every path of the package's scripts becomes one of the lab.
            for name in ["prerm", "postrm", "postinst"] {
                var text = try String(
                    contentsOfFile: "\(Shell.packageRoot)/install/debian/\(name)", encoding: .utf8)
                for (path, here) in [
                    ("/usr/bin/culvertd", "culvertd"), ("-d /run/systemd/system", "-d /"),
                    ("/run/culvert ", "\(lab.directory)/n1 "), ("/var/lib/culvert ", "\(lab.directory)/n1/state "),
                    ("/etc/culvert", "\(place)/etc"),
                ] { text = text.replacingOccurrences(of: path, with: here) }
                let others = text.replacingOccurrences(of: lab.directory, with: "")
                try #require(
                    ![" /run/", " /var/", " /etc/"].contains { others.contains($0) },
                    "\(name) has a path that is not the lab's: \(text)")
                try text.write(toFile: "\(place)/\(name)", atomically: true, encoding: .utf8)
            }
            try standIn(
                "apt-get",
                """
                case "$1" in
                remove) sh \(place)/prerm remove && sh \(place)/postrm remove ;;
                purge) sh \(place)/postrm purge ;;
                install) cp \(Shell.binaries)/culvert \(place)/plugin.new && mv \(place)/plugin.new \(place)/plugin && sh \(place)/postinst configure 0.0 ;;
                *) exit 1 ;;
                esac
                """)
            Shell.run("touch \(place)/etc/culvertd.yaml")
            try carryOut(["systemctl restart culvertd culvert-install"])
            let isChained = lab.eventually { Shell.run("grep -q chained \(place)/log").status == 0 }
            #expect(isChained, "\(Shell.run("cat \(place)/log").output)")
        }
        deinit { Shell.run("kill -9 $(cat \(place)/installer.pid)") }

        private func standIn(_ name: String, _ body: String) throws {
            let path = "\(place)/stand-ins/\(name)"
            try "#!/bin/bash\n\(body)\n".write(toFile: path, atomically: true, encoding: .utf8)
            chmod(path, 0o755)
        }

        /// Types these commands.
        func carryOut(_ commands: [String]) throws {
            for command in commands {
                let result = Shell.run("PATH=\(place)/stand-ins:$PATH; \(command)")
                #expect(result.status == 0, "\(command): \(result.output) \(result.errors)")
            }
        }
        var calls: [String] {
            Shell.run("cat \(place)/calls").output.split(separator: "\n").map(String.init)
        }
        /// Files of the runtime, with modes; and the node's kernel.
        func state() -> [String] {
            let files = Shell.run(
                "cd \(place) && find net.d bin | sort | while read -r f; do stat -c '%n %a' $f; test -f $f && cksum < $f; done"
            ).output
            return (files + LifecycleTests().snapshot(lab, "n1")).split(separator: "\n").map(String.init)
        }
    }

    @Test(arguments: [("ra", 0), ("rh", 1)])
    func afterTheCommandsOfUninstallNothingOfCulvertIsLeft(_ name: String, _ block: Int) throws {
        let blocks = try Self.blocks("uninstall.md", below: "systemd")
        try #require(blocks.count == 2, "the package, and by hand")
        let node = try PackagedNode(name)
        let lab = node.lab
        #expect(node.state() != node.before)
        #expect(Shell.run("ls \(lab.directory)/n1/state").output.contains("chained.json"))
        try node.carryOut(blocks[block])
        let after = node.state()
        #expect(after == node.before, "\(Set(after).symmetricDifference(node.before).sorted())")
        #expect(Shell.run("find \(lab.directory)/n1/attachments \(lab.directory)/n1/deleted -type f").output == "")
        #expect(!Shell.run("ls \(lab.directory)/n1/state").output.contains("chained.json"))
        // Neither the installer nor the helper runs.
        for file in ["\(node.place)/installer.pid", "\(lab.directory)/n1.pid"] {
            #expect(!FileManager.default.fileExists(atPath: file))
        }
        if block == 0 {
            for path in ["\(lab.directory)/n1", "\(node.place)/etc"] {
                #expect(!FileManager.default.fileExists(atPath: path), "purge removes \(path)")
            }
        }
    }

    @Test func theCommandOfUpgradeExchangesPluginAndHelperAndLosesNoPacket() throws {
        let commands = try Self.blocks("upgrade.md", below: "systemd").flatMap { $0 }
        try #require(!commands.isEmpty)
        let node = try PackagedNode("ru")
        let lab = node.lab
        try lab.start("n3")
        try lab.pod("a", on: "n1", last: 10, labels: "app:shop")
        #expect(lab.pings("a", LifecycleTests.world))
        // The release before had another plugin.
        Shell.run(
            "rm -f \(node.place)/bin/culvert; cp \(node.place)/plugin \(node.place)/bin/culvert; printf x >> \(node.place)/bin/culvert"
        )
        let helper = lab.pid("n1")
        lab.forgetSeen()
        let pings = lab.start(in: "a", "ping -n -q -i 0.05 -c 60 -W 2 \(LifecycleTests.world)")
        try node.carryOut(commands)
        #expect(lab.pid("n1") != helper && lab.pid("n1") > 1)
        try lab.waitUntilReady("n1")
        #expect(lab.eventually { Shell.run("cmp \(node.place)/plugin \(node.place)/bin/culvert").status == 0 })
        #expect(pings.wait().output.contains("60 packets transmitted, 60 received"), "\(pings.wait().output)")
        #expect(lab.seen("pings").keys.sorted() == ["10.0.0.13 > \(LifecycleTests.world)"])
        #expect(node.calls.contains("systemctl try-restart culvertd.service culvert-install.service"), "\(node.calls)")
        #expect(lab.ctl("n1", "status").output.hasPrefix("OK\n"), "\(lab.ctl("n1", "status").output)")
    }

    /// What cannot run here: that each thing that a command of the Kubernetes part names is there.
    @Test(arguments: ["uninstall.md", "upgrade.md"])
    func whatTheCommandsForKubernetesNameIsThere(_ page: String) throws {
        let commands = try Self.blocks(page, below: "Kubernetes").flatMap { $0 }
        #expect(commands.count > 1)
        let overlays = try FileManager.default.contentsOfDirectory(
            atPath: "\(Shell.packageRoot)/install/kubernetes/overlays")
        let manifests = Shell.run("cat \(Shell.packageRoot)/install/kubernetes/*/*.yaml").output
        for command in commands {
            let words = command.split(separator: " ").map(String.init)
            #expect(["kubectl", "helm"].contains(words.first), "\(command)")
            let file = words.first == "helm" ? "Chart.yaml" : "kustomization.yaml"
            for word in words where word.hasPrefix("install/") {
                for overlay in overlays {
                    let path = word.replacingOccurrences(of: "NAME", with: overlay)
                    #expect(
                        FileManager.default.fileExists(atPath: "\(Shell.packageRoot)/\(path)/\(file)"),
                        "\(command): \(path)")
                }
            }
            if let place = words.firstIndex(where: { $0 == "daemonset" || $0.hasPrefix("daemonset/") }) {
                let name = words[place] == "daemonset" ? words[place + 1] : String(words[place].dropFirst(10))
                #expect(manifests.contains("kind: DaemonSet\nmetadata:\n  name: \(name)\n"), "\(command)")
            }
        }
    }
}

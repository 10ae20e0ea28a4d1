import CNI
import Foundation
import Jansson
import TestSupport
import Testing

/// culvertctl without a helper, and what is shipped beside it. No root.
@Suite struct CulvertctlTests {
    /// A directory of manifests.
    final class Folder {
        let path = NSTemporaryDirectory() + "culvert-ctl-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        init(_ manifests: String) throws {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
            try manifests.write(toFile: path + "/all.yaml", atomically: true, encoding: .utf8)
        }
        deinit { try? FileManager.default.removeItem(atPath: path) }
        func ctl(_ arguments: String) -> CommandResult {
            Shell.run("\(Shell.binaries)/culvertctl \(arguments) --inventory \(path)")
        }
    }

    static func node(_ number: Int, annotations: String = "") -> String {
        """
        ---
        apiVersion: v1
        kind: Node
        metadata: {name: n\(number), labels: {zone: z\(number)}, annotations: {\(annotations)}}
        spec: {podCIDRs: [10.244.\(number).0/24]}
        status: {addresses: [{type: InternalIP, address: 10.0.0.\(number)}]}
        ---
        apiVersion: cilium.io/v2
        kind: CiliumNode
        metadata: {name: n\(number)}
        spec: {addresses: [{type: CiliumInternalIP, ip: 10.244.\(number).1}]}

        """
    }
    static let pod = """
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: a, namespace: default, uid: u, labels: {app: shop}}
        spec: {nodeName: n1}
        status: {phase: Running, podIP: 10.244.1.10}

        """

    @Test func planExitsWithOneWhereAPolicyIsRefusedAndSaysWhich() throws {
        let good = try Folder(Self.node(1) + Self.node(3) + Self.pod + Lab.policy("shop", app: "shop"))
        let fine = good.ctl("plan --node n1")
        #expect(fine.status == 0 && fine.errors == "", "\(fine.errors)")
        let bad = try Folder(
            Self.node(1) + Self.node(3) + Self.pod + Lab.policy("shop", app: "shop")
                + Lab.policy("later", app: "none", kind: "EgressPolicy", more: "mystery: 1"))
        for output in ["json", "yaml", "table"] {
            let result = bad.ctl("plan --node n1 -o \(output)")
            #expect(result.status == 1, "\(output)")
            let lines = result.errors.split(separator: "\n")
            #expect(lines.count == 1, "\(lines)")
            #expect(
                lines.first?.hasPrefix("culvertctl: EgressPolicy later is refused: spec.mystery is not supported")
                    == true)
            #expect(result.output.contains("shop"), "what can be carried out is printed all the same")
        }
    }

    @Test func graphPrintsWhatItWasAskedForAndNoPictureOfNothing() throws {
        func key(_ number: Int) -> String {
            "kilo.squat.ai/key: '" + Data((0..<32).map { UInt8($0 == 0 ? number : 7) }).base64EncodedString() + "'"
        }
        let mesh = try Folder(Self.node(1, annotations: key(1)) + Self.node(3, annotations: key(3)))
        let json = mesh.ctl("graph -o json")
        #expect(json.status == 0 && json.json?["segments"]?.elements?.isEmpty == false, "\(json.output.prefix(80))")
        #expect(mesh.ctl("graph -o yaml").output.contains("segments:"))
        #expect(mesh.ctl("graph").output.hasPrefix("graph culvert {"))
        #expect(mesh.ctl("graph -f svg").output.hasPrefix("<svg"))
        let none = try Folder(Self.node(1) + Self.node(3))
        for format in ["dot", "mermaid", "svg"] {
            let result = none.ctl("graph -f \(format)")
            #expect(
                result.status != 0 && result.output == "" && result.errors.contains("there is no mesh to draw"),
                "\(format)")
        }
        #expect(none.ctl("graph -o json").json?["segments"]?.elements?.isEmpty == true)
    }

    @Test func allProgramsSayOneVersionWhichStandsInOneFile() {
        #expect(Shell.run("\(Shell.binaries)/culvert --version").output == "culvert \(CulvertRelease.version)\n")
        for program in ["culvertd", "culvertctl"] {
            #expect(Shell.run("\(Shell.binaries)/\(program) --version").output == CulvertRelease.version + "\n")
        }
        let files = Shell.run(
            "cd \(Shell.packageRoot)/Sources && grep -rlE '= *\"[0-9]+\\.[0-9]+\\.[0-9]+\"|version: \"' --include=*.swift . | grep -v CNIVersion"
        ).output
        #expect(files == "./CNI/CulvertRelease.swift\n", "\(files)")
    }

    /// `install/debian.sh` makes manual pages from these texts, and takes the first line as the name of a page.
    @Test(arguments: ["culvertd", "culvertctl"]) func everyCommandHasADescriptionInOneLineAndAnExample(program: String)
    {
        let help = Shell.run("\(Shell.binaries)/\(program) --help").output
        let list = help.components(separatedBy: "SUBCOMMANDS:\n").last ?? ""
        // A name is indented by two spaces, and the rest of a long description by more.
        let commands = list.split(separator: "\n").filter { $0.hasPrefix("  ") && !$0.hasPrefix("   ") }
            .compactMap { $0.split(separator: " ").first.map(String.init) }.filter { $0 != "See" }
        #expect(commands.count >= 5, "\(help)")
        for command in [""] + commands {
            let text = Shell.run("\(Shell.binaries)/\(program) \(command) --help").output
            #expect(
                text.split(separator: "\n").first?.hasSuffix(".") == true, "\(program) \(command): \(text.prefix(90))")
            #expect(text.contains("Example"), "\(program) \(command)")
            #expect(text.contains("\n  \(program) \(command)"), "\(program) \(command) has no example of itself")
        }
    }

    @Test func theShippedConfigurationListsHandThePodsAnnotationsOver() throws {
        let directory = "\(Shell.packageRoot)/cni-conf"
        let files = try FileManager.default.contentsOfDirectory(atPath: directory).filter { $0.hasSuffix(".conflist") }
        #expect(files.count == 2)
        for file in files {
            let list = try JSON.parse([UInt8](try String(contentsOfFile: "\(directory)/\(file)", encoding: .utf8).utf8))
            let culvert = list["plugins"]?.elements?.first { $0["type"]?.string == "culvert" }
            #expect(culvert?["capabilities"]?["io.kubernetes.cri.pod-annotations"]?.bool == true, "\(file)")
        }
    }
}

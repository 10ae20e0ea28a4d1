import Foundation
import Jansson
import TestSupport
import Testing

@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root; install/test.sh runs it"))
struct ManyContainersTests {
    @Test func aThousandADDsAndDELsLeaveNothing() throws {
        let lab = try Lab("m")
        try lab.inventory(
            "policy.yaml",
            Lab.policy("shop", app: "shop") + Lab.policy("bank", app: "bank", egress: "egressIP: 192.0.2.31"))
        try lab.start("n1")
        let script = Shell.packageRoot + "/Tests/Lab/churn.sh"
        func memory() -> Int {
            let status = (try? String(contentsOfFile: "/proc/\(lab.pid("n1"))/status", encoding: .utf8)) ?? ""
            return status.split(separator: "\n").first { $0.hasPrefix("VmRSS") }
                .flatMap { Int($0.split(whereSeparator: { $0 == " " || $0 == "\t" })[1]) } ?? 0
        }
        func descriptors() -> Int {
            (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(lab.pid("n1"))/fd").count) ?? 0
        }
        let state = "ip rule; ip route show table all; ip nexthop; ip -o link | wc -l; nft -s list ruleset"
        let before = lab.run(in: "n1", "bash -c '\(state)'").output
        let descriptorsBefore = descriptors()
        var resident: [Int] = []
        for _ in 1...3 {
            let result = Shell.run("\(script) \(lab.prefix) \(lab.directory) n1 1000 16", timeout: 400)
            #expect(result.status == 0, "\(result.output.suffix(2000)) \(result.errors.suffix(2000))")
            resident.append(memory())
        }
        // Namespaces and their links go in the background of the kernel.
        _ = lab.eventually { lab.run(in: "n1", "bash -c '\(state)'").output == before }
        let after = lab.run(in: "n1", "bash -c '\(state)'").output
        let lines = Set(before.split(separator: "\n")).symmetricDifference(after.split(separator: "\n"))
        #expect(after == before, "\(lines.sorted().joined(separator: "\n"))")
        #expect(lab.eventually { descriptors() == descriptorsBefore }, "\(descriptors()) of \(descriptorsBefore)")
        #expect(Shell.run("ls -A \(lab.directory)/n1/attachments").output == "")
        #expect(Shell.run("ip netns list | grep -c \(lab.prefix)-x").output == "0\n")
        #expect(abs(resident[2] - resident[1]) * 50 <= resident[1], "resident kB after each round: \(resident)")
        #expect(lab.ctl("n1", "diff").output == "[]\n")
    }
}

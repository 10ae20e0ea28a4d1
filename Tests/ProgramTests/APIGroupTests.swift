import Foundation
import TestSupport
import Testing

/// `api.sock` in a group of its own, of helpers that are no root.
@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root and CULVERT_LAB=1"))
struct APIGroupTests {
    func curl(_ lab: Lab, groups: String) -> Int32 {
        lab.run(
            in: "n1",
            "setpriv --reuid 12345 --regid 12345 --groups \(groups) curl -sf --unix-socket \(lab.directory)/n1/api.sock http://localhost/healthz"
        ).status
    }

    @Test func membersOfTheGroupMayLookAndTheHelpersGroupMayNot() throws {
        let lab = try Lab("ag", configuration: "listen: {apiGroup: \"4242\"}\n", extra: ["LAB_GROUPS": "4242"])
        try lab.start("n1")
        let socket = Shell.run("stat -c '%a %u %g' \(lab.directory)/n1/api.sock").output
        #expect(socket == "660 65534 4242\n")
        #expect(lab.log("n1").contains("the group of api.sock cannot reach the socket"))
        #expect(curl(lab, groups: "4242") != 0, "the run directory is the helper's group's only")
        Shell.run("chmod o+x \(lab.directory)/n1")
        #expect(curl(lab, groups: "4242") == 0)
        #expect(curl(lab, groups: "65534") != 0)
        #expect(Shell.run("stat -c '%a %g' \(lab.directory)/n1/cni.sock").output == "600 65534\n")
    }

    @Test func withoutAGroupItIsTheHelpers() throws {
        let lab = try Lab("ah")
        try lab.start("n1")
        #expect(Shell.run("stat -c '%a %u %g' \(lab.directory)/n1/api.sock").output == "660 65534 65534\n")
    }

    @Test(arguments: [("4242", "is not in the group 4242"), ("no-such-group", "does not exist")])
    func aGroupThatTheHelperCannotGiveStopsItWithTheRemedy(_ group: String, _ message: String) throws {
        let lab = try Lab("ai", configuration: "listen: {apiGroup: \"\(group)\"}\n")
        let result = lab.lab("helper n1")
        #expect(result.status != 0)
        #expect(lab.log("n1").contains(message), "\(lab.log("n1"))")
    }
}

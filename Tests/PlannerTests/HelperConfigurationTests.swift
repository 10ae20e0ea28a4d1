import Inventory
import Model
import TestSupport
import Testing

@Suite struct HelperConfigurationTests {
    /// install/culvertd.yaml has every key; what is commented out there is not its default.
    static func example() throws -> String {
        try String(contentsOfFile: "\(Shell.packageRoot)/install/culvertd.yaml", encoding: .utf8)
    }

    @Test func theExampleIsTheDefault() throws {
        #expect(try HelperConfiguration(text: Self.example()) == HelperConfiguration())
    }

    @Test func whatIsKeptAndWhatNodesMayAddIsANetworkEach() throws {
        let read = try HelperConfiguration(
            text: "cluster: {nodeCIDRs: [10.0.0.0/8, 'fd00::/8']}\nmesh: {allowedLocationCIDRs: [192.168.0.0/16]}")
        #expect(read.planner.nodeCIDRs.map(\.description) == ["10.0.0.0/8", "fd00::/8"])
        #expect(read.planner.mesh.allowedLocationCIDRs.map(\.description) == ["192.168.0.0/16"])
        for (text, field) in [
            ("cluster: {nodeCIDRs: 10.0.0.0/8}", "cluster.nodeCIDRs is not a list"),
            ("cluster: {nodeCIDRs: [x]}", "cluster.nodeCIDRs[0] \"x\" is not a network"),
            ("mesh: {allowedLocationCIDRs: [1.2.3.4/40]}", "mesh.allowedLocationCIDRs[0]"),
        ] {
            let error = #expect(throws: HelperConfiguration.Failure.self) { try HelperConfiguration(text: text) }
            #expect(error?.description.contains(field) == true, "\(error?.description ?? "")")
        }
        #expect(
            try HelperConfiguration(text: "egress: {allowNone: [kube-system, '*']}").planner.allowNone.names
                == ["kube-system", "*"])
        #expect(try HelperConfiguration(text: "egress: {defaultPolicy: all}").planner.defaultPolicy == "all")
        #expect(try HelperConfiguration(text: "egress: {}").planner.defaultPolicy == nil)
        let wrong = #expect(throws: HelperConfiguration.Failure.self) {
            try HelperConfiguration(text: "egress: {allowNone: [Shop]}")
        }
        #expect(wrong?.description.hasPrefix("egress.allowNone[0] \"Shop\" is neither the name") == true)
        let example = try Self.example()
        #expect(example.contains("  nodeCIDRs: []") && example.contains("#   allowedLocationCIDRs: []"))
    }
}

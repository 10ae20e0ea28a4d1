import Jansson
import Model
import TestSupport
import Testing

@testable import Inventory

/// A policy whose name can be read is always a policy: what is wrong with it refuses it, with the field and the remedy, and
/// says what is not known of it.
@Suite struct PolicyManifestTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let spec: String
        let kind: String
        /// Parts of the refusal; empty: the policy is not refused.
        let words: [String]
        let unknown: String
        /// Selectors and destinations that were read all the same.
        let read: (selectors: Int, destinations: Int)
        var testDescription: String { spec }

        init(
            _ spec: String, _ words: [String], unknown: String = "", read: (Int, Int) = (0, 1),
            kind: String = "EgressPolicy"
        ) {
            self.spec = spec
            self.words = words
            self.unknown = unknown
            self.read = read
            self.kind = kind
        }

        var manifest: String {
            let version = kind == "EgressPolicy" ? "culvert.dev/v1alpha1" : "cilium.io/v2"
            return "apiVersion: \(version)\nkind: \(kind)\nmetadata: {name: p}\n\(spec)\n"
        }
    }

    static let gateway = "egressGateway: {nodeSelector: {matchLabels: {a: b}}}"
    static let all = "destinationCIDRs: [0.0.0.0/0]"
    static func spec(_ text: String) -> String { "spec: {\(text)}" }
    static func selector(_ text: String) -> String {
        "spec: {selectors: [{podSelector: {}}, \(text)], \(all), \(gateway)}"
    }

    static let cases: [Case] = [
        Case(spec("selectors: [{podSelector: {}}], \(all), \(gateway)"), [], read: (1, 1)),
        Case(spec("\(all), \(gateway)"), []),
        // Fields of a later release, beside selectors and destinations.
        Case(
            spec("surprise: 1, selectors: [{}], \(all), \(gateway)"), ["spec.surprise", "not supported", "update"],
            read: (1, 1)),
        // Several gateways, and which of them.
        Case(spec("egressGateways: [{nodeSelector: {}}], selectors: [{}], \(all)"), [], read: (1, 1)),
        Case(spec("egressGateways: [], \(all)"), ["spec.egressGateway", "egressGateways"]),
        Case(spec("egressGateways: [{}], \(all)"), ["spec.egressGateways[0].nodeSelector", "missing"]),
        Case(spec("egressGateways: [{nodeSelector: {}, later: 1}], \(all)"), ["spec.egressGateways[0].later"]),
        Case(
            spec("egressGateways: [{nodeSelector: {}}, {nodeSelector: {}, egressIP: 1.1.1.1, interface: e}], \(all)"),
            ["spec.egressGateways[1].egressIP", "together"]),
        Case(spec("mode: spread, locality: prefer, failBack: true, \(all), \(gateway)"), []),
        Case(spec("mode: both, \(all), \(gateway)"), ["spec.mode", "\"both\"", "active-standby, spread"]),
        Case(spec("locality: near, \(all), \(gateway)"), ["spec.locality", "none, prefer, only"]),
        Case(spec("failBack: maybe, \(all), \(gateway)"), ["spec.failBack", "true or false"]),
        Case(spec("mode: spread, \(all), \(gateway)"), ["spec.mode"], kind: "CiliumEgressGatewayPolicy"),
        Case(
            spec("healthChecks: {interval: 50ms, multiplier: 5, targets: [\"192.0.2.1:443\"]}, \(all), \(gateway)"), []),
        Case(spec("healthChecks: {interval: 2s}, \(all), \(gateway)"), []),
        Case(spec("healthChecks: {interval: 5ms}, \(all), \(gateway)"), ["spec.healthChecks.interval", "20ms"]),
        Case(spec("healthChecks: {interval: 100}, \(all), \(gateway)"), ["spec.healthChecks.interval"]),
        Case(spec("healthChecks: {interval: -1s}, \(all), \(gateway)"), ["spec.healthChecks.interval", "-1s"]),
        Case(spec("healthChecks: {multiplier: 1}, \(all), \(gateway)"), ["spec.healthChecks.multiplier", "2 and 50"]),
        Case(spec("healthChecks: {targets: [\"x\"]}, \(all), \(gateway)"), ["spec.healthChecks.targets[0]", "\"x\""]),
        Case(spec("healthChecks: {targets: [\"1.1.1.1:0\"]}, \(all), \(gateway)"), ["spec.healthChecks.targets[0]"]),
        Case(spec("healthChecks: {later: 1}, \(all), \(gateway)"), ["spec.healthChecks.later"]),
        Case(spec("snat: false, \(all), \(gateway)"), ["spec.snat"], kind: "CiliumEgressGatewayPolicy"),
        Case(spec("\(all), egressGateway: {nodeSelector: {}, weight: 3}"), ["spec.egressGateway.weight"]),
        // No spec.
        Case("", ["spec", "missing"], unknown: "selectors destinations", read: (0, 0)),
        Case("spec: 7", ["spec", "not an object"], unknown: "selectors destinations", read: (0, 0)),
        // Destinations.
        Case(
            spec("selectors: [{}], \(gateway)"), ["spec.destinationCIDRs", "missing"], unknown: "destinations",
            read: (1, 0)),
        Case(spec("destinationCIDRs: [], \(gateway)"), ["spec.destinationCIDRs", "empty"], read: (0, 0)),
        Case(
            spec("destinationCIDRs: 10.0.0.0/8, \(gateway)"), ["spec.destinationCIDRs", "not a list"],
            unknown: "destinations", read: (0, 0)),
        Case(
            spec("destinationCIDRs: [10.0.0.0/8, everything, 7, 192.0.2.0/24], \(gateway)"),
            ["spec.destinationCIDRs[1]", "\"everything\"", "203.0.113.0/24"], unknown: "destinations", read: (0, 2)),
        // An exclusion that cannot be read leaves a larger claim, which is the safe side.
        Case(spec("\(all), excludedCIDRs: [10.0.0.0/8, 1.1.1.1/40], \(gateway)"), ["spec.excludedCIDRs[1]", "/40"]),
        Case(spec("\(all), excludedCIDRs: none, \(gateway)"), ["spec.excludedCIDRs", "not a list"]),
        // Selectors.
        Case(spec("selectors: all, \(all), \(gateway)"), ["spec.selectors", "not a list"], unknown: "selectors"),
        Case(
            selector("{strange: {}}"), ["spec.selectors[1].strange", "not supported"], unknown: "selectors",
            read: (1, 1)),
        Case(selector("text"), ["spec.selectors[1]", "not an object"], unknown: "selectors", read: (1, 1)),
        Case(selector("{podSelector: []}"), ["spec.selectors[1].podSelector"], unknown: "selectors", read: (1, 1)),
        Case(
            selector("{podSelector: {matchLabels: {x: true}}}"), ["matchLabels[\"x\"]", "quote it"],
            unknown: "selectors", read: (1, 1)),
        Case(
            selector("{namespaceSelector: {matchNames: [a]}}"), ["spec.selectors[1].namespaceSelector.matchNames"],
            unknown: "selectors", read: (1, 1)),
        Case(
            selector("{podSelector: {matchExpressions: [{key: a, operator: Near}]}}"),
            ["spec.selectors[1].podSelector.matchExpressions[0].operator", "Near", "DoesNotExist"],
            unknown: "selectors", read: (1, 1)),
        Case(
            selector("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"), ["values", "empty"],
            unknown: "selectors", read: (1, 1)),
        Case(
            selector("{podSelector: {matchExpressions: [{key: a, operator: Exists, unless: x}]}}"), ["unless"],
            unknown: "selectors", read: (1, 1)),
        Case(
            selector("{podSelector: {matchExpressions: [{operator: Exists}]}}"), ["key", "missing"],
            unknown: "selectors", read: (1, 1)),
        // The gateway.
        Case(spec(all), ["spec.egressGateway", "missing"]),
        Case(spec("\(all), egressGateway: []"), ["spec.egressGateway", "not an object"]),
        Case(spec("\(all), egressGateway: {}"), ["spec.egressGateway.nodeSelector", "missing"]),
        Case(
            spec("\(all), egressGateway: {nodeSelector: {matchExpressions: 1}}"),
            ["spec.egressGateway.nodeSelector.matchExpressions"]),
        Case(spec("\(all), egressGateway: {nodeSelector: {}, egressIP: x}"), ["spec.egressGateway.egressIP", "\"x\""]),
        Case(spec("\(all), egressGateway: {nodeSelector: {}, egressIP: \"fd00::1\"}"), ["fd00::1", "IPv6"]),
        Case(
            spec("\(all), egressGateway: {nodeSelector: {}, egressIP: 1.1.1.1, interface: e}"),
            ["egressIP", "together"]),
        Case(
            spec("\(all), egressGateway: {nodeSelector: {}, interface: a-name-that-is-too-long}"), ["interface", "15"]),
        Case(
            spec("snat: false, \(all), egressGateway: {nodeSelector: {}, interface: eth1}"), ["spec.snat", "no sense"]),
        Case(spec("snat: 1, \(all), \(gateway)"), ["spec.snat", "true or false"]),
        Case(spec("destinationCIDRs: [\"::/0\"], \(gateway)"), ["IPv6"]),
    ]

    static func policy(_ text: String) throws -> EgressPolicy {
        let objects = try Manifests.parse(text, file: "f.yaml").get()
        guard case .policy(let policy)? = objects.first else { throw Missing() }
        return policy
    }
    struct Missing: Error {}

    @Test(arguments: cases) func whatIsWrongWithAPolicyRefusesItAndSaysWhatIsUnknown(_ test: Case) throws {
        let policy = try Self.policy(test.manifest)
        #expect(policy.refusal.isEmpty == test.words.isEmpty, "\(policy.refusal)")
        for word in test.words { #expect(policy.refusal.contains(word), "\(policy.refusal)") }
        #expect(policy.hasUnknownSelectors == test.unknown.contains("selectors"))
        #expect(policy.hasUnknownDestinations == test.unknown.contains("destinations"))
        #expect(policy.selectors.count == test.read.selectors)
        #expect(policy.destinations.count == test.read.destinations)
        // The API server's objects are read the same, and from the cache on disk nothing is lost.
        let object = try #require(try YAMLDocuments.parse(test.manifest).first?.value)
        #expect(try Manifests.read(object).get() == [.policy(policy)])
        #expect(try Manifests.parse(ManifestWriter.list([.policy(policy)]), file: "cache").get() == [.policy(policy)])
    }

    @Test func aMalformedPolicyTakesNothingElseOfItsFileWithIt() throws {
        let text =
            Case.init("spec: [1]", []).manifest + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n"
            + "apiVersion: culvert.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: good}\n"
            + Self.spec("selectors: [{podSelector: {}}], \(Self.all), \(Self.gateway)")
        let inventory = Inventory(assembling: ["f.yaml": try Manifests.parse(text, file: "f.yaml").get()])
        #expect(inventory.namespaces["a"] != nil)
        #expect(inventory.policies.map(\.name) == ["good", "p"])
        #expect(inventory.policies.map(\.refusal.isEmpty) == [true, false])
    }

    @Test func anExclusionThatWasReadStays() throws {
        let policy = try Self.policy(
            Case(Self.spec("\(Self.all), excludedCIDRs: [10.0.0.0/8, x], \(Self.gateway)"), []).manifest)
        #expect(policy.exclusions.map(\.description) == ["10.0.0.0/8"])
    }

    /// The last release's cache has the reason alone.
    @Test func whatTheLastReleaseCachedOfARefusedPolicyIsNotKnown() throws {
        let policy = try Self.policy(Case(Self.spec("refused: because, \(Self.all), \(Self.gateway)"), []).manifest)
        #expect(policy.refusal == "because")
        #expect(policy.hasUnknownSelectors && policy.hasUnknownDestinations)
    }
}

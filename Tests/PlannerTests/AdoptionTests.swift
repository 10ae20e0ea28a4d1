import Inventory
import Model
import TestSupport
import Testing

@testable import Planner

/// Why a pod has no ADD: what is certain, and what is not known.
struct AdoptionTests {
    static let day: Int64 = 1_800_000_000
    /// Times are seconds from `day`. The plugin was chained at 1000.
    @Test(
        arguments: [
            // pod, boot, how the installer found it, without helper, what is said
            (0, -500, "chained", false, "beforeCulvert"), (999, -500, "chained", false, "beforeCulvert"),
            // Seconds are whole, and a runtime reads the directory a moment later.
            (1000, -500, "chained", false, "notKnown"), (1001, -500, "chained", false, "notKnown"),
            (1002, -500, "chained", false, "pluginNotCalled"), (5000, -500, "chained", true, "pluginNotCalled"),
            // Where the clock of the boot is not known, the pod's counts alone.
            (0, nil, "chained", false, "beforeCulvert"), (5000, nil, "chained", false, "pluginNotCalled"),
            // An old pod has a new sandbox after a reboot, which the plugin should have been called for.
            (0, 3000, "chained", false, "pluginNotCalled"), (nil, 3000, "chained", false, "pluginNotCalled"),
            // A boot before the plugin was chained says nothing.
            (0, 500, "chained", false, "beforeCulvert"), (nil, 500, "chained", false, "notKnown"),
            (nil, nil, "chained", false, "notKnown"),
            // The plugin may have been in the chain for longer than the installer knows.
            (0, -500, "found", false, "notKnown"), (5000, -500, "found", false, "pluginNotCalled"),
            (0, 3000, "found", false, "pluginNotCalled"),
            // No installer has told anything: not known is never nothing.
            (0, -500, "", false, "notKnown"), (5000, 3000, "", false, "notKnown"),
        ] as [(Int64?, Int64?, String, Bool, String)])
    func whatIsSaidOfAnAdoptedPod(
        _ pod: Int64?, _ boot: Int64?, _ chain: String, _ allows: Bool, _ key: String
    ) {
        var facts = LocalFacts(nodeName: "n1")
        facts.bootTime = boot.map { Self.day + $0 }
        if !chain.isEmpty {
            facts.chain = ChainRecord(
                since: Self.day + 1000, isFound: chain == "found", allowsWithoutHelper: allows)
        }
        let adoption = Adoption(podStart: pod.map { Self.day + $0 }, facts: facts)
        #expect(adoption.key == key, "\(adoption.text)")
        #expect(adoption.text.contains("the plugin was not called") == (key == "pluginNotCalled"), "\(adoption.text)")
        #expect(adoption.text.contains("was there before Culvert (") == (key == "beforeCulvert"), "\(adoption.text)")
        #expect(adoption.text.contains("whenHelperUnavailable") == (allows && key == "pluginNotCalled"))
        #expect(adoption.remedy.contains("log of culvertd install") == (key == "pluginNotCalled"))
    }

    @Test func onlyAdoptedPodsAreSaidToHaveNoADDAndTheyAreCounted() {
        var inventory = TestCluster.inventory
        for place in inventory.pods.indices { inventory.pods[place].startTime = Self.day }
        var facts = LocalFacts(nodeName: "n1")
        facts.isLive = true
        facts.chain = ChainRecord(since: Self.day - 100)
        let others = Planner.adoptedAttachments(inventory: inventory, nodeName: "n1", attached: [])
        let attached = Attachment(containerID: "c", interfaceName: "eth0", addresses: [IPNetwork("10.244.1.77/32")!])
        let plan = Planner.plan(
            configuration: Configuration(), localFacts: facts, inventory: inventory, attachments: others + [attached])
        #expect(others.count > 1 && plan.adoptions == ["pluginNotCalled": others.count])
        #expect(plan.attachments.first { $0.attachment.containerID == "c" }?.adoption == nil)
        let json = plan.attachments.map(PlanJSON.attachment)
        #expect(json.count { $0["adoption"]?.string == "pluginNotCalled" } == others.count)
    }

    @Test(
        arguments: [
            ("1970-01-01T00:00:00Z", 0), ("2026-11-28T22:42:31Z", 1_795_905_751),
            ("2024-02-29T12:00:00Z", 1_709_208_000),
            ("2000-03-01T00:00:00+00:00", 951_868_800), ("2026-11-28T22:42:31.999999Z", 1_795_905_751),
            ("2026-11-29T00:12:31+01:30", 1_795_905_751), ("1999-12-31T23:59:59-00:00", 946_684_799),
            ("2026-11-28", nil), ("", nil), ("2026-13-01T00:00:00Z", nil), ("2026-11-28T22:42:31", nil),
            ("2026-11-28T22:42:31Zjunk", nil), ("2026-11-28T22:42:31+9", nil), ("20é6-11-28T22:42:31Z", nil),
        ] as [(String, Int64?)])
    func timesAreReadAsKubernetesWritesThem(_ text: String, _ seconds: Int64?) {
        #expect(Timestamp.seconds(text) == seconds)
        if let seconds { #expect(Timestamp.seconds(Timestamp.text(seconds)) == seconds) }
    }

    @Test func aPodsStartIsItsStatusElseWhenItWasMade() throws {
        func start(_ status: String) throws -> Int64? {
            let text = """
                apiVersion: v1
                kind: Pod
                metadata: {name: a, namespace: default, creationTimestamp: 2024-02-29T12:00:00Z}
                \(status)
                """
            guard case .pod(let pod)? = try Manifests.parse(text, file: "a").get().first else { return nil }
            return pod.startTime
        }
        #expect(try start("status: {startTime: 2026-11-28T22:42:31Z}") == 1_795_905_751)
        #expect(try start("") == 1_709_208_000)
        #expect(try start("status: {startTime: soon}") == 1_709_208_000, "and the pod is still one")
    }

    @Test func aRecordIsReadAsItWasWrittenAndWhatMakesNoSenseIsNotKnown() throws {
        let record = ChainRecord(since: Self.day, allowsWithoutHelper: true)
        #expect(ChainRecord(record.json) == record)
        #expect(ChainRecord(.make(("since", .string("yesterday")))) == nil && ChainRecord(.null) == nil)
        #expect(
            ChainRecord(.make(("since", .string("2027-01-15T08:00:00Z"))))
                == ChainRecord(since: Self.day, isFound: true, allowsWithoutHelper: true))
    }
}

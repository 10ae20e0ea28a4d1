import ClusterTransport
import Foundation
import Inventory
import Jansson
import Logging
import Model

/// What is asked for now and then, rather than watched: the gateways' own words, and how many pods a policy selects.
extension KubernetesInventory {
    /// Until the task is cancelled.
    func keepLookingUp() async {
        let interval = Duration.seconds(600)
        var sinceAll = clock.stopwatch()
        while !Task.isCancelled {
            let isDue = sinceAll() > interval * Double.random(in: 0.9...1.1)
            if isDue { sinceAll = clock.stopwatch() }
            await countSelectedPods(isDue: isDue)
            await lookUpGateways()
            try? await clock.sleep(for: .seconds(2))
        }
    }

    // MARK: gateways

    public func useGateways(_ names: Set<String>) { gateways = names }

    /// What a gateway says of itself (its egress address), which its CiliumNode does not say: once, and every ten minutes.
    private func lookUpGateways() async {
        guard nodeReading == .own else { return }
        lookedUp = lookedUp.filter { gateways.contains($0.key) }
        for name in gateways.sorted() where name != nodeName {
            if let known = lookedUp[name], known.age() < .seconds(600) { continue }
            var told: [String: String] = [:]
            do {
                let object = try await client.get(.nodes, name: name, metadataOnly: true)
                for member in object?["metadata"]?["annotations"]?.members ?? []
                where member.key.hasPrefix("culvert.dev/") { told[member.key] = member.value.string }
            } catch {
                logger.notice("a gateway cannot be looked up", metadata: ["node": "\(name)", "error": "\(error)"])
                told = lookedUp[name]?.annotations ?? [:]
            }
            let isNews = (lookedUp[name]?.annotations ?? [:]) != told
            lookedUp[name] = (told, clock.stopwatch())
            if isNews {
                refresh(.nodes, ["/" + name])
                changed()
            }
        }
    }

    // MARK: selected pods

    /// Counts the pods that the policies select of which this node is to tell: when a policy is new or has changed, and
    /// again every ten minutes. Requests of one node in the cluster; no watch, which would be sent every change of
    /// every pod.
    private func countSelectedPods(isDue: Bool) async {
        // Of policies of which another node tells, that one counts.
        let names = Set(
            wantedReports.filter { !$0.activeGateways.isEmpty || reported[$0.name] != nil }.map(\.name))
        counted = counted.filter { names.contains($0.key) }
        for policy in known.policies where policy.source == .culvert && names.contains(policy.name) {
            guard isDue || counted[policy.name]?.selectors != policy.selectors else { continue }
            do {
                let count = try await SelectedPods.count(policy, known, client)
                counted[policy.name] = SelectedPods(selectors: policy.selectors, count: count)
                publishRequested.yield()
            } catch {
                logger.notice(
                    "the pods of a policy cannot be counted",
                    metadata: ["policy": "\(policy.name)", "error": "\(error)"])
                // Not before the next round: it is only a figure for people.
                counted[policy.name] = SelectedPods(
                    selectors: policy.selectors, count: counted[policy.name]?.count)
            }
        }
    }
}

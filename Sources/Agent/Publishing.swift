import Inventory
import Logging
import Model
import Planner

/// What this node tells others: of itself, and of the policies of which it is the one to tell.
extension NodeAgent {
    /// `published/NODE.yaml`, and the annotations of the own Node.
    func publishNode() {
        let node = PublishedNode(
            facts: facts, discovered: discoveredEndpoints, configuration: settings.configuration,
            node: inventory.nodes[settings.nodeName],
            wireGuardAddress: plan.host.links.first { $0.kind == .wireguard }?.address, lastSeen: lastSeen)
        publication.yield(node.annotations)
        do { try store.publish(node) } catch { logger.error("\(error)") }
    }

    /// What follows from a new plan.
    func tellOthers() {
        let reports = policyReports
        if reports != lastReports {
            lastReports = reports
            report.yield(reports)
        }
        let names = Set(plan.policies.filter { $0.attachments > 0 }.compactMap(\.gateway))
        let source = source
        if names != gatewaysInUse {
            gatewaysInUse = names
            Task { await source.useGateways(names) }
        }
        let events = plan.policies.compactMap(event)
        if !events.isEmpty { Task { for event in events { await source.record(event) } } }
    }

    private func event(of policy: PolicyPlan) -> ObjectEvent? {
        guard policy.problem != "" else { return nil }
        if policy.gateway == nil && policy.attachments > 0 && !policy.isRefused {
            return ObjectEvent(
                .policy(name: policy.name, source: policy.source), reason: "NoGateway", message: policy.problem)
        }
        // A problem that does not stop the policy is reported by the gateway alone; otherwise every node would send the
        // same Event.
        if policy.isLocalGateway, policy.source == .cilium, inventory.cilium?.hasEgressGateway == true {
            return ObjectEvent(
                .policy(name: policy.name, source: policy.source), reason: "CiliumEgressGatewayActive",
                message: policy.problem)
        }
        return nil
    }

    /// One node tells of each policy: its gateway, or where it has none, the first by name that runs a helper.
    private var policyReports: [PolicyReport] {
        let ours = plan.policies.filter { $0.source == .culvert && ($0.isLocalGateway || $0.gateway == nil) }
        // Looking at every node is only worth it where it decides.
        let rank =
            ours.contains { $0.gateway == nil } ? inventory.nodes.keys.count { $0 < settings.nodeName } : 0
        return ours.map { policy in
            PolicyReport(
                name: policy.name, activeGateways: [policy.gateway].compactMap { $0 }, reason: policy.problem,
                rank: policy.gateway == nil ? rank : 0)
        }
    }
}

import Installer
import Model
import Planner

/// The first line of the status: one word, and the reasons for it.
public struct StatusSummary: Equatable, Sendable {
    public enum Level: String, Sendable {
        case ok = "OK"
        /// Something is not as it should be. Pods that need a refused object are unreachable by it; all others are not.
        case degraded = "DEGRADED"
        /// Some pod is cut off from what it may send to, or no pod can start.
        case held = "HELD"
    }
    public let level: Level
    /// What is wrong, most important first, with counts.
    public let reasons: [String]
    /// Why the node is not ready for pods; empty when it is.
    public let unready: String

    /// - Parameter chain: what the installer has come to; nil: none has been at work, or it does not matter.
    public init(_ node: NodeSnapshot, chain: ChainState? = nil) {
        var held: [String] = []
        var degraded: [String] = []
        var unready = ""
        if !node.unknown.isEmpty {
            let why = node.unknown.joined(separator: "; ")
            if node.isInformed {
                held.append(
                    "no pod can start, and the last inventory stays in force: the inventory is not known completely: \(why)"
                )
            } else {
                held.append(
                    "no pod can start, and the kernel stays as it is: the inventory is not known completely: \(why)")
            }
            unready = held[0]
        }
        func pods(_ count: Int) -> String { count == 1 ? "1 pod is" : "\(count) pods are" }
        let cutOff = node.plan.attachments.filter(\.isHeld)
        if let first = cutOff.first {
            held.append("\(pods(cutOff.count)) held: \(first.attachment.displayName): \(first.holds.first ?? "")")
        }
        let unreachable = node.plan.attachments.filter { entry in
            !entry.isHeld
                && (entry.policies.contains { $0.gateway == nil }
                    || (!entry.refusal.isEmpty && entry.holds.isEmpty && !entry.policies.isEmpty))
        }
        if let first = unreachable.first {
            let lost = first.policies.first { $0.gateway == nil }
            let why =
                !first.refusal.isEmpty
                ? first.refusal
                : lost?.isDown == true
                    ? "all gateways of policy \(lost?.name ?? "") are down"
                    : "policy \(lost?.name ?? "") has no gateway"
            held.append(
                "\(pods(unreachable.count)) cut off from what a policy claims: \(first.attachment.displayName): \(why)")
        }
        if !node.failures.isEmpty {
            let first = node.failures[0]
            degraded.append(
                "the kernel is not as planned (changes that failed: \(node.failures.count)): \(first.message)")
            if unready.isEmpty { unready = degraded[0] }
        }
        if let chain, chain.phase != .chained {
            degraded.append("the plugin is not in the chain, so that new pods start without it: \(chain.reason)")
        }
        let kept = node.plan.attachments.filter { !$0.isHeld && !$0.holds.isEmpty }
        if let first = kept.first {
            degraded.append(
                "\(kept.count == 1 ? "1 pod keeps its" : "\(kept.count) pods keep their") previous routing: "
                    + "\(first.attachment.displayName): \(first.holds.first ?? "")")
        }
        let unwelcome = node.plan.attachments.filter { !$0.refusal.isEmpty && $0.policies.isEmpty }
        if let first = unwelcome.first {
            degraded.append(
                "\(pods(unwelcome.count)) running without a policy as before, and would be refused at a new start: "
                    + "\(first.attachment.displayName): \(first.refusal)")
        }
        let refused = node.plan.policies.compactMap { policy in policy.refusal.map { (name: policy.name, why: $0) } }
        if let first = refused.first {
            degraded.append(
                "\(refused.count == 1 ? "1 policy is" : "\(refused.count) policies are") refused: \(first.name): "
                    + first.why)
        }
        if !node.echoes.obstacle.isEmpty {
            degraded.append("it is not known which gateways are alive: \(node.echoes.obstacle)")
        }
        let down = node.plan.liveness.slots.filter(\.isInUse).flatMap(\.candidates).filter { candidate in
            node.echoes.sessions.contains { $0.session.ends.contains(candidate.end) && $0.state == .down }
        }
        let names = Set(down.map(\.candidate.node)).sorted()
        if !names.isEmpty {
            degraded.append(
                "\(names.count == 1 ? "1 gateway is" : "\(names.count) gateways are") down: \(names.joined(separator: ", "))"
            )
        }
        if !node.meshProblem.isEmpty { degraded.append("WireGuard is not as planned: \(node.meshProblem)") }
        if !node.storeProblem.isEmpty { degraded.append("state cannot be saved to disk: \(node.storeProblem)") }
        level = held.isEmpty ? degraded.isEmpty ? .ok : .degraded : .held
        reasons = held + degraded
        self.unready = unready
    }

    /// One line.
    public var line: String {
        reasons.isEmpty ? level.rawValue : "\(level.rawValue): \(reasons.joined(separator: "; "))"
    }
}

import CLinux
import Inventory
import Logging
import Model
import Planner

/// What this node publishes: about itself, and about the policies that it reports.
extension NodeAgent {
    /// `published/NODE.yaml`, and the annotations of the own Node. Until the kernel is as planned for the first time, what an
    /// earlier run has said stays: half of it would be worse than what it was.
    func publishNode() {
        guard hasConverged else { return }
        if lastSeen == 0 { lastSeen = Int64(time(nil)) }
        let node = PublishedNode(
            facts: facts, discovered: discoveredEndpoints, configuration: settings.configuration,
            node: inventory.nodes[settings.nodeName],
            wireGuardAddress: plan.host.links.first { $0.kind == .wireguard }?.address, lastSeen: lastSeen,
            echoInterval: askedEchoInterval,
            mesh: kiloHere != .absent ? .nothing : keyIsHeldBack ? .withoutKey : .all)
        if node == lastPublished { return }
        publication.yield(node.annotations)
        do {
            try store.publish(node)
            lastPublished = node
        } catch { logger.error("\(error)") }
    }

    /// What follows from a new plan.
    func tellOthers() {
        guard isInformed else { return }
        tellOfPolicies()
        tellOfAdoptedPods()
        askForPace()
        let publisher = publisher
        lookAtGateways()
        let events = plan.policies.compactMap(event)
        if !events.isEmpty { Task { for event in events { await publisher.record(event) } } }
    }

    /// Of each pod for which the plugin was not called, once; of others only how many there are.
    private func tellOfAdoptedPods() {
        let entries = plan.attachments.filter { $0.adoption != nil }
        let adoptions = Dictionary(
            entries.map { ($0.attachment.id, $0.adoption?.key ?? "") }, uniquingKeysWith: { first, _ in first })
        if adoptions == toldAdoptions { return }
        let isNews = adoptions.contains { toldAdoptions[$0.key] != $0.value }
        let before = toldAdoptions
        toldAdoptions = adoptions
        guard isNews else { return }
        logger.info(
            "pods without an ADD were adopted",
            metadata: Dictionary(
                plan.adoptions.map { ($0.key, "\($0.value)") }, uniquingKeysWith: { first, _ in first }))
        var events: [ObjectEvent] = []
        for entry in entries where before[entry.attachment.id] != entry.adoption?.key {
            guard let adoption = entry.adoption, case .notCalled = adoption else { continue }
            logger.warning(
                "a pod was adopted that started without Culvert",
                metadata: ["pod": "\(entry.attachment.displayName)", "why": "\(adoption.text)"])
            let attachment = entry.attachment
            events.append(
                ObjectEvent(
                    .pod(namespace: attachment.podNamespace, name: attachment.podName, uid: attachment.podUID),
                    reason: "PluginNotCalled", message: "on \(settings.nodeName): the pod \(adoption.text)"))
        }
        if events.isEmpty { return }
        let publisher = publisher
        Task { for event in events { await publisher.record(event) } }
    }

    /// Asks the senders of echoes for fewer, if there are many senders.
    private func askForPace() {
        let asked = EchoPace.asked(
            plan.liveness.servedIntervals, senders: inventory.nodes.count - 1, before: askedEchoInterval)
        if asked == askedEchoInterval { return }
        logger.notice(
            "the interval of echoes that this node asks for has changed",
            metadata: [
                "from": askedEchoInterval.map { "\($0) ms" } ?? "none", "to": asked.map { "\($0) ms" } ?? "none",
            ])
        askedEchoInterval = asked
        publishNode()
    }

    /// Names the gateways of which more has to be known than of other nodes.
    func lookAtGateways() {
        // Of few candidates all: their priority counts before they are used. Of many the one that is used.
        let names = Set(
            plan.policies.filter { $0.attachments > 0 }.flatMap { policy in
                policy.candidates.count <= 8 ? policy.candidates : [policy.gateway].compactMap { $0 }
            })
        let health = failOver.health
        let active = failOver.previous.decided.values.compactMap(\.candidate)
        let inDoubt = names.intersection(active.filter { health.state(GatewayEnd($0)) == .unknown }.map(\.node))
        if names == gatewaysInUse && inDoubt == gatewaysInDoubt { return }
        (gatewaysInUse, gatewaysInDoubt) = (names, inDoubt)
        let source = source
        Task { await source.look(atGateways: names, inDoubt: inDoubt) }
    }

    /// Events that a cluster sends about one lost gateway, about: each of thousands of nodes may have lost it.
    private static let eventsOfOneLoss = 20

    /// An Event for each policy whose gateway has changed. Without times in it, so that one that comes again and again is one.
    func tell(_ moves: [NodeSnapshot.Move]) {
        guard Int.random(in: 0..<max(1, inventory.nodes.count)) < NodeAgent.eventsOfOneLoss else { return }
        let publisher = publisher
        let node = settings.nodeName
        let events = moves.compactMap { move -> ObjectEvent? in
            guard let policy = plan.policies.first(where: { $0.name == move.policy }) else { return nil }
            let why = move.silentMilliseconds == nil ? move.why : "no echo comes back from \(move.from ?? "it")"
            return ObjectEvent(
                .policy(name: policy.name, source: policy.source), reason: "GatewayChanged",
                message: "on \(node): from \(move.from ?? "none") to \(move.to ?? "none"), because \(why)")
        }
        Task { for event in events { await publisher.record(event) } }
    }

    private func event(of policy: PolicyPlan) -> ObjectEvent? {
        guard policy.problem != "" else { return nil }
        // If no pod here uses the policy, about ten nodes report it, because thousands of nodes could. It is not known
        // which of them run a helper, so one reporter would not be enough.
        let isForMeToTell = policy.attachments > 0 || (policy.allCandidates.isEmpty && turn(policy.name) < 10)
        if policy.gateway == nil, policy.refusal == nil, isForMeToTell {
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

    /// The gateways' health has changed, or where slots point.
    func tellOfPolicies() {
        let reports = policyReports
        if reports == lastReports { return }
        lastReports = reports
        report.yield(reports)
    }

    /// What this node knows of each EgressPolicy: of those that pods here use which gateways these have; of others whether this
    /// node is the gateway, or that there is none.
    private var policyReports: [PolicyReport] {
        let ours = plan.policies.filter {
            $0.source == .culvert && ($0.attachments > 0 || $0.isLocalGateway || $0.gateway == nil)
        }
        // Looking at every node is only worth it where it decides.
        let place =
            ours.contains { $0.gateway == nil } ? inventory.nodes.keys.count { $0 < settings.nodeName } : 0
        let health = failOver.health
        let choices = failOver.previous.decided
        let prefix = EgressPolicy.Source.culvert.rawValue + "/"
        let slots = Dictionary(
            grouping: plan.liveness.slots.filter {
                $0.isInUse && $0.place.hasPrefix(prefix) && !$0.candidates.isEmpty
            }, by: \.policy)
        return ours.map { policy in
            let generation = policy.generation
            if policy.refusal != nil {
                return PolicyReport(
                    name: policy.name, activeGateways: [], reason: policy.problem, rank: place, isRefused: true,
                    generation: generation)
            }
            if policy.attachments > 0, let slots = slots[policy.name] {
                let active = Set(slots.compactMap { (choices[$0.key] ?? $0.planned).candidate?.node })
                let candidates = slots.flatMap(\.candidates)
                func nodes(_ state: GatewayHealth.State) -> Set<String> {
                    Set(candidates.filter { health.state($0.end) == state }.map(\.candidate.node))
                }
                let up = nodes(.up)
                return PolicyReport(
                    name: policy.name, activeGateways: active.sorted(),
                    reason: active.isEmpty
                        ? "all its gateways are down: \(policy.allCandidates.joined(separator: ", "))" : "",
                    standing: .user, rank: turn(policy.name), candidates: policy.allCandidates, up: up.sorted(),
                    down: nodes(.down).subtracting(up).sorted(), generation: generation)
            }
            let own = policy.candidates.firstIndex(of: settings.nodeName) ?? 0
            return PolicyReport(
                name: policy.name, activeGateways: [policy.gateway].compactMap { $0 },
                reason: policy.gateway == nil ? policy.problem : "", rank: policy.gateway == nil ? place : own,
                candidates: policy.allCandidates, generation: generation)
        }
    }

    /// This node's place among those that may have pods of a policy: by a hash (FNV-1a), so that wherever these are by name,
    /// one of them is early.
    private func turn(_ policy: String) -> Int {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in "\(settings.nodeName) \(policy)".utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        return Int((hash >> 16) % UInt64(max(1, inventory.nodes.count)))
    }
}

import CLinux
import CNI
import HelperProtocol
import Inventory
import Logging
import Model
import Netlink
import Planner
import Reconcile

/// ADD: from a request to routing that is in place.
///
/// ADDs that come while another one is served are served together: one plan, and one change of the kernel, for all of them.
/// Each has an outcome of its own.
extension NodeAgent {
    /// An ADD that waits for its turn.
    struct WaitingADD {
        let request: HelperRequest
        let pod: PodNetwork
        let addresses: [IPAddress]
        /// By which it is undone, should nobody take the answer.
        let call: UInt64
        /// The inventory had the pod when it was identified.
        let isInInventory: Bool
        /// Whether the plugin still waits for the answer.
        let isAwaited: @Sendable () -> Bool
        let answer: @Sendable (HelperResponse) -> Void
        /// Attachments that have one of its addresses, and whose connections by it were forgotten for this ADD.
        var forgotten: Set<String> = []

        /// The attachment's.
        var id: String { request.attachmentID }
    }

    /// What only one of the ADDs that are served together may touch, so that each can be undone by itself.
    private enum Claim: Hashable {
        case attachment(String)
        case address(IPAddress)

        static func of(_ attachment: Attachment) -> [Claim] {
            [.attachment(attachment.id)] + attachment.addresses.map { .address($0.address) }
        }
    }

    /// An ADD that is being served.
    private struct ServedADD {
        let add: WaitingADD
        let interface: KernelLink
        var attachment: Attachment
        /// What the container had before.
        let before: Attachment?
        /// Others that had one of its addresses.
        let displaced: [Attachment]
        var id: String { attachment.id }
    }

    /// Programs the pod's routing, and answers only when all of it is in place and on disk.
    func add(_ add: WaitingADD) {
        waitingADDs.append(add)
        if waitingADDs.count == 1 { Task { serveWaitingADDs() } }
    }

    private func refuse(_ add: WaitingADD, _ error: CNIError) {
        note(error, add.request)
        add.answer(.failed(error))
    }

    private func serveWaitingADDs() {
        let waiting = waitingADDs
        waitingADDs = []
        var adds: [ServedADD] = []
        var claimed: Set<Claim> = []
        // A DEL that is not served yet is of an earlier attachment of the container, and must not end the new one.
        for add in waiting { drainDeletions(of: add.id) }
        for add in waiting {
            let displaced = attachments.values.filter { old in
                old.id != add.id && old.addresses.contains { add.addresses.contains($0.address) }
            }
            let before = attachments[add.id].map { [$0] } ?? []
            let claims = Set(
                [.attachment(add.id)] + add.addresses.map { .address($0) } + (displaced + before).flatMap(Claim.of))
            // Of two for one container, or with one address, the second finds what the first has left.
            guard claimed.isDisjoint(with: claims) else {
                claimed.formUnion(claims)
                waitingADDs.append(add)
                continue
            }
            // An address that had another pod before starts without that pod's connections.
            let unforgotten = connectionsToForget(add, displaced)
            guard unforgotten.isEmpty || !add.isAwaited() else {
                Task {
                    await forgetNow(unforgotten)
                    var add = add
                    add.forgotten.formUnion(displaced.map(\.id))
                    self.add(add)
                }
                continue
            }
            claimed.formUnion(claims)
            do throws(CNIError) { adds.append(try begin(add, displaced: displaced)) } catch { refuse(add, error) }
        }
        if !waitingADDs.isEmpty { Task { serveWaitingADDs() } }
        if !adds.isEmpty { serve(adds) }
    }

    private func serve(_ all: [ServedADD]) {
        replan()
        let refusals = Dictionary(
            plan.attachments.filter { !$0.refusal.isEmpty }.map { ($0.attachment.id, $0.refusal) },
            uniquingKeysWith: { first, _ in first })
        var adds: [ServedADD] = []
        var failed: [(add: ServedADD, error: CNIError)] = []
        // Nobody is told of a failure before the kernel is as if there had been no such ADD.
        defer {
            for (add, error) in failed { refuse(add.add, error) }
        }
        for add in all {
            if let refusal = refusals[add.id] {
                undo(add)
                failed.append((add, CNIError(.policyRefused, refusal)))
            } else {
                adds.append(add)
            }
        }
        guard !adds.isEmpty else { return converge("an ADD was undone") }
        let outcome: ApplyOutcome
        do {
            let reason = "ADD of \(adds.map(\.id).joined(separator: ", "))"
            guard let done = try tryToConverge(reason, isPlanned: adds.count == all.count) else {
                throw NetlinkError(operation: "planning", code: EAGAIN, kernelMessage: "the inventory is not known")
            }
            outcome = done
        } catch {
            for add in adds { failed.append((add, fail(add, error))) }
            return converge("an ADD was undone")
        }
        let refused = failed.count
        for add in adds {
            do {
                let routes = try finish(add, outcome)
                add.add.answer(.done(routes: routes))
            } catch {
                failed.append((add, fail(add, error)))
            }
        }
        if failed.count > refused { converge("an ADD was undone") }
    }

    /// Makes the attachment one of this node's, so that the next plan has it.
    ///
    /// - Parameter displaced: other attachments that have one of its addresses, and end.
    private func begin(_ add: WaitingADD, displaced: [Attachment]) throws(CNIError) -> ServedADD {
        let request = add.request
        // It would take the address from a pod for nobody.
        guard add.isAwaited() else {
            throw CNIError(.tryAgainLater, "the plugin closed the connection before its ADD was served")
        }
        let addresses = add.addresses.map { IPNetwork(host: $0) }
        let interface: KernelLink
        do {
            guard let found = try add.pod.interface(request.interfaceName) else {
                throw NetlinkError(operation: "ip link show dev \(request.interfaceName)", code: ENODEV)
            }
            interface = found
        } catch {
            throw CNIError(
                .datapathFailure, "the pod has no interface \(request.interfaceName)", details: "\(error)")
        }
        // Should the pod vanish from the inventory before its DEL, it keeps what it had.
        let known = inventory.pods.first { request.isOf($0) }
        // Without its labels no policy would select it.
        guard known != nil || !add.isInInventory else { throw NodeAgent.deletedMeanwhile(request) }
        var attachment = Attachment(
            containerID: request.containerID, interfaceName: request.interfaceName, network: request.network,
            podNamespace: request.podNamespace, podName: request.podName, podUID: request.podUID,
            addresses: addresses,
            labels: known?.labels ?? Dictionary(request.labels, uniquingKeysWith: { _, last in last }),
            annotations: Dictionary(request.annotations, uniquingKeysWith: { _, last in last }),
            defaultPolicy: request.defaultPolicy)
        attachment.serviceAccount = known?.serviceAccount ?? ""
        if let known { attachment.takeAnnotation(of: known) }
        attachment.formerOwners = Planner.formerOwners(of: addresses, inventory: inventory) { request.isOf($0) }
        if interface.kind == "veth" || interface.kind == "netkit", interface.isInOtherNamespace {
            attachment.hostIndex = interface.peerIndex
            attachment.hostName = hostName(of: interface.peerIndex)
            if attachment.hostName.isEmpty { attachment.hostIndex = 0 }
        }

        let before = attachments[attachment.id]
        for old in displaced {
            logger.notice(
                "another attachment has its address now: the attachment has ended",
                metadata: ["attachment": "\(old.id)", "by": "\(attachment.id)"])
            attachments[old.id] = nil
            if old.podUID != attachment.podUID { forgetPod(of: old) }
        }
        if known == nil, request.labels.isEmpty, let before, before.podUID == attachment.podUID {
            (attachment.labels, attachment.serviceAccount) = (before.labels, before.serviceAccount)
        }
        // A repeated ADD of a live pod keeps what the pod has, should a policy be refused by now.
        attachment.assignment = before?.assignment
        attachment.grantedAnnotation = before.map(\.grantedAnnotation) ?? ""
        attachments[attachment.id] = attachment
        // A new sandbox of the same pod. The API may still show an address of the one before it.
        if endedPods.takeBack(attachment) { saveEndedPods() }
        return ServedADD(add: add, interface: interface, attachment: attachment, before: before, displaced: displaced)
    }

    /// Routing is in place, as far as the kernel let us: puts the routes into the pod, and the attachment on disk.
    private func finish(_ add: ServedADD, _ outcome: ApplyOutcome) throws -> [CNIResult.AddedRoute] {
        var attachment = add.attachment
        guard
            let entry = plan.attachments.first(where: {
                $0.attachment.id == attachment.id && $0.attachment.addresses == attachment.addresses
            }), entry.refusal.isEmpty
        else {
            throw NetlinkError(
                operation: "planning", code: EAGAIN, kernelMessage: "the attachment is not in the plan")
        }
        if !entry.policies.isEmpty,
            let problem = outcome.problem(
                of: attachment.addresses.map(\.address), table: entry.table, in: plan.host)
        {
            throw NetlinkError(operation: "routing of \(attachment.displayName)", code: EIO, kernelMessage: problem)
        }
        attachment.assignment = entry.assigned
        attachment.grantedAnnotation = entry.grantedAnnotation
        let routes = try add.add.pod.setRoutes(
            entry.podRoutes.map { ($0.destination, $0.mtu) }, interface: add.interface.index)
        attachment.podRoutes = Dictionary(
            routes.map { ($0.destination, $0.mtu) }, uniquingKeysWith: { _, last in last })
        attachments[attachment.id] = attachment
        try store.save(attachment)
        for old in add.displaced where attachments[old.id] == nil { store.remove(old.id) }
        let former = (add.displaced + (add.before.map { [$0] } ?? [])).flatMap { $0.addresses.map(\.address) }
        forgetConnections(of: Set(former).subtracting(attachment.addresses.map(\.address)))
        servedADDs.note(attachment.id, call: add.add.call, before: add.before, displaced: add.displaced)
        warnOfNobody(attachment, entry)
        learnDefaultPolicy(add.add.request.defaultPolicy)
        return routes.map {
            CNIResult.AddedRoute(
                destination: $0.destination.description, gateway: $0.gateway?.description ?? "", mtu: Int64($0.mtu))
        }
    }

    /// Takes back all that was done for this ADD but what the kernel has of it.
    ///
    /// - Returns: what its caller is told.
    private func fail(_ add: ServedADD, _ error: any Error) -> CNIError {
        undo(add)
        // A live pod whose ADD came once more keeps its routes.
        if add.before == nil { _ = try? add.add.pod.setRoutes([], interface: add.interface.index) }
        return CNIError(.datapathFailure, "the pod's routing cannot be programmed", details: "\(error)")
    }

    /// Takes back what `begin` has done. The kernel follows with the next plan.
    private func undo(_ add: ServedADD) {
        putBack(add.before, of: add.id)
        giveBack(to: add.displaced)
    }

    /// The container has again what it had before an ADD.
    private func putBack(_ before: Attachment?, of id: String) {
        attachments[id] = before
        if let before { keep("attachment \(id)") { try store.save(before) } }
    }

    /// Attachments that an ADD has ended, because it came with an address of theirs, have it again: whoever sends with that
    /// address is routed. Not where somebody else has it by now, or the pod's link is gone.
    private func giveBack(to displaced: [Attachment]) {
        if displaced.isEmpty { return }
        for old in displaced where attachments[old.id] == nil {
            let isTaken = attachments.values.contains { $0.addresses.contains(where: old.addresses.contains) }
            if isTaken || isGone(old) {
                store.remove(old.id)
                servedADDs.forget(old.id)
                forgetConnections(of: Set(old.addresses.map(\.address)))
                continue
            }
            attachments[old.id] = old
            keep("attachment \(old.id)") { try store.save(old) }
            endedPods.takeBack(old)
            keepConnections(of: old)
        }
        saveEndedPods()
    }

    /// - Throws: where `prevResult` has something else.
    static func addresses(of request: HelperRequest) throws(CNIError) -> [IPAddress] {
        var addresses: [IPAddress] = []
        for text in request.addresses {
            guard let address = IPNetwork(text).flatMap({ _ in IPAddress(String(text.split(separator: "/")[0])) })
            else {
                throw CNIError(
                    .invalidConfiguration,
                    "prevResult has \"\(text)\" where an IP address belongs; correct the plugin before culvert")
            }
            addresses.append(address)
        }
        return addresses
    }

    /// A pod is not judged by an inventory that is not known completely.
    func waitForInventory(_ request: HelperRequest) async throws(CNIError) {
        // Leave the plugin time to take the answer.
        let end = ContinuousClock.now + .milliseconds(max(100, request.timeoutMilliseconds - 500))
        while !isInformed || !unknown.isEmpty {
            guard ContinuousClock.now < end else {
                throw CNIError(
                    .tryAgainLater,
                    "the policies of this container cannot be determined: the inventory is not known completely",
                    details: unknown.joined(separator: "; "))
            }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    private static func deletedMeanwhile(_ request: HelperRequest) -> CNIError {
        CNIError(.tryAgainLater, "the pod \(request.podNamespace)/\(request.podName) was deleted meanwhile")
    }

    /// Waits until the inventory knows the pod, and takes what it then says.
    ///
    /// - Returns: whether the inventory has it; false where the source does not need to.
    func identify(_ request: HelperRequest) async throws(CNIError) -> Bool {
        let pod = PodReference(
            namespace: request.podNamespace, name: request.podName, uid: request.podUID,
            isDecided: request.annotations.last { $0.0 == Planner.policyAnnotation }.map {
                Planner.isDecided(
                    annotation: $0.1, namespace: request.podNamespace, configuration: settings.configuration,
                    inventory: inventory)
            } ?? false,
            deadline: .now + .milliseconds(request.timeoutMilliseconds))
        let lookup: PodLookup
        do { lookup = try await source.identify(pod) } catch {
            throw CNIError(.tryAgainLater, error.message)
        }
        guard lookup.origin == .get || lookup.origin == .watch else { return false }
        take(await source.inventory(), reason: "a pod was looked up")
        guard inventory.pods.contains(where: { request.isOf($0) }) else {
            throw NodeAgent.deletedMeanwhile(request)
        }
        return true
    }

    /// Undoes an ADD whose answer nobody received, before the container's DEL that may wait already.
    ///
    /// - Parameter done: called on this actor's thread.
    nonisolated func abort(_ request: HelperRequest, call: UInt64, done: @escaping @Sendable () -> Void) {
        thread.enqueue {
            self.assumeIsolated { $0.abort(request, call: call) }
            done()
        }
    }

    /// Undoes an ADD whose answer nobody received, and no other ADD of the same container.
    func abort(_ request: HelperRequest, call: UInt64) {
        let id = request.attachmentID
        logger.notice(
            "the plugin closed the connection before the answer: the ADD was undone", metadata: ["container": "\(id)"])
        guard case .restore(let before, let displaced) = servedADDs.undo(id, call: call), attachments[id] != nil else {
            return
        }
        // With whenHelperUnavailable "allow" the pod goes on without this ADD, and is adopted. A live pod whose ADD came once
        // more goes on with what it had.
        if before == nil { end(id, podIsOver: false) } else { putBack(before, of: id) }
        giveBack(to: displaced)
        converge("an ADD was undone")
    }

    /// No policy can select a container without identity and labels. Its owner may not know that.
    private func warnOfNobody(_ attachment: Attachment, _ entry: AttachmentPlan) {
        guard attachment.isUnknown, entry.policies.isEmpty, !plan.policies.isEmpty else { return }
        logger.warning(
            "the container came without a Kubernetes identity and without labels, so no policy can select it",
            metadata: ["container": "\(attachment.containerID)", "remedy": "\(Planner.labelsRemedy)"])
    }

    /// The kernel says that the attachment's link is not there any more. While it does not answer, nobody knows that.
    private func isGone(_ attachment: Attachment) -> Bool {
        guard attachment.hostIndex != 0 else { return false }
        do {
            return try reconciler.socket.link(index: attachment.hostIndex)?.name != attachment.hostName
        } catch { return false }
    }

    private func hostName(of index: Int32) -> String {
        (try? reconciler.socket.link(index: index))??.name ?? ""
    }
}

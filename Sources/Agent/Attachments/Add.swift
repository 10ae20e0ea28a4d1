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
extension NodeAgent {
    /// Programs the pod's routing, and answers only when all of it is in place and on disk.
    ///
    /// - Parameter call: by which it is undone, should nobody take the answer.
    func add(
        _ request: HelperRequest, _ pod: PodNetwork, call: UInt64
    ) throws(CNIError) -> [CNIResult.AddedRoute] {
        var addresses: [IPNetwork] = []
        for text in request.addresses {
            guard let address = IPNetwork(text).flatMap({ _ in IPAddress(String(text.split(separator: "/")[0])) })
            else {
                throw CNIError(
                    .invalidConfiguration,
                    "prevResult has \"\(text)\" where an IP address belongs; correct the plugin before culvert")
            }
            addresses.append(IPNetwork(host: address))
        }
        let interface: KernelLink
        do {
            guard let found = try pod.interface(request.interfaceName) else {
                throw NetlinkError(operation: "ip link show dev \(request.interfaceName)", code: ENODEV)
            }
            interface = found
        } catch {
            throw CNIError(
                .datapathFailure, "the pod has no interface \(request.interfaceName)", details: "\(error)")
        }
        // Should the pod vanish from the inventory before its DEL, it keeps what it had.
        let known = inventory.pods.first { request.isOf($0) }
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

        // A DEL that is not served yet is of an earlier attachment of this container, and must not end this one.
        drainDeletions(of: attachment.id)
        let before = attachments
        for old in attachments.values
        where old.id != attachment.id && old.addresses.contains(where: addresses.contains) {
            logger.notice(
                "another attachment has its address now: the attachment has ended",
                metadata: ["attachment": "\(old.id)", "by": "\(attachment.id)"])
            attachments[old.id] = nil
            if old.podUID != attachment.podUID { forgetPod(of: old) }
        }
        if known == nil, request.labels.isEmpty, let old = before[attachment.id], old.podUID == attachment.podUID {
            (attachment.labels, attachment.serviceAccount) = (old.labels, old.serviceAccount)
        }
        // A repeated ADD of a live pod keeps what the pod has, should a policy be refused by now.
        attachment.assignment = before[attachment.id]?.assignment
        attachment.grantedAnnotation = before[attachment.id].map(\.grantedAnnotation) ?? ""
        attachments[attachment.id] = attachment
        // A new sandbox of the same pod. The API may still show an address of the one before it.
        endedPods.takeBack(attachment.podUID, addresses.map(\.address))
        func undo() {
            for old in before.values where attachments[old.id] == nil {
                endedPods.takeBack(old.podUID, old.addresses.map(\.address))
            }
            attachments = before
            converge("an ADD was undone")
        }
        if let refusal = refusal(of: attachment) {
            undo()
            throw CNIError(.policyRefused, refusal)
        }
        do {
            guard let outcome = try tryToConverge("ADD of \(attachment.id)", isPlanned: true),
                let entry = plan.attachments.first(where: { $0.attachment.id == attachment.id })
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
            let routes = try pod.setRoutes(
                entry.podRoutes.map { ($0.destination, $0.mtu) }, interface: interface.index)
            for route in routes { attachment.podRoutes[route.destination] = route.mtu }
            attachments[attachment.id] = attachment
            try store.save(attachment)
            for id in before.keys where attachments[id] == nil { store.remove(id) }
            servedADDs.note(attachment.id, call: call, before: before[attachment.id])
            warnOfNobody(attachment, entry)
            learnDefaultPolicy(request.defaultPolicy)
            return routes.map {
                CNIResult.AddedRoute(
                    destination: $0.destination.description, gateway: $0.gateway?.description ?? "", mtu: Int64($0.mtu))
            }
        } catch {
            undo()
            // A live pod whose ADD came once more keeps its routes.
            if before[attachment.id] == nil { _ = try? pod.setRoutes([], interface: interface.index) }
            throw CNIError(.datapathFailure, "the pod's routing cannot be programmed", details: "\(error)")
        }
    }

    /// Why this attachment must not start; nil where it may.
    private func refusal(of attachment: Attachment) -> String? {
        replan()
        let entry = plan.attachments.first { $0.attachment.id == attachment.id }
        return entry.flatMap { $0.refusal.isEmpty ? nil : $0.refusal }
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

    /// Waits until the inventory knows the pod, and takes what it then says.
    func identify(_ request: HelperRequest) async throws(CNIError) {
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
        guard lookup.origin == .get || lookup.origin == .watch else { return }
        take(await source.inventory(), reason: "a pod was looked up")
        guard inventory.pods.contains(where: { request.isOf($0) }) else {
            throw CNIError(.tryAgainLater, "the pod \(request.podNamespace)/\(request.podName) was deleted meanwhile")
        }
    }

    /// Undoes an ADD whose answer nobody received, and no other ADD of the same container.
    public func abort(_ request: HelperRequest, call: UInt64) {
        let id = "\(request.containerID)_\(request.interfaceName)"
        logger.notice(
            "the plugin closed the connection before the answer: the ADD was undone", metadata: ["container": "\(id)"])
        switch servedADDs.undo(id, call: call) {
        case .nothing: return
        case .end:
            guard let attachment = attachments[id] else { return }
            // With whenHelperUnavailable "allow" the pod goes on without this ADD, and is adopted.
            end(id, podIsOver: false)
            convergeAfterEnd([attachment])
        case .restore(let before):
            // A live pod whose ADD came once more goes on with what it had.
            attachments[id] = before
            do { try store.save(before) } catch { logger.error("\(error)") }
            converge("an ADD was undone")
        }
    }

    /// No policy can select a container without identity and labels. Its owner may not know that.
    private func warnOfNobody(_ attachment: Attachment, _ entry: AttachmentPlan) {
        guard attachment.isUnknown, entry.policies.isEmpty, !plan.policies.isEmpty else { return }
        logger.warning(
            "the container came without a Kubernetes identity and without labels, so no policy can select it",
            metadata: ["container": "\(attachment.containerID)", "remedy": "\(Planner.labelsRemedy)"])
    }

    private func hostName(of index: Int32) -> String {
        (try? reconciler.socket.link(index: index))??.name ?? ""
    }
}

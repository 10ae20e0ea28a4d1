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
    func add(_ request: HelperRequest, _ pod: PodNetwork) throws(CNIError) -> [CNIResult.AddedRoute] {
        var addresses: [IPNetwork] = []
        for text in request.addresses {
            guard let address = IPNetwork(text).flatMap({ _ in IPAddress(String(text.split(separator: "/")[0])) })
            else {
                throw CNIError(.invalidConfiguration, "prevResult has the address \"\(text)\", which is none")
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
            labels: known?.labelsForLater ?? Dictionary(request.labels, uniquingKeysWith: { _, last in last }),
            annotations: Dictionary(request.annotations, uniquingKeysWith: { _, last in last }),
            defaultPolicy: request.defaultPolicy)
        if interface.kind == "veth" || interface.kind == "netkit", interface.isInOtherNamespace {
            attachment.hostIndex = interface.peerIndex
            attachment.hostName = hostName(of: interface.peerIndex)
            if attachment.hostName.isEmpty { attachment.hostIndex = 0 }
        }

        let before = attachments
        for old in attachments.values
        where old.id != attachment.id && old.addresses.contains(where: addresses.contains) {
            logger.notice(
                "its address has a new owner: attachment ended",
                metadata: ["attachment": "\(old.id)", "by": "\(attachment.id)"])
            attachments[old.id] = nil
        }
        // A repeated ADD of a live pod keeps what the pod has, should a policy be refused by now.
        attachment.assignment = before[attachment.id]?.assignment
        attachments[attachment.id] = attachment
        endedPods[attachment.podUID] = nil
        func undo() {
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
            let routes = try pod.setRoutes(
                entry.podRoutes.map { ($0.destination, $0.mtu) }, interface: interface.index)
            for route in routes { attachment.podRoutes[route.destination] = route.mtu }
            attachments[attachment.id] = attachment
            try store.save(attachment)
            for id in before.keys where attachments[id] == nil { store.remove(id) }
            replaced[attachment.id] = before[attachment.id]
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
                    .tryAgainLater, "no policy decision for this container: the inventory is not known completely",
                    details: unknown.joined(separator: "; "))
            }
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    /// Waits until the inventory knows the pod, and takes what it then says.
    func identify(_ request: HelperRequest) async throws(CNIError) {
        let pod = PodReference(
            namespace: request.podNamespace, name: request.podName, uid: request.podUID,
            isDecided: request.annotations.contains { $0.0 == Planner.policyAnnotation },
            deadline: .now + .milliseconds(request.timeoutMilliseconds))
        let lookup: PodLookup
        do { lookup = try await source.identify(pod) } catch {
            throw CNIError(.tryAgainLater, error.message)
        }
        guard lookup.origin == .get || lookup.origin == .watch else { return }
        take(await source.inventory(), reason: "a pod was looked up")
        guard inventory.pods.contains(where: { request.isOf($0) }) else {
            throw CNIError(.tryAgainLater, "the pod \(request.podNamespace)/\(request.podName) is gone again")
        }
    }

    /// Undoes an ADD whose answer nobody took.
    public func abort(_ request: HelperRequest) {
        logger.notice(
            "the plugin hung up before the answer: ADD undone", metadata: ["container": "\(request.containerID)"])
        let id = "\(request.containerID)_\(request.interfaceName)"
        guard let before = replaced[id] else { return delete(request) }
        // A live pod whose ADD came once more goes on with what it had.
        replaced[id] = nil
        attachments[id] = before
        do { try store.save(before) } catch { logger.error("\(error)") }
        converge("an ADD was undone")
    }

    private func hostName(of index: Int32) -> String {
        (try? reconciler.socket.link(index: index))??.name ?? ""
    }
}

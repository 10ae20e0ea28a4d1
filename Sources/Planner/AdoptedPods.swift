import Model

extension Planner {
    /// Pods of this node that never had an ADD: started before Culvert, while it was not in the chain, or without its helper.
    /// Offline, all pods of the node.
    ///
    /// - Parameters:
    ///   - ended: pods whose attachment has ended and whose object is still there, by UID, with the addresses they had.
    ///   - defaultPolicy: of those that no policy selects.
    public static func adoptedAttachments(
        inventory: Inventory, nodeName: String, attached: [Attachment], ended: [String: Set<IPAddress>] = [:],
        defaultPolicy: String = ""
    ) -> [Attachment] {
        let addresses = Set(attached.flatMap { $0.addresses.map(\.address) })
        let uids = Dictionary(grouping: attached) { "\($0.podNamespace)/\($0.podName)" }.mapValues { $0.map(\.podUID) }
        var adopted: [Attachment] = []
        for pod in inventory.pods where pod.mayHaveAddress(on: nodeName, ended: ended) {
            // Another pod of the same name (of a StatefulSet, for example) is a different pod.
            let isAttached = uids[pod.fullName]?.contains { pod.isMeant(byUID: $0) } ?? false
            if isAttached || pod.addresses.contains(where: addresses.contains) { continue }
            var attachment = Attachment(
                containerID: pod.uid.isEmpty ? "\(pod.namespace).\(pod.name)" : pod.uid, interfaceName: "eth0",
                podNamespace: pod.namespace, podName: pod.name, podUID: pod.uid,
                addresses: pod.addresses.map { IPNetwork(host: $0) }, defaultPolicy: defaultPolicy)
            attachment.adopted = true
            attachment.podStart = pod.startTime
            adopted.append(attachment)
        }
        return adopted
    }

    /// Attachments whose address the inventory gives to another pod by now, which got it without an ADD: by ID, with the new
    /// owner. The end of such an attachment was not seen, and its policies are not the new owner's.
    ///
    /// The inventory may be behind: of who had the address before the attachment's ADD, it may say so still, and an
    /// attachment whose own pod it knows without an address is the newer one. Then the attachment's word counts.
    public static func outlivedAttachments(
        _ attachments: [Attachment], inventory: Inventory, nodeName: String, ended: [String: Set<IPAddress>] = [:]
    ) -> [String: Pod] {
        var owners: [IPAddress: [Attachment]] = [:]
        for attachment in attachments {
            for address in attachment.addresses { owners[address.address, default: []].append(attachment) }
        }
        if owners.isEmpty { return [:] }
        var outlived: [String: Pod] = [:]
        for pod in inventory.pods where pod.mayHaveAddress(on: nodeName, ended: ended) {
            for address in pod.addresses {
                for attachment in owners[address] ?? [] where !attachment.isOf(pod) {
                    guard let former = attachment.formerOwners, !former.contains(pod.key) else { continue }
                    let own = inventory.pods.first { attachment.isOf($0) && !$0.isFinished }
                    if let own, own.addresses.isEmpty || own.addresses.contains(address) { continue }
                    outlived[attachment.id] = pod
                }
            }
        }
        return outlived
    }

    /// Who has one of these addresses by the inventory's word, besides the pod itself: at its ADD, those who had it before.
    ///
    /// - Parameter isOwn: whether it is the pod itself.
    public static func formerOwners(
        of addresses: [IPNetwork], inventory: Inventory, isOwn: (Pod) -> Bool
    ) -> Set<String> {
        let addresses = Set(addresses.map(\.address))
        return Set(
            inventory.pods.filter { $0.addresses.contains(where: addresses.contains) && !isOwn($0) }.map(\.key))
    }
}

extension Attachment {
    /// The pod is this attachment's.
    func isOf(_ pod: Pod) -> Bool {
        !podName.isEmpty && pod.namespace == podNamespace && pod.name == podName && pod.isMeant(byUID: podUID)
    }
}

extension Pod {
    var fullName: String { "\(namespace)/\(name)" }
    /// Its UID; where a hand-written inventory has none, its name.
    var key: String { uid.isEmpty ? fullName : uid }

    /// It has an address of its own on this node, and its attachment has not ended there.
    fileprivate func mayHaveAddress(on node: String, ended: [String: Set<IPAddress>]) -> Bool {
        guard nodeName == node, !hostNetwork, !isFinished, !addresses.isEmpty else { return false }
        return !ended.contains { hasUID($0.key) && !$0.value.isDisjoint(with: addresses) }
    }
}

import Model

extension Planner {
    /// Pods of this node that never had an ADD: started before Culvert, or while it was not in the chain. Offline, all
    /// pods of the node.
    ///
    /// - Parameter ended: pods whose attachment has ended and whose object is still there, by UID, with the addresses they had.
    public static func adoptedAttachments(
        inventory: Inventory, nodeName: String, attached: [Attachment], ended: [String: Set<IPAddress>] = [:]
    ) -> [Attachment] {
        let addresses = Set(attached.flatMap { $0.addresses.map(\.address) })
        let names = Set(attached.map { "\($0.podNamespace)/\($0.podName)" })
        var adopted: [Attachment] = []
        for pod in inventory.pods {
            guard pod.nodeName == nodeName, !pod.hostNetwork,
                !pod.isFinished, !pod.addresses.isEmpty,
                !pod.addresses.contains(where: addresses.contains), !names.contains("\(pod.namespace)/\(pod.name)")
            else { continue }
            if ended.contains(where: { pod.hasUID($0.key) && !$0.value.isDisjoint(with: pod.addresses) }) { continue }
            var attachment = Attachment(
                containerID: pod.uid.isEmpty ? "\(pod.namespace).\(pod.name)" : pod.uid, interfaceName: "eth0",
                podNamespace: pod.namespace, podName: pod.name, podUID: pod.uid,
                addresses: pod.addresses.map { IPNetwork(host: $0) })
            attachment.adopted = true
            adopted.append(attachment)
        }
        return adopted
    }
}

import Model

extension Planner {
    /// Pods that are bound to this node and have no address yet: their ADD is probably about to come. The next hops, tables and
    /// firewall sets of their policies are made before it, so that the ADD of the first pod of a policy has hardly more to do
    /// than that of any other. Nothing leads into these tables before an ADD, and nothing else changes: no echoes, no word in
    /// status. (Where a policy spreads pods, the ADD may come to another slot, if the runtime gives no UID.)
    ///
    /// - Parameters:
    ///   - attached: all attachments.
    ///   - ended: pods whose attachment has ended and whose object is still there, by UID.
    ///   - defaultPolicy: the plugin's, of those that no policy selects.
    /// - Returns: one for each pod, without addresses.
    public static func expectedAttachments(
        inventory: Inventory, nodeName: String, attached: [Attachment], ended: [String: Set<IPAddress>] = [:],
        defaultPolicy: String = ""
    ) -> [Attachment] {
        let pods = inventory.pods.filter {
            $0.nodeName == nodeName && !$0.hostNetwork && !$0.isFinished && $0.addresses.isEmpty
        }
        if pods.isEmpty { return [] }
        let names = Dictionary(grouping: attached, by: \.podName)
        return pods.compactMap { pod in
            if names[pod.name]?.contains(where: { $0.isOf(pod) }) == true { return nil }
            // As long as it is pending, another sandbox of it will come.
            if ended[pod.uid] != nil || ended[pod.runtimeUID] != nil, pod.phase != "Pending" { return nil }
            return Attachment(
                containerID: pod.key, interfaceName: "eth0", podNamespace: pod.namespace, podName: pod.name,
                podUID: pod.runtimeUID, addresses: [], defaultPolicy: defaultPolicy)
        }
    }
}

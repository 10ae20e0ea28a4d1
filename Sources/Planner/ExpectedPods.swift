import Model

extension Planner {
    /// Pods that are bound to this node and have no address yet: their ADD is about to come. The tunnels, next hops and
    /// tables of their policies are made before it, and gateways are watched from now on, so that the ADD of the first pod of
    /// a policy has no more to do than that of any other. Nothing leads into these tables before the ADD.
    ///
    /// - Parameters:
    ///   - attached: all attachments.
    ///   - ended: pods whose attachment has ended and whose object is still there, by UID.
    ///   - defaultPolicy: of those that no policy selects.
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
            if names[pod.name]?.contains(where: { $0.isOf(pod) }) == true || ended.keys.contains(where: pod.hasUID) {
                return nil
            }
            return Attachment(
                containerID: pod.key, interfaceName: "eth0", podNamespace: pod.namespace, podName: pod.name,
                podUID: pod.uid, addresses: [], defaultPolicy: defaultPolicy)
        }
    }
}

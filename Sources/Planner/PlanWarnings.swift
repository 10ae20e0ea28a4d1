import Model

/// What would break the routing of pods, or is not as it should be, for people.
enum PlanWarnings {
    static func ofNode(
        facts: LocalFacts, inventory: Inventory, node: Node?, honorsCiliumPolicies: Bool
    ) -> [String] {
        var warnings: [String] = []
        if node == nil { warnings.append("node \(facts.nodeName) is not in the inventory") }
        if facts.overlayAddress == nil && node?.overlayV4 == nil {
            warnings.append("no overlay address: there is no cilium_host with an address, and the inventory names none")
        }
        if let seen = facts.overlayAddress, let told = node?.overlayV4, seen != told {
            warnings.append("cilium_host has \(seen), but the inventory says \(told): peers drop this node's packets")
        }
        if facts.reversePathFilterAll == 1 {
            warnings.append(
                "net.ipv4.conf.all.rp_filter is 1: replies to pods with a policy, which come in by Cilium, are lost on "
                    + "this node; Cilium needs 0 (sysctl -w net.ipv4.conf.all.rp_filter=0)")
        }
        if facts.forwarding == 0 {
            warnings.append(
                "net.ipv4.ip_forward is 0: this node forwards no packet, neither of its pods nor as a gateway "
                    + "(sysctl -w net.ipv4.ip_forward=1)")
        }
        if facts.isLive && inventory.cilium == nil {
            warnings.append("the inventory has no ConfigMap cilium-config: this node's kind of routing is unverified")
        }
        if inventory.cilium?.hasEgressGateway == true {
            warnings.append(
                honorsCiliumPolicies
                    ? "Cilium's own egress gateway is on: both it and Culvert act on CiliumEgressGatewayPolicy objects, and "
                        + "Cilium's eBPF programs come first; switch one off (egressGateway.enabled=false in Cilium, or "
                        + "egress.honorCiliumPolicies: false here)"
                    : "Cilium's own egress gateway is on: of a pod that a CiliumEgressGatewayPolicy selects too, Cilium takes "
                        + "the packets to that policy's destinations before any route is looked up")
        }
        if let skipped = inventory.cilium?.skipsRouteLookup {
            warnings.append(
                skipped.certain
                    ? "policies for pods of this node are refused: \(skipped.reason)"
                    : "routing is unverified: \(skipped.reason)")
        }
        return warnings
    }

    /// An address of a node that lies inside a policy's destination keeps its normal path, which its owner may not know; and
    /// whoever may write a Node can take a destination out of every policy that way.
    static func ofDestinations(catalogue: PolicyCatalogue, index: NodeIndex, hasNodeCIDRs: Bool) -> [String] {
        if hasNodeCIDRs { return [] }
        var warnings: [String] = []
        for entry in catalogue.entries where entry.refusal.isEmpty && entry.couldSelectHere {
            for destination in entry.policy.destinations where destination.family == .v4 && destination.prefixLength > 0
            {
                guard let address = index.firstKeptAddress(in: destination) else { continue }
                warnings.append(
                    "policy \(entry.policy.name): \(address), an address of a node, lies inside its destination "
                        + "\(destination) and keeps its normal path; name the networks of your nodes in cluster.nodeCIDRs "
                        + "to keep no others")
            }
        }
        return warnings
    }
}

import Model

/// What would break the routing of pods, or is not as it should be, for people.
enum PlanWarnings {
    /// Gateways whose failure is noticed later than their policies ask for.
    static func ofPace(_ sessions: [LivenessPlan.Session]) -> [String] {
        var seen: Set<String> = []
        return sessions.compactMap { session in
            guard let asked = session.asked, seen.insert(session.end.node).inserted else { return nil }
            return
                "gateway \(session.end.node) serves many nodes and asks for an echo every \(asked) ms: its failure is "
                + "noticed after \(asked * session.multiplier) ms"
        }
    }

    static func ofNode(
        facts: LocalFacts, inventory: Inventory, node: Node?, overlay: Configuration.Overlay, honorsCiliumPolicies: Bool
    ) -> [String] {
        var warnings: [String] = []
        if node == nil { warnings.append("node \(facts.nodeName) is not in the inventory") }
        switch overlay {
        case .cilium:
            if facts.overlayAddress == nil && node?.overlayV4 == nil {
                warnings.append(
                    "no overlay address: there is no cilium_host with an address, and the inventory names none")
            }
        case .flannel, .none:
            if let node, MeshPlan.outerAddress(node, overlay: overlay)?.family != .v4 {
                warnings.append("the inventory does not name this node's \(overlay.tunnelEnd): there are no tunnels")
            }
        }
        if overlay == .cilium, let seen = facts.overlayAddress, let told = node?.overlayV4, seen != told {
            warnings.append("cilium_host has \(seen), but the inventory says \(told): peers drop this node's packets")
        }
        if overlay == .none && facts.hasStrictUplink {
            warnings.append(strictUplink(facts, "replies to pods with a policy"))
        } else if facts.reversePathFilterAll == 1 {
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
                    : "Cilium's own egress gateway is on: where a CiliumEgressGatewayPolicy selects a pod too, Cilium takes "
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

    /// Who may lose connections from outside (`InboundFlows`), where some pod here has a policy.
    static func ofInbound(facts: LocalFacts, cilium: CiliumSettings?) -> [String] {
        var warnings: [String] = []
        if cilium?.hasHostRouting == true {
            warnings.append(
                "connections from outside to pods with a policy (node ports, host ports, routed pod addresses) are answered by "
                    + "the gateway where Cilium does not handle them itself: its BPF host routing hides the answers from "
                    + "Culvert (set bpf.hostLegacyRouting=true to show them)")
        }
        if facts.hasStrictUplink {
            let device = facts.underlayDevice
            let key = facts.reversePathFilterAll == 1 ? "all" : device
            warnings.append(
                "net.ipv4.conf.\(key).rp_filter is 1: connections from outside to pods with a policy are lost on \(device) "
                    + "(sysctl -w net.ipv4.conf.\(device).rp_filter=2)")
        }
        return warnings
    }

    /// What others drop of the packets of pods with a policy.
    ///
    /// - Parameter seesReplies: the pods' replies come in by the overlay, where our own table exempts them from connection
    ///   tracking.
    static func ofForeignChains(facts: LocalFacts, seesReplies: Bool) -> [String] {
        facts.forwardDrops.compactMap { drop in
            switch drop.what {
            case .byDefault:
                "nftables: chain \(drop.chain) of table \(drop.table) drops forwarded packets by default; replies to pods with "
                    + "a policy are not tracked, and pass only where a rule there accepts the pods' addresses"
            case .invalid:
                seesReplies
                    ? nil
                    : "nftables: chain \(drop.chain) of table \(drop.table) drops what connection tracking calls invalid, and "
                        + "with it the TCP packets of pods with a policy (add a rule before it that accepts the pods' addresses)"
            }
        }
    }

    /// Without an overlay, what comes from a gateway comes in by the uplink, and the pods' way out is another device.
    static func strictUplink(_ facts: LocalFacts, _ what: String) -> String {
        "rp_filter of \(facts.underlayDevice) is 1: \(what), which come in by it, are lost on this node "
            + "(sysctl -w net.ipv4.conf.\(facts.underlayDevice).rp_filter=2 net.ipv4.conf.all.rp_filter=0)"
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

    /// Networks that Services have their addresses in, more often than not (RFC 1918, RFC 6598).
    private static let privateSpace = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"].compactMap {
        IPNetwork($0)
    }

    /// A policy that claims everything also claims the Services, if no object names their networks.
    static func ofServices(catalogue: PolicyCatalogue, configuration: Configuration, inventory: Inventory) -> [String] {
        if KeptNetworks.knowsServices(configuration, inventory) { return [] }
        let claiming = catalogue.entries.filter { entry in
            entry.refusal.isEmpty && entry.couldSelectHere && claimsPrivateSpace(entry.policy)
        }
        guard let first = claiming.first else { return [] }
        let more = claiming.count > 1 ? " (and \(claiming.count - 1) more)" : ""
        return [
            "policy \(first.policy.name)\(more) claims private addresses, and the networks of the cluster's Services are not "
                + "known: where the kernel of this node translates Services (kube-proxy), the policy's pods may reach no Service, "
                + "and DNS fails; list the networks in cluster.serviceCIDRs"
        ]
    }

    /// Of a private network, or of a part as large as a network of Services often is, not all is excluded.
    private static func claimsPrivateSpace(_ policy: EgressPolicy) -> Bool {
        policy.destinations.contains { destination in
            destination.family == .v4 && destination.prefixLength <= 16
                && privateSpace.contains { network in
                    guard destination.overlaps(network) else { return false }
                    let claimed = destination.prefixLength > network.prefixLength ? destination : network
                    return !policy.exclusions.contains { $0.contains(claimed) }
                }
        }
    }
}

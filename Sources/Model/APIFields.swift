import Jansson

/// The names of the members in the JSON that the helper's `api.sock` returns and that culvertctl reads.
///
/// The helper builds an object from these cases, and culvertctl reads it by the same cases. So a name that is changed here
/// changes on both sides, and a case that is removed does not compile on either.
public protocol APIField: RawRepresentable, CaseIterable, Sendable where RawValue == String {}

extension APIField {
    /// An object of the members that have a value.
    public static func object(_ members: (Self, JSON?)...) -> JSON {
        .object(members.compactMap { field, value in value.map { JSON.Member(field.rawValue, $0) } })
    }
}

extension JSON {
    /// The member of an object, or nil.
    public subscript(_ field: some APIField) -> JSON? { self[field.rawValue] }

    /// The object with the member set to `value`: in its old place, or at the end.
    public func setting(_ field: some APIField, to value: JSON) -> JSON { setting(field.rawValue, to: value) }
}

/// An answer that is an error.
public enum ErrorField: String, APIField { case error }

/// `/v1/status`.
public enum StatusField: String, APIField {
    case summary, reasons, version, node, datapath, refused, repairs
    case tunnelProtocol = "protocol"
    case overlayAddress, underlay, underlayMTU, inventory, chain, serviceNetworks, nodes, policies, attachments,
        adopted, adoptedBecause, firewall
    case warnings, inventoryProblems
}

/// `refused` of the status: a change that the kernel has refused.
public enum RefusedChangeField: String, APIField { case operation, error }

/// `firewall` of the status: what a rule has counted.
public enum CounterField: String, APIField { case rule, packets, bytes }

/// `inventory` of the status: the source of nodes, pods and policies.
public enum SourceField: String, APIField {
    case source, server, path, endpoints, clusters, synchronized, fromDiskSeconds, podLookups, notices, problems
}

/// `podLookups` of the source, for each way to identify a pod.
public enum PodLookupField: String, APIField { case count, meanMilliseconds }

/// `/v1/nodes`.
public enum NodeField: String, APIField {
    case name
    case isSelf = "self"
    case internalIP, overlayAddress, podCIDRs, gatewayFor
}

/// `/v1/policies`, and `policies` of a plan.
public enum PolicyField: String, APIField {
    case name, kind, gateway, candidates, isLocalGateway, egressAddress, destinationCIDRs, attachments, problem
}

/// `/v1/attachments`, and `attachments` of a plan.
public enum AttachmentField: String, APIField {
    case containerID, ifname, namespace, name, uid, addresses, policies, table, mtu, adopted, adoption, adoptionReason,
        refused, held, holds, uncovered
}

/// `policies` of an attachment.
public enum AttachmentPolicyField: String, APIField { case name, gateway, egressAddress }

/// `/v1/plan`, and `culvertctl plan`: the members that culvertctl reads.
public enum PlanField: String, APIField { case attachments }

/// `/v1/gateways`.
public enum GatewaysField: String, APIField {
    case obstacle, wakeUpLatenessMilliseconds, wakeUpLatenessEverMilliseconds, strangers, slots, changes
}

/// `slots` of the gateways.
public enum SlotField: String, APIField {
    case policy, slot, nextHop, gateway, sinceSeconds, up, pods, failBack, candidates
}

/// `candidates` of a slot.
public enum CandidateField: String, APIField {
    case node, egress, active, state
    case isSelf = "self"
    case roundTripMilliseconds, silentMilliseconds, intervalMilliseconds, askedMilliseconds, detectionMilliseconds
    case sent, translated, notTranslated
}

/// `changes` of the gateways.
public enum GatewayChangeField: String, APIField {
    case policy, from, to, why, at, silentMilliseconds, switchedMilliseconds
}

/// `/v1/peers`: the peers of this node's WireGuard device.
public enum PeerField: String, APIField {
    case name, location, publicKey, endpoint, lastHandshake, receivedBytes, sentBytes, persistentKeepalive, allowedIPs
}

/// `/v1/topology`.
public enum TopologyField: String, APIField {
    case subnet, port, interface, granularity, segments, peers, problems
}

/// `segments` of the topology: a location, or a node of its own, with its gateway.
public enum SegmentField: String, APIField {
    case key, location, gateway, wireGuardAddress, publicKey, endpoint, persistentKeepalive, allowedIPs
    case allowedLocationIPs, nodes
}

/// `nodes` of a segment.
public enum SegmentNodeField: String, APIField { case name, privateAddress, podCIDRs }

/// `peers` of the topology: outside peers. Members that segments have too are named alike, so that culvertctl can read both
/// as the other end of a tunnel.
public enum MeshPeerField: String, APIField {
    case name, publicKey, hasPresharedKey, endpoint, persistentKeepalive, allowedIPs
}

/// `/v1/mtu`: the sizes of packets, layer by layer.
public enum PathMTUField: String, APIField { case what, bytes }

import Model

/// One way to carry a pod's packets to its gateway, with their egress identity (`encapsulation.protocol`).
///
/// A new kind is one file with a type of this protocol, and one line in `EncapsulationRegistry`. What has a default
/// below is right for a device without an Ethernet header whose remote end is fixed.
protocol Encapsulation: Sendable {
    /// The kind's name in the configuration.
    var name: Configuration.TunnelProtocol { get }

    /// Modules that the kernel needs for it, as modprobe(8) names them.
    var kernelModules: [String] { get }

    // MARK: packets

    /// The number by which a packet tells its identity to the gateway. Two policies of one number cannot be told apart.
    func wireKey(of identity: EgressIdentity) -> UInt32

    /// Bytes that all headers around the inner IP packet take, for an IPv4 underlay.
    func overhead(of identity: EgressIdentity) -> Int

    /// Bytes by which packets must be smaller than the device's MTU to pass it under eBPF host routing.
    var ebpfAllowance: Int { get }

    // MARK: devices

    /// What the number of the sending device is kept under (`AssignedIDs.tunnels`). Two paths have one key if one
    /// device serves both. It is on disk: a key that changes renumbers live tunnels.
    func senderKey(_ path: TunnelPath) -> String

    /// The same, of the device that receives from every peer.
    func receiverKey(_ identity: EgressIdentity) -> String

    /// All keys that need a number for a path: the sender's, and others that belong to it.
    func numberedKeys(_ path: TunnelPath) -> [String]

    func sender(_ path: TunnelPath) -> Link.Kind

    /// - Parameter local: this node's end.
    func receiver(local: IPAddress, _ identity: EgressIdentity) -> Link.Kind

    // MARK: how a packet is handed to a device

    /// - Parameter device: the sender's name.
    func nextHop(_ path: TunnelPath, device: String) -> NextHop.Target

    /// By which the device finds the gateway; nil: the device needs no such entry.
    func neighbour(_ path: TunnelPath, device: String) -> Neighbour?

    /// UDP ports at which the kernel must be told to take tunnels out of UDP.
    func fouPorts(local: IPAddress) -> [FOUPort]

    // MARK: what a gateway receives

    /// Every kind of packet that could come out of a tunnel here. A packet of none of them is not judged.
    var envelopes: [TunnelEnvelope] { get }
}

extension Encapsulation {
    func wireKey(of identity: EgressIdentity) -> UInt32 { identity.key }
    var ebpfAllowance: Int { TunnelLinks.Overhead.ebpfAllowance }
    func numberedKeys(_ path: TunnelPath) -> [String] { [senderKey(path)] }
    func nextHop(_ path: TunnelPath, device: String) -> NextHop.Target { .device(device) }
    func neighbour(_ path: TunnelPath, device: String) -> Neighbour? { nil }
    func fouPorts(local: IPAddress) -> [FOUPort] { [] }
}

/// The way from this node to a gateway, for packets of one identity.
struct TunnelPath: Hashable, Sendable {
    /// This node's end.
    let local: IPAddress
    /// The gateway's end.
    let gateway: IPAddress
    let identity: EgressIdentity

    /// This node is the gateway.
    var isToSelf: Bool { gateway == local }
}

import Model

/// Whoever speaks WireGuard on this node: the kernel, or a program in user space.
public protocol WireGuardControl {
    /// nil where there is no such device.
    func device(_ name: String) throws -> WireGuardStatus?
    /// Gives the device its private key (32 bytes) and its UDP port.
    func configure(_ name: String, privateKey: [UInt8], listenPort: UInt16) throws
    func apply(_ change: WireGuardChange, device name: String) throws
}

/// A peer as it is.
public struct PeerStatus: Equatable, Sendable {
    public var configuration: WireGuardPeer
    /// Seconds since 1970; 0: never.
    public var lastHandshake: Int64 = 0
    public var receivedBytes: UInt64 = 0
    public var sentBytes: UInt64 = 0
    public init(configuration: WireGuardPeer) { self.configuration = configuration }
}

/// A device as it is.
public struct WireGuardStatus: Equatable, Sendable {
    /// nil: it has no private key yet. A program's socket tells the private key instead, which is not kept.
    public var publicKey: WireGuardKey?
    public var listenPort: UInt16 = 0
    public var peers: [WireGuardKey: PeerStatus] = [:]
    public init() {}
}

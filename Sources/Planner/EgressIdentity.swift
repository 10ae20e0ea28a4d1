import Model

/// What a tunnel packet says about the address it is to leave the gateway with.
///
/// 0 is the gateway's default egress address. Any other egress specification has a key that both ends compute by
/// themselves: FNV-1a, 32 bits, over its text (draft-eastlake-fnv, section 2).
public struct EgressIdentity: Hashable, Sendable, Comparable {
    public let key: UInt32
    public static let defaultAddress = EgressIdentity(key: 0)

    public init(key: UInt32) { self.key = key }

    public init(_ egress: EgressPolicy.Egress) {
        switch egress {
        case .defaultAddress: key = 0
        case .address(let address): key = EgressIdentity.fnv1a("egressIP=\(address)")
        case .interface(let name): key = EgressIdentity.fnv1a("interface=\(name)")
        case .untranslated: key = EgressIdentity.fnv1a("snat=false")
        }
    }

    /// The identity on a VXLAN tunnel: the key folded by exclusive or to 23 bits, and 1 instead of 0, because a
    /// forwarding entry takes VNI 0 for "the device's own" (drivers/net/vxlan: `rdst->remote_vni ? : default_vni`).
    /// Bit 23 marks a node's tunnel to itself.
    public var vni: UInt32 { max(1, (key >> 23) ^ (key & 0x7F_FFFF)) }
    public static let selfVNIBit: UInt32 = 0x80_0000

    static func fnv1a(_ text: String) -> UInt32 {
        var hash: UInt32 = 2_166_136_261
        for byte in text.utf8 { hash = (hash ^ UInt32(byte)) &* 16_777_619 }
        return hash
    }

    public static func < (a: Self, b: Self) -> Bool { a.key < b.key }
}

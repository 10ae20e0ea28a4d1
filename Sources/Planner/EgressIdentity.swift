import Model

/// What a tunnel packet says about the address it is to leave the gateway with.
///
/// 0 is the gateway's default egress address. Any other egress specification has a key that both ends compute by
/// themselves: FNV-1a, 32 bits, over its text (draft-eastlake-fnv, section 2). One with targets to check has a key of its own:
/// it may be down where the same address without them is not.
public struct EgressIdentity: Hashable, Sendable, Comparable {
    public let key: UInt32
    public static let defaultAddress = EgressIdentity(key: 0)

    public init(key: UInt32) { self.key = key }

    public init(_ egress: EgressSpecification) {
        let text =
            switch egress.address {
            case .defaultAddress: ""
            case .address(let address): "egressIP=\(address)"
            case .interface(let name): "interface=\(name)"
            case .untranslated: "snat=false"
            }
        if egress.targets.isEmpty {
            key = text.isEmpty ? 0 : EgressIdentity.fnv1a(text)
        } else {
            key = EgressIdentity.fnv1a(
                "\(text);targets=\(egress.targets.map(\.description).joined(separator: ","))")
        }
    }

    static func fnv1a(_ text: String) -> UInt32 {
        var hash: UInt32 = 2_166_136_261
        for byte in text.utf8 { hash = (hash ^ UInt32(byte)) &* 16_777_619 }
        return hash
    }

    public static func < (a: Self, b: Self) -> Bool { a.key < b.key }
}

import CLinux
import Model

/// An address as the kernel has it.
public struct KernelAddress: Hashable, Sendable {
    public let index: Int32
    public let address: IPAddress
    public let prefixLength: Int
    public init(index: Int32, address: IPAddress, prefixLength: Int) {
        self.index = index
        self.address = address
        self.prefixLength = prefixLength
    }
}

extension NetlinkSocket {
    /// `ip -4 address show`, in the kernel's order.
    public func addressesV4() throws -> [KernelAddress] {
        var addresses: [KernelAddress] = []
        var header = ifaddrmsg()
        header.ifa_family = UInt8(AF_INET)
        let request = NetlinkMessage(
            "ip -4 address show", type: UInt16(RTM_GETADDR), flags: UInt16(NLM_F_DUMP), header: header)
        try dump(request, restart: addresses.removeAll()) { reply in
            guard let header = reply.fixed(ifaddrmsg.self) else { return }
            var local: IPAddress?
            for attribute in reply.attributes(after: MemoryLayout<ifaddrmsg>.size)
            where attribute.type == Int(IFA_LOCAL) || (attribute.type == Int(IFA_ADDRESS) && local == nil) {
                local = attribute.address
            }
            guard let local else { return }
            let entry = KernelAddress(
                index: Int32(header.ifa_index), address: local, prefixLength: Int(header.ifa_prefixlen))
            if !addresses.contains(entry) { addresses.append(entry) }
        }
        return addresses
    }
}

public enum AddressRequest {
    /// `ip address add ADDRESS/32 dev INDEX`
    public static func add(_ address: IPAddress, index: Int32) -> NetlinkMessage {
        message("add", type: RTM_NEWADDR, flags: NLM_F_CREATE | NLM_F_REPLACE, address, 32, index)
    }
    /// `ip address del ADDRESS/LENGTH dev INDEX`
    public static func delete(_ address: IPAddress, prefixLength: Int, index: Int32) -> NetlinkMessage {
        message("del", type: RTM_DELADDR, flags: 0, address, prefixLength, index)
    }
    private static func message(
        _ verb: String, type: Int, flags: Int32, _ address: IPAddress, _ length: Int, _ index: Int32
    ) -> NetlinkMessage {
        var header = ifaddrmsg()
        header.ifa_family = UInt8(AF_INET)
        header.ifa_prefixlen = UInt8(length)
        header.ifa_index = UInt32(index)
        return NetlinkMessage(
            "ip address \(verb) \(address)/\(length) dev \(index)", type: UInt16(type), flags: UInt16(flags),
            header: header
        ) {
            $0.address(IFA_LOCAL, address)
            $0.address(IFA_ADDRESS, address)
        }
    }
}

import CLinux
import CMnl
import Model

/// One request under construction, in libmnl's hands.
public struct NetlinkMessage {
    /// The bytes of the finished message.
    public fileprivate(set) var bytes: [UInt8]
    /// The `ip` command that it stands for, for error messages.
    public let operation: String

    /// - Parameters:
    ///   - type: `RTM_…` or a family number.
    ///   - flags: `NLM_F_…` besides `NLM_F_REQUEST`.
    ///   - header: the fixed part behind the netlink header.
    public init<Header: BitwiseCopyable>(
        _ operation: @autoclosure () -> String, type: UInt16, flags: UInt16, header: Header, capacity: Int = 1024,
        attributes: (inout Attributes) -> Void = { _ in }
    ) {
        self.operation = operation()
        bytes = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
            guard let base = buffer.baseAddress, let message = mnl_nlmsg_put_header(base) else { return }
            message.pointee.nlmsg_type = type
            message.pointee.nlmsg_flags = flags | UInt16(NLM_F_REQUEST)
            let place = mnl_nlmsg_put_extra_header(message, MemoryLayout<Header>.size)
            withUnsafeBytes(of: header) { raw in
                if let source = raw.baseAddress { place?.copyMemory(from: source, byteCount: raw.count) }
            }
            var writer = Attributes(message: message)
            attributes(&writer)
            count = Int(message.pointee.nlmsg_len)
        }
    }

    mutating func setSequence(_ sequence: UInt32, acknowledge: Bool) {
        bytes.withUnsafeMutableBytes { raw in
            guard let header = raw.baseAddress?.assumingMemoryBound(to: nlmsghdr.self) else { return }
            header.pointee.nlmsg_seq = sequence
            if acknowledge { header.pointee.nlmsg_flags |= UInt16(NLM_F_ACK) }
        }
    }

    /// Writes attributes.
    public struct Attributes {
        let message: UnsafeMutablePointer<nlmsghdr>

        public func u8(_ type: some BinaryInteger, _ value: UInt8) { mnl_attr_put_u8(message, UInt16(type), value) }
        public func u16(_ type: some BinaryInteger, _ value: UInt16) { mnl_attr_put_u16(message, UInt16(type), value) }
        public func u32(_ type: some BinaryInteger, _ value: UInt32) { mnl_attr_put_u32(message, UInt16(type), value) }
        public func flag(_ type: some BinaryInteger) { mnl_attr_put(message, UInt16(type), 0, nil) }
        public func string(_ type: some BinaryInteger, _ value: String) {
            mnl_attr_put_strz(message, UInt16(type), value)
        }
        public func bytes(_ type: some BinaryInteger, _ value: [UInt8]) {
            mnl_attr_put(message, UInt16(type), value.count, value)
        }
        public func address(_ type: some BinaryInteger, _ value: IPAddress) { bytes(type, value.bytes) }
        public func nested(_ type: some BinaryInteger, _ body: (Attributes) -> Void) {
            let start = mnl_attr_nest_start(message, UInt16(type))
            body(self)
            mnl_attr_nest_end(message, start)
        }
    }
}

/// One message of the kernel, valid while it is being looked at.
public struct NetlinkReply {
    public let header: UnsafePointer<nlmsghdr>
    public var type: UInt16 { header.pointee.nlmsg_type }
    public var flags: UInt16 { header.pointee.nlmsg_flags }
    /// Port of the socket whose request caused a notification; 0: the kernel itself.
    public var port: UInt32 { header.pointee.nlmsg_pid }

    /// The fixed part behind the netlink header; nil where the message is shorter.
    public func fixed<Header: BitwiseCopyable>(_: Header.Type) -> Header? {
        guard mnl_nlmsg_get_payload_len(header) >= MemoryLayout<Header>.size else { return nil }
        return mnl_nlmsg_get_payload(header).loadUnaligned(as: Header.self)
    }

    /// The attributes behind a fixed part of `offset` bytes.
    public func attributes(after offset: Int) -> NetlinkAttributes {
        let start = mnl_nlmsg_get_payload_offset(header, offset)
        let length = Int(header.pointee.nlmsg_len) - Int(mnl_nlmsg_size(aligned(offset)))
        return NetlinkAttributes(start: start.map { UnsafeRawPointer($0) }, length: max(0, length))
    }
    private func aligned(_ length: Int) -> Int { (length + 3) & ~3 }
}

/// A run of attributes.
public struct NetlinkAttributes: Sequence {
    let start: UnsafeRawPointer?
    let length: Int

    public struct Attribute {
        let pointer: UnsafePointer<nlattr>
        public var type: Int { Int(mnl_attr_get_type(pointer)) }
        public var bytes: [UInt8] {
            let count = Int(mnl_attr_get_payload_len(pointer))
            guard let base = mnl_attr_get_payload(pointer) else { return [] }
            return [UInt8](UnsafeRawBufferPointer(start: base, count: count))
        }
        private func load<T: BitwiseCopyable>(_: T.Type) -> T? {
            guard Int(mnl_attr_get_payload_len(pointer)) >= MemoryLayout<T>.size else { return nil }
            return mnl_attr_get_payload(pointer).loadUnaligned(as: T.self)
        }
        public var u8: UInt8 { load(UInt8.self) ?? 0 }
        public var u16: UInt16 { load(UInt16.self) ?? 0 }
        public var u32: UInt32 { load(UInt32.self) ?? 0 }
        public var string: String { String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self) }
        public var address: IPAddress? { IPAddress(bytes: bytes) }
        public var nested: NetlinkAttributes {
            NetlinkAttributes(
                start: mnl_attr_get_payload(pointer).map { UnsafeRawPointer($0) },
                length: Int(mnl_attr_get_payload_len(pointer)))
        }
    }

    public func makeIterator() -> AnyIterator<Attribute> {
        var next = start
        var left = length
        return AnyIterator {
            guard let here = next?.assumingMemoryBound(to: nlattr.self), mnl_attr_ok(here, Int32(left)) else {
                return nil
            }
            let size = (Int(here.pointee.nla_len) + 3) & ~3
            next = UnsafeRawPointer(here).advanced(by: size)
            left -= size
            return Attribute(pointer: here)
        }
    }
}

extension NetlinkMessage {
    mutating func setByte(at offset: Int, to value: UInt8) { bytes[offset] = value }
}

extension NetlinkMessage {
    /// A message that another library has built.
    public init(operation: String, raw bytes: [UInt8]) {
        self.operation = operation
        self.bytes = bytes
    }
}

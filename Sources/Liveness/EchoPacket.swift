/// What an echo carries: enough to know that it is one of ours, of which session, and that nobody has made it up.
///
/// 40 bytes, numbers in network order: "CVL1", session (32 bits), sequence (64), secret (128), flags (32), zero (32). The first 32
/// bits of the secret are the same in all echoes of one process: by these the kernel drops what strangers send.
public struct EchoPacket: Equatable, Sendable {
    /// Of one session, drawn when it begins. Who does not see the session's packets cannot answer for its gateway.
    public struct Secret: Equatable, Sendable {
        public let high: UInt64
        public let low: UInt64
        public init(high: UInt64, low: UInt64) {
            self.high = high
            self.low = low
        }
        /// - Parameter word: the process's own.
        public static func random(word: UInt32) -> Secret {
            Secret(
                high: UInt64(word) << 32 | UInt64(UInt32.random(in: .min ... .max)), low: .random(in: .min ... .max))
        }
    }

    public let session: UInt32
    /// Grows from one echo of the session to the next.
    public let sequence: UInt64
    public let secret: Secret
    /// The gateway is to translate it, as proof that it does. It is sent beside an echo with the same sequence number.
    public let isProof: Bool

    public static let size = 40
    static let magic: UInt32 = 0x4356_4C31

    public init(session: UInt32, sequence: UInt64, secret: Secret, isProof: Bool = false) {
        self.session = session
        self.sequence = sequence
        self.secret = secret
        self.isProof = isProof
    }

    /// Writes it to the first 40 bytes.
    public func write(to buffer: UnsafeMutableRawBufferPointer) {
        func put<T: FixedWidthInteger>(_ value: T, at offset: Int) {
            buffer.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
        }
        put(EchoPacket.magic, at: 0)
        put(session, at: 4)
        put(sequence, at: 8)
        put(secret.high, at: 16)
        put(secret.low, at: 24)
        put(isProof ? 1 as UInt32 : 0, at: 32)
        put(0 as UInt32, at: 36)
    }

    /// nil: it is none of ours.
    public init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count == EchoPacket.size else { return nil }
        func get<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T {
            T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        let flags = get(UInt32.self, at: 32)
        guard get(UInt32.self, at: 0) == EchoPacket.magic, flags <= 1, get(UInt32.self, at: 36) == 0 else {
            return nil
        }
        self.init(
            session: get(UInt32.self, at: 4), sequence: get(UInt64.self, at: 8),
            secret: Secret(high: get(UInt64.self, at: 16), low: get(UInt64.self, at: 24)), isProof: flags == 1)
    }
}

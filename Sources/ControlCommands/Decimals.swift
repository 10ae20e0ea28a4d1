import CLinux

/// Numbers as people read them.
enum Decimals {
    /// With one decimal, rounded as printf rounds.
    static func one(_ value: Double) -> String {
        var text = [CChar](repeating: 0, count: 400)
        let count = withVaList([value]) { vsnprintf(&text, text.count, "%.1f", $0) }
        return String(decoding: text.prefix(Int(count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

/// What can be a label's name and value (Kubernetes, "Labels and Selectors": syntax and character set).
///
/// A selector by another one matches nothing, and the API server refuses a request with it. The definition of EgressPolicy has
/// the same rules.
enum LabelSyntax {
    static let nameRule =
        "is not a valid label name: at most 63 letters, digits, -, _ and ., with a letter or digit at both ends; a DNS name and / may come before it"
    static let valueRule =
        "is not a valid label value: at most 63 letters, digits, -, _ and ., with a letter or digit at both ends; or empty"

    static func isName(_ text: String) -> Bool {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard let name = parts.last, !name.isEmpty, isValue(String(name)) else { return false }
        return parts.count == 1 || (parts.count == 2 && isSubdomain(parts[0]))
    }

    static func isValue(_ text: String) -> Bool {
        let bytes = Array(text.utf8)
        guard let first = bytes.first, let last = bytes.last else { return true }
        return bytes.count <= 63 && isAlphanumeric(first) && isAlphanumeric(last)
            && bytes.allSatisfy { isAlphanumeric($0) || $0 == 0x2D || $0 == 0x2E || $0 == 0x5F }
    }

    private static func isAlphanumeric(_ byte: UInt8) -> Bool { isLower(byte) || (0x41...0x5A).contains(byte) }
    /// a to z, or a digit.
    private static func isLower(_ byte: UInt8) -> Bool {
        (0x61...0x7A).contains(byte) || (0x30...0x39).contains(byte)
    }

    /// RFC 1123, in lower case.
    private static func isSubdomain(_ text: Substring) -> Bool {
        text.utf8.count <= 253
            && text.split(separator: ".", omittingEmptySubsequences: false).allSatisfy { part in
                guard let first = part.utf8.first, let last = part.utf8.last else { return false }
                return isLower(first) && isLower(last) && part.utf8.allSatisfy { isLower($0) || $0 == 0x2D }
            }
    }
}

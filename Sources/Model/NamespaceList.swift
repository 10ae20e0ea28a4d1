/// Namespaces that may do something, by name; `*` is every one.
public struct NamespaceList: Equatable, Sendable {
    public private(set) var names: [String] = []
    public static let everyNamespace = "*"

    public init() {}
    /// - Throws: `Failure` with the place of the first element that is neither `*` nor the name of a namespace (RFC 1123 label).
    public init(_ names: [String]) throws(Failure) {
        for (place, name) in names.enumerated() where !NamespaceList.isName(name) {
            throw Failure(place: place, name: name)
        }
        self.names = names
    }

    public struct Failure: Error, Equatable {
        public let place: Int
        public let name: String
        public var message: String { "\"\(name)\" is neither the name of a namespace nor * (every namespace)" }
    }

    /// Containers without a namespace are in none: only `*` holds them.
    public func contains(_ namespace: String) -> Bool {
        names.contains { $0 == NamespaceList.everyNamespace || ($0 == namespace && !namespace.isEmpty) }
    }

    private static func isName(_ text: String) -> Bool {
        if text == everyNamespace { return true }
        let bytes = Array(text.utf8)
        func isAlphanumeric(_ byte: UInt8) -> Bool { (97...122).contains(byte) || (48...57).contains(byte) }
        guard (1...63).contains(bytes.count), let first = bytes.first, let last = bytes.last else { return false }
        return isAlphanumeric(first) && isAlphanumeric(last) && bytes.allSatisfy { isAlphanumeric($0) || $0 == 45 }
    }
}

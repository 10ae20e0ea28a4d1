/// Cuts a stream into lines.
public struct LineReader {
    public struct TooLong: Error, CustomStringConvertible {
        let limit: Int
        public var description: String { "a line of a watch has more than \(limit) bytes" }
    }

    private var rest: [UInt8] = []
    private let limit: Int
    public init(limit: Int) { self.limit = limit }
    public var isEmpty: Bool { rest.isEmpty }

    /// The lines that are complete with this part of the stream, without empty ones.
    ///
    /// - Throws: where a line is longer than the limit.
    public mutating func take(_ part: some Collection<UInt8>) throws -> [[UInt8]] {
        var lines: [[UInt8]] = []
        var start = part.startIndex
        while let end = part[start...].firstIndex(of: 10) {
            rest += part[start..<end]
            if !rest.isEmpty { lines.append(rest) }
            rest.removeAll(keepingCapacity: true)
            start = part.index(after: end)
        }
        rest += part[start...]
        guard rest.count <= limit else {
            throw TooLong(limit: limit)
        }
        return lines
    }
}

extension StringProtocol {
    /// Without the white space and line ends at both ends.
    public var trimmed: String { trimming(\.isWhitespace) }

    /// Without the characters at both ends that the condition holds for.
    public func trimming(_ isLeftOut: (Character) -> Bool) -> String {
        guard let first = firstIndex(where: { !isLeftOut($0) }), let last = lastIndex(where: { !isLeftOut($0) }) else {
            return ""
        }
        return String(self[first...last])
    }
}

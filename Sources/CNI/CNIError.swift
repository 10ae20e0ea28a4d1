#if !hasFeature(Embedded)
    import Jansson
#endif

/// An error that a plugin reports on stdout (CNI specification 1.1, section "Error").
public struct CNIError: Error, Equatable, Sendable {
    /// The specification's codes, and Culvert's own from 100. Code 3 (unknown container, "no DEL needed") is
    /// left out on purpose: it would leak what the plugins before this one have set up.
    public enum Code: Int64, Sendable {
        case incompatibleVersion = 1
        case unsupportedField = 2
        case invalidEnvironment = 4
        case ioFailure = 5
        case decodingFailure = 6
        case invalidConfiguration = 7
        case tryAgainLater = 11
        /// STATUS: an ADD would fail now.
        case notAvailable = 50
        /// A policy the pod must have cannot be applied.
        case policyRefused = 100
        /// The kernel refused what was asked of it.
        case datapathFailure = 101
        /// CHECK found that kernel or pod differ from the attachment.
        case checkFailed = 102
        /// The helper does not accept this request.
        case requestRefused = 103
    }

    public let code: Int64
    /// Short: what was wrong with which thing.
    public let message: String
    /// Long: what to do about it. May be empty.
    public let details: String

    public init(_ code: Code, _ message: String, details: String = "") {
        self.init(code: code.rawValue, message, details: details)
    }
    public init(code: Int64, _ message: String, details: String = "") {
        self.code = code
        self.message = message
        self.details = details
    }

    /// The error object for stdout.
    public func json(version: String) -> JSON {
        .make(
            ("cniVersion", .string(version)), ("code", .integer(code)), ("msg", .string(message)),
            ("details", details.isEmpty ? nil : .string(details)))
    }
}

import CLinux

/// The kernel's answer to a request that it did not carry out.
public struct NetlinkError: Error, Equatable, CustomStringConvertible {
    /// The `ip` command that the request stands for.
    public let operation: String
    /// Positive errno.
    public let code: Int32
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), or empty.
    public let kernelMessage: String
    /// What to do about it, or empty.
    public let remedy: String

    public init(operation: String, code: Int32, kernelMessage: String = "", remedy: String = "") {
        self.operation = operation
        self.code = code
        self.kernelMessage = kernelMessage
        self.remedy = remedy
    }

    /// The same error with a remedy, for callers that know one.
    public func with(remedy: String) -> NetlinkError {
        NetlinkError(operation: operation, code: code, kernelMessage: kernelMessage, remedy: remedy)
    }

    public var description: String {
        let remedy = code == EPERM ? "culvertd needs CAP_NET_ADMIN" : self.remedy
        return "\(operation): \(String(cString: strerror(code)))"
            + (kernelMessage.isEmpty ? "" : " (\(kernelMessage))")
            + (remedy.isEmpty ? "" : "; \(remedy)")
    }
}

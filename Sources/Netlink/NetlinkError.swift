import CLinux

/// The kernel's answer to a request that it did not carry out.
public struct NetlinkError: Error, Equatable, CustomStringConvertible {
    /// The `ip` command that the request stands for.
    public let operation: String
    /// Positive errno.
    public let code: Int32
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), or empty.
    public let kernelMessage: String

    public init(operation: String, code: Int32, kernelMessage: String = "") {
        self.operation = operation
        self.code = code
        self.kernelMessage = kernelMessage
    }

    public var description: String {
        let remedy =
            code == EPERM
            ? "; culvertd needs CAP_NET_ADMIN"
            : code == EOPNOTSUPP && operation.contains("link add")
                ? "; this kernel lacks the tunnel module, and it cannot be loaded (modprobe ipip ip_gre fou vxlan)" : ""
        return "\(operation): \(String(cString: strerror(code)))"
            + (kernelMessage.isEmpty ? "" : " (\(kernelMessage))") + remedy
    }
}

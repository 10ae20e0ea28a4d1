import CLinux
import Model

/// Addresses of the DNS names that endpoints are given by, from the system's resolver.
enum EndpointResolver {
    /// One address of each name that has any: the first IPv4 address, else the first.
    static func addresses(of names: Set<String>) async -> [String: IPAddress] {
        await withCheckedContinuation { continuation in
            do {
                try BlockingThread.start("names of endpoints") {
                    var found: [String: IPAddress] = [:]
                    for name in names { found[name] = address(of: name) }
                    continuation.resume(returning: found)
                }
            } catch { continuation.resume(returning: [:]) }
        }
    }

    private static func address(of name: String) -> IPAddress? {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_DGRAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(name, nil, &hints, &list) == 0 else { return nil }
        defer { freeaddrinfo(list) }
        var first: IPAddress?
        var entry = list
        while let info = entry?.pointee {
            let raw = UnsafeRawPointer(info.ai_addr)
            // RFC 3493: behind family and port, and the flow of IPv6.
            let address =
                info.ai_family == AF_INET
                ? raw.flatMap { IPAddress(bytes: Array(UnsafeRawBufferPointer(start: $0 + 4, count: 4))) }
                : info.ai_family == AF_INET6
                    ? raw.flatMap { IPAddress(bytes: Array(UnsafeRawBufferPointer(start: $0 + 8, count: 16))) } : nil
            if let address {
                if address.family == .v4 { return address }
                first = first ?? address
            }
            entry = info.ai_next
        }
        return first
    }
}

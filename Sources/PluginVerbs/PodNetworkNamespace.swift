import CLinux

#if !hasFeature(Embedded)
    import CNI
#endif

extension Plugin {
    /// Enters the network namespace at `path` (`CNI_NETNS`) and opens a `NETLINK_ROUTE` socket there. The process
    /// stays in that namespace: it has one thread, and a Unix socket is found by its path from anywhere.
    ///
    /// - Throws: error 4 naming `CNI_NETNS` where it is missing, not a network namespace, or the host's own.
    static func openPodSocket(_ path: String) throws(CNIError) -> Int32 {
        func refuse(_ why: String) -> CNIError { CNIError(.invalidEnvironment, "CNI_NETNS \"\(path)\" \(why)") }
        let namespace = culvert_open_read(path)
        guard namespace >= 0 else { throw refuse("cannot be opened: " + String(cString: strerror(-namespace))) }
        defer { close(namespace) }
        let own = culvert_open_read("/proc/self/ns/net")
        guard own >= 0 else {
            throw CNIError(.ioFailure, "/proc/self/ns/net cannot be opened: " + String(cString: strerror(-own)))
        }
        defer { close(own) }
        if culvert_same_file(namespace, own) == 1 {
            throw refuse("is the host's own network namespace, which is never attached")
        }
        let entered = culvert_enter_network_namespace(namespace)
        guard entered == 0 else {
            throw refuse("cannot be entered: " + String(cString: strerror(-entered)))
        }
        let socket = culvert_route_socket()
        guard socket >= 0 else {
            throw CNIError(.ioFailure, "no netlink socket in \(path): " + String(cString: strerror(-socket)))
        }
        return socket
    }
}

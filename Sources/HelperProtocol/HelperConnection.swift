import CLinux

#if !hasFeature(Embedded)
    import CNI
    import Jansson
#endif

/// The plugin's side of `cni.sock`: one request, one answer (of several messages, if it is long), one deadline over all of it.
public enum HelperConnection {
    /// Connects, so that the helper wakes up while the caller still prepares its request.
    ///
    /// - Parameter path: of `cni.sock`.
    /// - Returns: for `ask`, which closes it; negative where there is no connection yet.
    public static func begin(_ path: String) -> Int32 { culvert_seqpacket_connect(path) }

    /// - Parameters:
    ///   - socket: path of `cni.sock`.
    ///   - connection: what `begin` has returned for this path.
    ///   - descriptor: the pod's netlink socket, or -1.
    ///   - deadline: on `culvert_monotonic_milliseconds`.
    /// - Throws: error 11 that says what of the helper could not be reached, or 5 for a request that is too large.
    public static func ask(
        _ request: HelperRequest, socket path: String, connection: Int32 = -1, descriptor: Int32 = -1,
        deadline: Int64
    ) throws(CNIError) -> HelperResponse {
        var socket = connection
        // The helper may have started anew since, or have lost patience with a process that was held up.
        var isEarly = connection >= 0
        defer { if socket >= 0 { close(socket) } }
        let message = request.json.bytes()
        guard message.count <= HelperRequest.maximumSize else {
            throw CNIError(
                .ioFailure,
                "the request to culvertd has \(message.count) bytes; the maximum is \(HelperRequest.maximumSize)",
                details: "the labels or annotations of this container are too large")
        }
        if socket < 0 { socket = try connect(path, deadline: deadline) }
        while true {
            let sent = culvert_send_message(socket, message, message.count, descriptor, 0)
            if sent == 0 { break }
            if isEarly && sent != -EAGAIN {
                isEarly = false
                close(socket)
                socket = -1
                socket = try connect(path, deadline: deadline)
                continue
            }
            guard sent == -EAGAIN else {
                throw unavailable("culvertd at \(path) closed the connection before it got the request", code: -sent)
            }
            try wait(socket, Int16(POLLOUT), deadline: deadline, path: path)
        }
        var answer = HelperAnswer()
        while true {
            try wait(socket, Int16(POLLIN), deadline: deadline, path: path)
            let length = culvert_message_length(socket)
            if length == Int(-EAGAIN) || length == Int(-EINTR) { continue }
            guard length > 0, length <= HelperRequest.maximumSize else {
                throw unavailable("culvertd at \(path) closed the connection without a response", code: 0)
            }
            var message = [UInt8](repeating: 0, count: length)
            guard recv(socket, &message, length, 0) == length else { continue }
            if let whole = try answer.take(message) { return whole }
        }
    }

    private static func connect(_ path: String, deadline: Int64) throws(CNIError) -> Int32 {
        while true {
            let socket = culvert_seqpacket_connect(path)
            if socket >= 0 { return socket }
            // A full backlog answers EAGAIN at once, and poll cannot wait for it.
            guard socket == -EAGAIN, culvert_monotonic_milliseconds() < deadline else {
                throw unavailable("culvertd cannot be reached at \(path)", code: -socket)
            }
            usleep(2000)
        }
    }

    private static func wait(_ socket: Int32, _ events: Int16, deadline: Int64, path: String) throws(CNIError) {
        let left = deadline - culvert_monotonic_milliseconds()
        var entry = pollfd(fd: socket, events: events, revents: 0)
        guard left > 0, poll(&entry, 1, Int32(clamping: left)) != 0 else {
            throw CNIError(
                .tryAgainLater, "culvertd at \(path) did not answer in time",
                details: "see its log, and timeoutSeconds in the plugin configuration")
        }
    }

    private static func unavailable(_ message: String, code: Int32) -> CNIError {
        let reason = code == 0 ? "" : ": " + String(cString: strerror(code))
        return CNIError(
            .tryAgainLater, message + reason,
            details: "is culvertd running on this node? (\"socket\" in the plugin configuration names its socket)")
    }
}

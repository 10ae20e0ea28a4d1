import CLinux
import CMnl

/// A netlink socket: requests that are acknowledged, and dumps. Not for use by two threads at once.
public final class NetlinkSocket {
    private let socket: OpaquePointer
    private var sequence: UInt32 = 0
    /// Not filled with zeros: of most answers only the first page is touched, and so has to be there.
    private var buffer = [UInt8](unsafeUninitializedCapacity: 128 * 1024) { _, count in count = 128 * 1024 }
    private var sendRoom = 64 * 1024

    /// Opens a socket of `bus` (`NETLINK_ROUTE`, …) in the network namespace of this process.
    public init(bus: Int32) throws {
        guard let socket = mnl_socket_open2(bus, Int32(SOCK_CLOEXEC.rawValue)) else {
            throw NetlinkError(operation: "socket(AF_NETLINK, \(bus))", code: culvert_errno())
        }
        self.socket = socket
        guard mnl_socket_bind(socket, 0, pid_t(MNL_SOCKET_AUTOPID)) == 0 else {
            let code = culvert_errno()
            mnl_socket_close(socket)
            throw NetlinkError(operation: "bind(AF_NETLINK)", code: code)
        }
        prepare()
    }

    /// Takes over a socket that was opened elsewhere, e.g. in a pod, and closes it in the end.
    public init(adopting descriptor: Int32) throws {
        guard let socket = mnl_socket_fdopen(descriptor) else {
            let code = culvert_errno()
            close(descriptor)
            throw NetlinkError(operation: "netlink socket of the pod", code: code)
        }
        self.socket = socket
        prepare()
    }

    private func prepare() {
        var on: Int32 = 1
        // SOL_NETLINK's options; kernels that lack one say so, and nothing here depends on it.
        for option in [NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK] {
            _ = mnl_socket_setsockopt(socket, Int32(option), &on, socklen_t(MemoryLayout<Int32>.size))
        }
        _ = culvert_receive_timeout(descriptor, 5000)
    }

    /// Makes room for one message or batch of this many bytes. The default refuses more than about 213 kB (EMSGSIZE).
    public func makeRoom(for bytes: Int) {
        guard bytes > sendRoom else { return }
        var size = Int32(clamping: bytes * 2)
        // With CAP_NET_ADMIN, beyond what net.core.wmem_max allows others.
        if setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &size, socklen_t(MemoryLayout<Int32>.size)) == 0 {
            sendRoom = bytes
        }
    }

    deinit { mnl_socket_close(socket) }

    public var descriptor: Int32 { mnl_socket_get_fd(socket) }
    /// Port number of this socket, which tells its own notifications from those of other programs.
    public var port: UInt32 { mnl_socket_get_portid(socket) }

    public func join(group: UInt32) throws {
        var group = group
        guard
            mnl_socket_setsockopt(
                socket, Int32(NETLINK_ADD_MEMBERSHIP), &group, socklen_t(MemoryLayout<UInt32>.size)) == 0
        else { throw NetlinkError(operation: "netlink group \(group)", code: culvert_errno()) }
    }

    /// Sends the requests in their order and waits for all of them.
    ///
    /// - Returns: what was refused, by index. The others were carried out.
    public func execute(_ messages: [NetlinkMessage]) throws -> [(index: Int, error: NetlinkError)] {
        var failures: [(Int, NetlinkError)] = []
        var start = 0
        while start < messages.count {
            // Errors queue up in the socket while the kernel works through one send, so that is kept small.
            let end = min(start + 200, messages.count)
            var chunk: [UInt8] = []
            let firstSequence = sequence &+ 1
            for index in start..<end {
                var message = messages[index]
                sequence &+= 1
                message.setSequence(sequence, acknowledge: index == end - 1)
                chunk += message.bytes
            }
            guard mnl_socket_sendto(socket, chunk, chunk.count) >= 0 else {
                throw NetlinkError(operation: messages[start].operation, code: culvert_errno())
            }
            let lastSequence = sequence
            var done = false
            while !done {
                try receive { reply in
                    guard reply.type == UInt16(NLMSG_ERROR), let error = reply.fixed(nlmsgerr.self) else { return true }
                    let replySequence = reply.header.pointee.nlmsg_seq
                    // What is left of an earlier call that gave up is not ours.
                    guard replySequence &- firstSequence <= lastSequence &- firstSequence else { return true }
                    if error.error != 0 {
                        let index = start + Int(replySequence &- firstSequence)
                        failures.append(
                            (
                                index,
                                NetlinkError(
                                    operation: messages[index].operation, code: -error.error,
                                    kernelMessage: Self.kernelMessage(reply))
                            ))
                    }
                    if replySequence == lastSequence { done = true }
                    return true
                }
            }
            start = end
        }
        return failures
    }

    /// One request; throws when it is refused.
    public func execute(_ message: NetlinkMessage) throws {
        if let failure = try execute([message]).first { throw failure.error }
    }

    /// Dumps: `body` sees every message of the answer. Where something changed while the kernel was listing
    /// (`NLM_F_DUMP_INTR`), what came may be incomplete: it is asked again, and `restart` is called, so that nothing of the
    /// answer before is left.
    ///
    /// - Throws: where the request is refused. After five answers that were disturbed the last one counts.
    public func dump(_ message: NetlinkMessage, restart: @autoclosure () -> Void = (), _ body: (NetlinkReply) -> Void)
        throws
    {
        for attempt in 0..<5 {
            if attempt > 0 { restart() }
            var message = message
            sequence &+= 1
            let mine = sequence
            message.setSequence(mine, acknowledge: false)
            guard mnl_socket_sendto(socket, message.bytes, message.bytes.count) >= 0 else {
                throw NetlinkError(operation: message.operation, code: culvert_errno())
            }
            var done = false
            var interrupted = false
            var failure: NetlinkError?
            while !done {
                try receive { reply in
                    guard reply.header.pointee.nlmsg_seq == mine else { return true }
                    if reply.flags & UInt16(NLM_F_DUMP_INTR) != 0 { interrupted = true }
                    switch Int32(reply.type) {
                    case NLMSG_DONE: done = true
                    case NLMSG_ERROR:
                        done = true
                        if let error = reply.fixed(nlmsgerr.self), error.error != 0 {
                            failure = NetlinkError(
                                operation: message.operation, code: -error.error,
                                kernelMessage: Self.kernelMessage(reply))
                        }
                    default: body(reply)
                    }
                    return true
                }
            }
            if let failure { throw failure }
            if !interrupted || attempt == 4 { return }
        }
    }

    /// One request that is answered by one message.
    public func get(_ message: NetlinkMessage, _ body: (NetlinkReply) -> Void) throws {
        var message = message
        sequence &+= 1
        let mine = sequence
        message.setSequence(mine, acknowledge: false)
        guard mnl_socket_sendto(socket, message.bytes, message.bytes.count) >= 0 else {
            throw NetlinkError(operation: message.operation, code: culvert_errno())
        }
        var done = false
        var failure: NetlinkError?
        while !done {
            try receive { reply in
                guard reply.header.pointee.nlmsg_seq == mine else { return true }
                done = true
                if reply.type == UInt16(NLMSG_ERROR) {
                    if let error = reply.fixed(nlmsgerr.self), error.error != 0 {
                        failure = NetlinkError(
                            operation: message.operation, code: -error.error, kernelMessage: Self.kernelMessage(reply))
                    }
                } else {
                    body(reply)
                }
                return true
            }
        }
        if let failure { throw failure }
    }

    /// Sends bytes that are a whole batch already (nftables).
    public func send(_ bytes: [UInt8], operation: String) throws {
        makeRoom(for: bytes.count)
        guard mnl_socket_sendto(socket, bytes, bytes.count) >= 0 else {
            throw NetlinkError(operation: operation, code: culvert_errno())
        }
    }

    /// Receives once. `body` sees each message until it returns false.
    public func receive(_ body: (NetlinkReply) -> Bool) throws {
        let count = mnl_socket_recvfrom(socket, &buffer, buffer.count)
        guard count >= 0 else {
            let code = culvert_errno()
            if code == EINTR { return }
            throw NetlinkError(operation: "answer of the kernel", code: code == EAGAIN ? ETIMEDOUT : code)
        }
        buffer.withUnsafeBytes { raw in
            guard let base = raw.baseAddress else { return }
            var left = Int32(count)
            var here = base.assumingMemoryBound(to: nlmsghdr.self)
            while mnl_nlmsg_ok(here, left) {
                if !body(NetlinkReply(header: here)) { return }
                guard let next = mnl_nlmsg_next(UnsafeMutablePointer(mutating: here), &left) else { return }
                here = UnsafePointer(next)
            }
        }
    }

    private static func kernelMessage(_ reply: NetlinkReply) -> String {
        // With NETLINK_CAP_ACK the request itself is not repeated, and attributes follow the error directly.
        guard reply.flags & UInt16(NLM_F_ACK_TLVS) != 0 else { return "" }
        for attribute in reply.attributes(after: MemoryLayout<nlmsgerr>.size)
        where attribute.type == Int(NLMSGERR_ATTR_MSG.rawValue) {
            return attribute.string
        }
        return ""
    }
}

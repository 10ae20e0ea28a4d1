import Glibc
import NIOCore

/// How the kernel notices that packets of a connection vanish on the way (tcp(7)). A watch sends nothing for minutes, so
/// nothing is missing by itself.
enum KeepAlive {
    /// Seconds without a packet from the other end until the kernel asks for one.
    private static let idle = 15
    /// Seconds between two questions.
    private static let interval = 5
    /// So many questions without an answer end the connection.
    private static let questions = 3
    /// Milliseconds that data, or a question, may stay without an acknowledgement.
    private static let userTimeout = 30_000

    /// Tells the kernel so. A connection that cannot be told, of a socket that is no TCP, is used as it is.
    static func set(on channel: any Channel) -> EventLoopFuture<Void> {
        func tcp(_ name: CInt, _ value: Int) -> EventLoopFuture<Void> {
            channel.setOption(.tcpOption(.init(rawValue: name)), value: value)
        }
        return EventLoopFuture.andAllComplete(
            [
                channel.setOption(.socketOption(.so_keepalive), value: 1), tcp(TCP_KEEPIDLE, idle),
                tcp(TCP_KEEPINTVL, interval), tcp(TCP_KEEPCNT, questions), tcp(TCP_USER_TIMEOUT, userTimeout),
            ], on: channel.eventLoop)
    }
}

import Firewall
import Logging
import Model
import Netlink
import Planner
import Synchronization

/// Deletes the entries of ended connections from connection tracking and from the firewall's own sets. On a pod's node
/// these are the connections of an address whose pod is gone, so that the next pod with the address does not continue
/// them. On a gateway these are the connections that are translated to an address that no policy has any more.
///
/// This does not run on the main path, because a node may have hundreds of thousands of connections. Only an ADD for an
/// address whose entries are being deleted waits for it.
actor ConnectionFlush {
    nonisolated let executor: KernelThread
    nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }
    private let logger: Logger
    private var tracking: ConnectionTracking?
    private let firewall: FirewallSocket
    /// With which the firewall's notifications name this one's transactions.
    nonisolated let firewallPort: UInt32
    private enum Part: String {
        case tracking = "connection tracking (modprobe nf_conntrack_netlink)"
        case flows = "the firewall's sets"
    }
    /// What was told last of each part.
    private var lastProblems: [Part: String] = [:]

    /// - Parameter thread: where it is done.
    /// - Throws: where a netlink socket cannot be had.
    init(on thread: KernelThread, logger: Logger) throws {
        executor = thread
        firewall = try FirewallSocket()
        firewallPort = firewall.port
        self.logger = logger
    }

    /// Addresses whose connections are to be forgotten and that nobody has begun with.
    private nonisolated let waiting = Mutex<Set<IPAddress>>([])

    /// Forgets all connections of these pod addresses, and returns when that is done. Whatever is asked for while another
    /// list is read is done in one go after it.
    nonisolated func forget(of addresses: Set<IPAddress>) async {
        waiting.withLock { $0.formUnion(addresses) }
        await forgetWaiting()
    }

    /// Calls are carried out in their order: what an earlier one has taken is done when the next one begins.
    private func forgetWaiting() {
        let addresses = waiting.withLock { waiting in
            let taken = waiting
            waiting = []
            return taken
        }
        if addresses.isEmpty { return }
        let count =
            run(.tracking) { try openTracking().forget(of: addresses) }
            + run(.flows) { try firewall.forget(flowsOf: addresses, in: Planner.flowSets) }
        if count > 0 {
            logger.debug(
                "deleted the connection-tracking entries of a pod that is gone", metadata: ["connections": "\(count)"])
        }
    }

    /// Forgets connections through this gateway that are translated to another address than their policy's.
    func forget(notTranslatedAs translations: [UInt16: IPAddress]) {
        let count = run(.tracking) { try openTracking().forget(notTranslatedAs: translations) }
        if count > 0 {
            logger.notice(
                "an egress address has changed: deleted the connection-tracking entries with the old address",
                metadata: ["connections": "\(count)"])
        }
    }

    private func openTracking() throws -> ConnectionTracking {
        let open = try tracking ?? ConnectionTracking()
        tracking = open
        return open
    }

    /// Tries twice, connection tracking the second time with a new socket: a list that the kernel could not finish is no reason to give up addresses.
    ///
    /// - Returns: how many connections were forgotten; 0 after a failure, which is told once.
    private func run(_ part: Part, _ body: () throws -> Int) -> Int {
        var problem = ""
        for _ in 0..<2 {
            do {
                let count = try body()
                lastProblems[part] = nil
                return count
            } catch {
                if part == .tracking { tracking = nil }
                problem = "\(error)"
            }
        }
        if problem != lastProblems[part] {
            logger.warning(
                "the entries of ended connections cannot be deleted from \(part.rawValue)",
                metadata: ["error": "\(problem)"])
        }
        lastProblems[part] = problem
        return 0
    }
}

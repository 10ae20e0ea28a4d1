import Model
import TestSupport
import Testing

@testable import Netlink

extension KernelNamespace {
    struct ConnectionTrackingTests {
        private func address(_ last: UInt32) -> IPAddress { IPAddress(v4: 0x7F00_0000 + last) }

        /// Whoever looks for them, the kernel or this program.
        @Test(arguments: [true, false])
        func connectionsThatAnAddressOpensOrAnswersAreForgottenAndNoOthers(_ isFiltered: Bool) throws {
            let ways = [(2, 3), (4, 2), (4, 5)]
            defer { Shell.run("nft delete table ip tracked") }
            let sent = ways.map { "echo | socat -u - UDP:127.0.0.\($0.1):9,bind=127.0.0.\($0.0)" }
            let made = Shell.run(
                """
                set -e; ip link set lo up
                nft 'add table ip tracked; add chain ip tracked o { type filter hook output priority 0; }; add rule ip tracked o ct state new accept'
                \(sent.joined(separator: "; "))
                """)
            #expect(made.status == 0, "\(made.errors)")
            let tracking = try ConnectionTracking()
            #expect(try tracking.forget(of: [address(2)], isFiltered: isFiltered) == 2)
            #expect(try tracking.forget(of: [address(2)], isFiltered: isFiltered) == 0)
            #expect(try tracking.forget(of: [address(6), address(5)], isFiltered: isFiltered) == 1)
        }

        /// Addresses, connections, buckets; with which of the two ways the kernel has less to do.
        @Test(arguments: [
            (1, 10, 262_144, false), (1, 200_000, 262_144, true), (16, 10, 262_144, false),
            (16, 200_000, 262_144, true),
            (64, 200_000, 262_144, false), (1, 0, 0, false),
        ])
        func theSoonerWayIsTaken(_ addresses: Int, _ connections: Int, _ buckets: Int, _ isFiltered: Bool) {
            #expect(
                ConnectionTracking.isFilteredSooner(addresses: addresses, connections: connections, buckets: buckets)
                    == isFiltered)
        }
    }
}

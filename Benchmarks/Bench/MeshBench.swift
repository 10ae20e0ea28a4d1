import CLinux
import Foundation
import Model
import Planner

/// How long and how much memory a mesh takes to work out, for one node, from objects that were read before.
extension Bench {
    /// 100 to 20,000 nodes; half of the rounds for the gateway of the first location, half for a node that is none.
    static func mesh() {
        // The yardstick: sorting a million numbers, the same ones in every round.
        var state: UInt64 = 1
        let numbers = (0..<1_000_000).map { _ -> UInt64 in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state
        }
        let sizes = [(100, 5), (1_000, 20), (5_000, 50), (20_000, 100)]
        let inventories = sizes.map { inventory(nodes: $0.0, locations: $0.1) }
        var configuration = Configuration()
        configuration.mesh.enabled = true
        var yardstick: [Double] = []
        var topology = sizes.map { _ in [Double]() }
        var plans = sizes.map { _ in [Double]() }
        var bytes = sizes.map { _ in 0 }
        for round in 0..<10 {
            yardstick.append(milliseconds { precondition(numbers.sorted().count == numbers.count) })
            for (index, inventory) in inventories.enumerated() {
                topology[index].append(
                    milliseconds {
                        let result = MeshTopology(
                            configuration: configuration.mesh, nodes: inventory.nodes, peers: inventory.peers)
                        precondition(result.segments.count == sizes[index].1)
                    })
                let before = culvert_heap_bytes()
                var plan: Plan?
                plans[index].append(
                    milliseconds {
                        plan = Planner.plan(
                            configuration: configuration,
                            localFacts: LocalFacts(nodeName: round % 2 == 0 ? "n0" : "n\(sizes[index].1)"),
                            inventory: inventory, attachments: [])
                    })
                bytes[index] = max(bytes[index], culvert_heap_bytes() - before)
                precondition(plan?.host.routes.isEmpty == false)
            }
        }
        let unit = percentile(yardstick, 0.5)
        print("\nThe mesh worked out for one node, p50 of 10; yardstick (sorting a million numbers) \(text(unit)) ms")
        for (index, (nodes, locations)) in sizes.enumerated() {
            let whole = percentile(plans[index], 0.5)
            print(
                "  \(nodes) nodes in \(locations) locations: topology \(text(percentile(topology[index], 0.5))) ms,",
                "whole plan \(text(whole)) ms, \(text(whole / unit)) of the yardstick,",
                "\(text(whole * 1000 / Double(nodes))) us a node, plan of \(text(Double(bytes[index]) / 1_048_576)) MiB"
            )
        }
        let goal = percentile(plans[2], 0.5)
        print("  5,000 nodes: \(text(goal)) ms (goal: at most 7 ms)\(goal <= 7 ? "" : "  MISSED")")
    }

    static func milliseconds(_ body: () -> Void) -> Double {
        let elapsed = ContinuousClock().measure(body)
        return Double(elapsed.components.attoseconds) / 1e15 + Double(elapsed.components.seconds) * 1e3
    }

    /// Nodes with keys, spread over locations.
    static func inventory(nodes: Int, locations: Int) -> Inventory {
        var inventory = Inventory()
        for number in 0..<nodes {
            var node = Node(name: "n\(number)")
            node.mesh.location = "l\(number % locations)"
            let address = IPAddress(v4: 0x0A00_0000 + UInt32(number))
            node.mesh.privateAddress = InterfaceAddress(address)
            node.internalIPs = [address]
            node.podCIDRs = [IPNetwork(IPAddress(v4: 0x6400_0000 + UInt32(number) << 8), prefixLength: 24)]
            node.overlayAddresses = [IPAddress(v4: 0x6400_0001 + UInt32(number) << 8)]
            var key = [UInt8](repeating: 7, count: 32)
            key[0] = UInt8(truncatingIfNeeded: number)
            key[1] = UInt8(truncatingIfNeeded: number >> 8)
            node.mesh.key = WireGuardKey(bytes: key)
            if number < locations { node.externalIPs = [IPAddress(v4: 0xC633_0000 + UInt32(number))] }
            inventory.nodes[node.name] = node
        }
        return inventory
    }
}

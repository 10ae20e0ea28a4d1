import ArgumentParser
import FoundationEssentials
import Glibc
import Inventory
import Jansson
import Model
import Planner

/// The mesh as the helper sees it, or out of an inventory where one is named.
struct TopologyOptions: ParsableArguments {
    @OptionGroup var helper: HelperOptions
    @Option(help: "Directory of manifests to use instead of the helper.") var inventory: String?
    @Option(help: "Configuration file of the helper; only with --inventory.") var config: String?

    func topology() async throws -> JSON {
        guard let inventory else { return try await helper.get("/v1/topology") }
        let (configuration, content) = try OfflineInventory.read(inventory, config: config)
        let mesh = configuration.planner.mesh
        return MeshJSON.topology(
            MeshTopology(configuration: mesh, nodes: content.nodes, peers: content.peers), configuration: mesh)
    }
}

struct Peers: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List this node's WireGuard peers, with endpoint and handshake.",
        discussion: """
            Only the gateway of a location has peers.

            Example:
              culvertctl peers
            """)
    @OptionGroup var helper: HelperOptions

    func run() async throws {
        helper.show(try await helper.get("/v1/peers")) { value in
            let rows = value.elements ?? []
            guard !rows.isEmpty else {
                return "This node has no WireGuard peers: it is not its location's gateway, or there is no mesh.\n"
            }
            let now = Int64(Date().timeIntervalSince1970)
            return Table.render(
                ["NAME", "LOCATION", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "ALLOWED IPS"],
                rows.map { row in
                    [
                        Table.cell(row[PeerField.name]), Table.cell(row[PeerField.location]),
                        Table.cell(row[PeerField.endpoint]),
                        age(row[PeerField.lastHandshake]?.integer ?? 0, now: now),
                        bytes(row[PeerField.receivedBytes]?.integer ?? 0),
                        bytes(row[PeerField.sentBytes]?.integer ?? 0), Table.cell(row[PeerField.allowedIPs]),
                    ]
                })
        }
    }

    private func age(_ time: Int64, now: Int64) -> String {
        guard time > 0 else { return "never" }
        let seconds = max(0, now - time)
        return seconds < 120
            ? "\(seconds) s ago" : seconds < 7200 ? "\(seconds / 60) min ago" : "\(seconds / 3600) h ago"
    }

    private func bytes(_ count: Int64) -> String {
        var value = Double(count)
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if value < 1024 { return unit == "B" ? "\(count) B" : "\(Decimals.one(value)) \(unit)" }
            value /= 1024
        }
        return "\(Decimals.one(value)) TiB"
    }
}

struct MTU: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mtu",
        abstract: "Show the largest packet that reaches another location.",
        discussion: """
            There is one line for each layer. It also shows the MTU to set in Cilium, if Cilium itself joins the locations.

            Example:
              culvertctl mtu
            """)
    @OptionGroup var helper: HelperOptions

    func run() async throws {
        helper.show(try await helper.get("/v1/mtu")) { value in
            let lines = value.elements ?? []
            guard let last = lines.last?[PathMTUField.bytes]?.integer else { return "There is no mesh on this node.\n" }
            let table = Table.render(
                ["BYTES", "LARGEST IP PACKET"],
                lines.map { [Table.cell($0[PathMTUField.bytes]), Table.cell($0[PathMTUField.what])] })
            return table + "\n" + "Pods get routes with mtu \(last) to other locations.\n"
                + "Where Cilium itself joins the locations (one cluster, or a cluster mesh), its VXLAN is carried too:\n"
                + "set its MTU option to \(last) or less, which gives pods \(last - 50).\n"
        }
    }
}

struct Graph: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Draw the mesh: locations, gateways, tunnels and peers.",
        discussion: """
            With -o json or -o yaml it prints the data instead of a drawing.

            Examples:
              culvertctl graph | neato -Tpng > mesh.png
              culvertctl graph -f svg --inventory dump > mesh.svg
            """)
    enum Format: String, ExpressibleByArgument, CaseIterable { case dot, mermaid, svg }
    @OptionGroup var source: TopologyOptions
    @Option(name: [.short, .long], help: "Format of the drawing: dot (Graphviz), mermaid or svg.") var format = Format
        .dot

    func run() async throws {
        let topology = try await source.topology()
        switch source.helper.output {
        case .json: return print(topology.text(indent: 2))
        case .yaml: return print(YAMLText.render(topology), terminator: "")
        case .table: break
        }
        guard topology[TopologyField.segments]?.elements?.isEmpty == false else {
            throw Failure(
                "there is no mesh to draw: no node has a WireGuard key (set mesh.enabled in the configuration of the helpers, which then make the keys)"
            )
        }
        let mesh = MeshDrawing(topology)
        switch format {
        case .dot: print(mesh.dot, terminator: "")
        case .mermaid: print(mesh.mermaid, terminator: "")
        case .svg: print(mesh.svg, terminator: "")
        }
    }
}

struct ShowConf: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "showconf",
        abstract: "Print the WireGuard configuration of a node or a peer.",
        discussion: """
            The format is that of wg-quick. Private keys and preshared keys are never printed.

            Examples:
              culvertctl showconf peer laptop > laptop.conf
              culvertctl showconf node worker-1 --as-peer -o yaml
            """)
    enum Kind: String, ExpressibleByArgument, CaseIterable { case node, peer }
    @Argument(help: "What to print the configuration of: node or peer.") var kind: Kind
    @Argument(help: "Name of the node or peer.") var name: String
    @Flag(help: "Print it as another host needs it: one [Peer] section, or with -o yaml a Peer object.") var asPeer =
        false
    @OptionGroup var source: TopologyOptions

    func run() async throws {
        let topology = try await source.topology()
        let conf = try WireGuardConf(topology, kind: kind, name: name)
        if asPeer {
            switch source.helper.output {
            case .yaml: print(YAMLText.render(conf.peerObject), terminator: "")
            case .json: print(conf.peerObject.text(indent: 2))
            case .table: print(conf.asPeer, terminator: "")
            }
        } else {
            print(conf.text, terminator: "")
        }
    }
}

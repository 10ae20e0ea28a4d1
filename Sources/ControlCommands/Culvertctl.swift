import ArgumentParser
import AsyncHTTPClient
import CNI
import FoundationEssentials
import Glibc
import Installer
import Inventory
import Jansson
import Model
import NIOCore
import Planner

/// The command line for people. It is a module of its own because two programs have it: `culvertctl`, and `culvertd` under
/// that name.
public struct Culvertctl: AsyncParsableCommand {
    /// The name, and the commands.
    public static let configuration = CommandConfiguration(
        commandName: "culvertctl", abstract: "Show what Culvert does on a node, or what it would do.",
        discussion: """
            status, nodes, policies, attachments, gateway, diff, peers, mtu and ready ask the helper of this node over \
            its socket, so this user must be root, or a member of the socket's group. plan needs no helper: it reads a \
            directory of manifests. graph and showconf can do both.

            Examples:
              culvertctl status
              culvertctl attachments -o json
              culvertctl plan --inventory dump --node worker-1 -o table
            """,
        version: CulvertRelease.version,
        subcommands: [
            StatusCommand.self, Nodes.self, Policies.self, Attachments.self, GatewayCommand.self, Diff.self,
            PlanCommand.self, Peers.self, ReadyCommand.self,
            MTU.self, Graph.self, ShowConf.self,
        ])

    /// For the parser of the command line.
    public init() {}
}

enum OutputFormat: String, ExpressibleByArgument, CaseIterable { case table, json, yaml }

struct HelperOptions: ParsableArguments {
    @Option(help: "Run directory of the helper, where api.sock is.") var runDir = "/run/culvert"
    @Option(name: [.short, .long], help: "Output format: table, json or yaml.") var output = OutputFormat.table

    /// One GET of the helper's API.
    func get(_ path: String) async throws -> JSON {
        let socket = runDir + "/api.sock"
        let client = HTTPClient(eventLoopGroupProvider: .singleton)
        defer { Task { try? await client.shutdown() } }
        guard let url = URL(httpURLWithSocketPath: socket, uri: path) else {
            throw ValidationError("\(socket) is not a valid path for a socket")
        }
        do {
            let response = try await client.execute(
                HTTPClientRequest(url: url.absoluteString), timeout: .seconds(10))
            let body = try await response.body.collect(upTo: 256 * 1024 * 1024)
            let value = try JSON.parse([UInt8](body.readableBytesView))
            if response.status != .ok {
                throw Failure("culvertd: \(value[ErrorField.error]?.string ?? "\(response.status)")")
            }
            return value
        } catch let error as Failure { throw error } catch {
            throw Failure(
                "culvertd cannot be reached at \(socket): is it running, and may this user open the socket? (\(error))")
        }
    }

    func show(_ value: JSON, table: (JSON) -> String) {
        switch output {
        case .table: print(table(value), terminator: "")
        case .json: print(value.text(indent: 2))
        case .yaml: print(YAMLText.render(value), terminator: "")
        }
    }
}

struct Failure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// Columns of text under their headings.
enum Table {
    static func render(_ headings: [String], _ rows: [[String]]) -> String {
        var widths = headings.map(\.count)
        for row in rows { for (column, cell) in row.enumerated() { widths[column] = max(widths[column], cell.count) } }
        return ([headings] + rows).map { row in
            let line = row.enumerated().map { column, cell in
                column == row.count - 1 ? cell : cell + String(repeating: " ", count: widths[column] - cell.count)
            }.joined(separator: "  ")
            return line + "\n"
        }.joined()
    }

    static func cell(_ value: JSON?) -> String {
        switch value {
        case .string(let text)?: return text.isEmpty ? "-" : text
        case .integer(let number)?: return "\(number)"
        case .bool(let flag)?: return flag ? "yes" : "no"
        case .array(let elements)?:
            return elements.isEmpty ? "-" : elements.map { cell($0) }.joined(separator: ",")
        default: return "-"
        }
    }
}

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show the state of this node, and what is wrong with it.",
        discussion: """
            The first line is OK, DEGRADED or HELD, with the reasons. The exit code is 0 for OK and 1 for the others.

            Examples:
              culvertctl status
              culvertctl status -o json | jq -r '.warnings[]'
            """)
    @OptionGroup var helper: HelperOptions

    func run() async throws {
        let status = try await helper.get("/v1/status")
        let attachments = try await helper.get("/v1/attachments")
        helper.show(status) { status in
            let reasons = (status[StatusField.reasons]?.elements ?? []).compactMap(\.string)
            var text =
                Table.cell(status[StatusField.summary])
                + (reasons.isEmpty ? "" : ": " + reasons.joined(separator: "; ")) + "\n\n"
            let lines: [(String, StatusField)] = [
                ("Node", .node), ("Datapath", .datapath), ("Protocol", .tunnelProtocol),
                ("Overlay address", .overlayAddress), ("Underlay", .underlay), ("Underlay MTU", .underlayMTU),
                ("Nodes", .nodes), ("Policies", .policies), ("Attachments", .attachments), ("Adopted", .adopted),
            ]
            for (label, key) in lines {
                text += "\(label):" + String(repeating: " ", count: 17 - label.count) + Table.cell(status[key])
                text += (key == .adopted ? AdoptionText.counts(status[StatusField.adoptedBecause]) : "") + "\n"
            }
            let repairs = (status[StatusField.repairs]?.members ?? []).map { "\($0.key) \(Table.cell($0.value))" }
            if !repairs.isEmpty {
                text += "Put back:         \(repairs.joined(separator: ", ")) (another program changes them)\n"
            }
            if let inventory = status[StatusField.inventory] {
                text += "Inventory:        \(InventoryText.line(inventory))\n"
            }
            if let chain = status[StatusField.chain].flatMap({ ChainState($0) }) {
                text += "Chain:            \(chain.line)\n"
            }
            if let rows = attachments.elements, !rows.isEmpty { text += "\n" + AttachmentTable.render(rows) }
            let counted = (status[StatusField.firewall]?.elements ?? []).filter {
                ($0[CounterField.packets]?.integer ?? 0) > 0
            }
            if !counted.isEmpty {
                text +=
                    "\n"
                    + Table.render(
                        ["TUNNEL PACKETS", "PACKETS", "BYTES"],
                        counted.map { row in [CounterField.rule, .packets, .bytes].map { Table.cell(row[$0]) } })
            }
            let lists: [(String, StatusField)] = [
                ("Warnings", .warnings), ("Inventory problems", .inventoryProblems),
            ]
            for (heading, key) in lists {
                let list = status[key]?.elements ?? []
                if !list.isEmpty { text += "\n\(heading):\n" + list.map { "  - \(Table.cell($0))\n" }.joined() }
            }
            return text
        }
        // Scripts use the exit code.
        if status[StatusField.summary]?.string != "OK" { throw ExitCode(1) }
    }
}

/// Why pods were adopted, in a few words.
enum AdoptionText {
    private static let words = [
        "pluginNotCalled": "the plugin was not called", "beforeCulvert": "there before Culvert",
        "notKnown": "why is not known",
    ]
    static func counts(_ counts: JSON?) -> String {
        let parts = (counts?.members ?? []).map { "\(Table.cell($0.value)) \(words[$0.key] ?? $0.key)" }
        return parts.isEmpty ? "" : " (\(parts.joined(separator: ", ")))"
    }
    static func note(_ row: JSON) -> String {
        "adopted" + (row[AttachmentField.adoption]?.string.map { ": \(words[$0] ?? $0)" } ?? "")
    }
}

/// Where the inventory comes from, in a line.
enum InventoryText {
    static func line(_ inventory: JSON) -> String {
        let place = inventory[SourceField.server] ?? inventory[SourceField.path] ?? inventory[SourceField.endpoints]
        var text = Table.cell(inventory[SourceField.source]) + (place.map { ", " + Table.cell($0) } ?? "")
        if let age = inventory[SourceField.fromDiskSeconds]?.integer {
            text += ", NOT REACHED: from disk, \(age) s old"
        } else if inventory[SourceField.synchronized]?.bool == false {
            text += ", not read yet"
        }
        let lookups = (inventory[SourceField.podLookups]?.members ?? []).map {
            "\($0.key) \(Table.cell($0.value[PodLookupField.count]))"
        }
        let notices = (inventory[SourceField.notices]?.elements ?? []).compactMap(\.string)
        if !notices.isEmpty { text += "\n" + notices.map { "                  \($0)" }.joined(separator: "\n") }
        return text + (lookups.isEmpty ? "" : "; pods identified by " + lookups.joined(separator: ", "))
    }
}

struct Nodes: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the cluster's nodes as the helper knows them.",
        discussion: """
            Example:
              culvertctl nodes
            """)
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        helper.show(try await helper.get("/v1/nodes")) { value in
            Table.render(
                ["NAME", "SELF", "INTERNAL-IP", "OVERLAY", "POD CIDRS", "GATEWAY FOR"],
                (value.elements ?? []).map { row in
                    [NodeField.name, .isSelf, .internalIP, .overlayAddress, .podCIDRs, .gatewayFor].map {
                        Table.cell(row[$0])
                    }
                })
        }
    }
}

struct Policies: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the policies, their gateways, and why a policy is not in force.",
        discussion: """
            ATTACHMENTS counts the pods of this node only.

            Example:
              culvertctl policies
            """)
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        helper.show(try await helper.get("/v1/policies")) { value in
            Table.render(
                ["NAME", "KIND", "GATEWAY", "EGRESS", "ATTACHMENTS", "DESTINATIONS", "PROBLEM"],
                (value.elements ?? []).map { row in
                    [
                        PolicyField.name, .kind, .gateway, .egressAddress, .attachments, .destinationCIDRs, .problem,
                    ].map { Table.cell(row[$0]) }
                })
        }
    }
}

enum AttachmentTable {
    static func render(_ rows: [JSON]) -> String {
        Table.render(
            ["POD", "ADDRESS", "POLICY", "GATEWAY", "EGRESS", "TABLE", "MTU", "NOTE"],
            rows.map { row in
                let name = row[AttachmentField.name]?.string ?? ""
                let namespace = row[AttachmentField.namespace]?.string ?? ""
                let pod =
                    name.isEmpty
                    ? Table.cell(row[AttachmentField.containerID]) : namespace.isEmpty ? name : "\(namespace)/\(name)"
                let policies = row[AttachmentField.policies]?.elements ?? []
                func list(_ key: AttachmentPolicyField) -> String {
                    policies.isEmpty ? "-" : policies.map { Table.cell($0[key]) }.joined(separator: ",")
                }
                let held = row[AttachmentField.held]?.bool == true ? "HELD: " : "keeps what it had: "
                let note =
                    row[AttachmentField.holds]?.elements?.first?.string.map { held + $0 } ?? row[
                        AttachmentField.refused]?.string
                    ?? (row[AttachmentField.adopted]?.bool == true
                        ? AdoptionText.note(row) : row[AttachmentField.uncovered] != nil ? "IPv6 not covered" : "-")
                return [
                    pod, Table.cell(row[AttachmentField.addresses]), list(.name), list(.gateway), list(.egressAddress),
                    Table.cell(row[AttachmentField.table]), Table.cell(row[AttachmentField.mtu]), note,
                ]
            })
    }
}

struct Attachments: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List this node's pods with their policies, gateways and tables.",
        discussion: """
            Example:
              culvertctl attachments
            """)
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        helper.show(try await helper.get("/v1/attachments")) { AttachmentTable.render($0.elements ?? []) }
    }
}

struct Diff: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show the steps that would make the kernel equal to the plan.",
        discussion: """
            Prints [] and exits 0 when there are none. Otherwise it prints one step per line and exits 1.

            Example:
              culvertctl diff
            """)
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        let value = try await helper.get("/v1/diff")
        let isEmpty = (value.elements ?? []).isEmpty
        helper.show(value) { value in
            isEmpty ? "[]\n" : (value.elements ?? []).map { Table.cell($0) + "\n" }.joined()
        }
        if !isEmpty { throw ExitCode(1) }
    }
}

/// An inventory on a desk: no helper, no root.
enum OfflineInventory {
    /// What is wrong with single objects goes to stderr.
    ///
    /// - Throws: where the configuration cannot be read.
    static func read(_ directory: String, config: String?) throws -> (HelperConfiguration, Inventory) {
        var configuration = HelperConfiguration()
        if let config { configuration = try HelperConfiguration(contentsOf: config) }
        var files = FileInventory(directory: directory)
        let content = files.read()
        for problem in content.problems {
            StandardError.write("culvertctl: \(problem)\n")
        }
        guard content.unknown.isEmpty else {
            throw Failure("the inventory is not known completely: \(content.unknown.joined(separator: "; "))")
        }
        return (configuration, content)
    }
}

struct PlanCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plan",
        abstract: "Show what Culvert would program on a node, from manifests alone.",
        discussion: """
            It needs no helper, no root and no cluster. If a policy or a pod is refused, the exit code is 1, and stderr \
            names each of them.

            Examples:
              culvertctl plan --inventory dump --node worker-1 -o table
              culvertctl plan --inventory /etc/culvert/inventory.d --node worker-1
            """)
    @Option(help: "Directory of manifests.") var inventory: String
    @Option(help: "Name of the node.") var node: String
    @Option(help: "Configuration file of the helper. (default: every setting has its default value)") var config:
        String?
    @Option(name: [.short, .long], help: "Output format: json, yaml or table.") var output = OutputFormat.json

    func run() throws {
        let (configuration, content) = try OfflineInventory.read(inventory, config: config)
        guard content.nodes[node] != nil else {
            throw Failure(
                "the inventory in \(inventory) has no node \"\(node)\"; it has \(content.nodes.keys.sorted().joined(separator: ", "))"
            )
        }
        let plan = Planner.plan(
            configuration: configuration.planner, localFacts: LocalFacts(nodeName: node), inventory: content,
            attachments: Planner.adoptedAttachments(
                inventory: content, nodeName: node, attached: [],
                defaultPolicy: configuration.planner.defaultPolicy ?? ""),
            expected: Planner.expectedAttachments(inventory: content, nodeName: node, attached: []))
        let value = PlanJSON.render(plan)
        switch output {
        case .json: print(value.text(indent: 2))
        case .yaml: print(YAMLText.render(value), terminator: "")
        case .table: print(AttachmentTable.render(value[PlanField.attachments]?.elements ?? []), terminator: "")
        }
        let refused =
            plan.policies.compactMap { policy in
                policy.refusal.map { "\(policy.source.rawValue) \(policy.name) is refused: \($0)" }
            }
            + plan.attachments.filter { !$0.refusal.isEmpty }.map { "\($0.attachment.displayName): \($0.refusal)" }
        for line in refused { StandardError.write("culvertctl: \(line)\n") }
        // Scripts ask whether all of the inventory can be carried out.
        if !refused.isEmpty { throw ExitCode(1) }
    }
}

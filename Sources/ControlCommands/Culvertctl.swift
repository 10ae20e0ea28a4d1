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
        commandName: "culvertctl", abstract: "Shows what Culvert does on a node, and what it would do.",
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
    @Option(name: [.short, .long], help: "table, json or yaml.") var output = OutputFormat.table

    /// One GET of the helper's API.
    func get(_ path: String) async throws -> JSON {
        let socket = runDir + "/api.sock"
        let client = HTTPClient(eventLoopGroupProvider: .singleton)
        defer { Task { try? await client.shutdown() } }
        guard let url = URL(httpURLWithSocketPath: socket, uri: path) else {
            throw ValidationError("\(socket) is no path of a socket")
        }
        do {
            let response = try await client.execute(
                HTTPClientRequest(url: url.absoluteString), timeout: .seconds(10))
            let body = try await response.body.collect(upTo: 256 * 1024 * 1024)
            let value = try JSON.parse([UInt8](body.readableBytesView))
            if response.status != .ok { throw Failure("culvertd: \(value["error"]?.string ?? "\(response.status)")") }
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
        commandName: "status", abstract: "How this node is, and what is wrong.")
    @OptionGroup var helper: HelperOptions

    func run() async throws {
        let status = try await helper.get("/v1/status")
        let attachments = try await helper.get("/v1/attachments")
        helper.show(status) { status in
            let reasons = (status["reasons"]?.elements ?? []).compactMap(\.string)
            var text =
                Table.cell(status["summary"]) + (reasons.isEmpty ? "" : ": " + reasons.joined(separator: "; ")) + "\n\n"
            for (label, key) in [
                ("Node", "node"), ("Datapath", "datapath"), ("Protocol", "protocol"),
                ("Overlay address", "overlayAddress"),
                ("Underlay", "underlay"), ("Underlay MTU", "underlayMTU"), ("Nodes", "nodes"), ("Policies", "policies"),
                ("Attachments", "attachments"), ("Adopted", "adopted"),
            ] {
                text += "\(label):" + String(repeating: " ", count: 17 - label.count) + Table.cell(status[key])
                text += (key == "adopted" ? AdoptionText.counts(status["adoptedBecause"]) : "") + "\n"
            }
            let repairs = (status["repairs"]?.members ?? []).map { "\($0.key) \(Table.cell($0.value))" }
            if !repairs.isEmpty {
                text += "Put back:         \(repairs.joined(separator: ", ")) (somebody else keeps changing them)\n"
            }
            if let inventory = status["inventory"] { text += "Inventory:        \(InventoryText.line(inventory))\n" }
            if let chain = status["chain"].flatMap({ ChainState($0) }) { text += "Chain:            \(chain.line)\n" }
            if let rows = attachments.elements, !rows.isEmpty { text += "\n" + AttachmentTable.render(rows) }
            let counted = (status["firewall"]?.elements ?? []).filter { ($0["packets"]?.integer ?? 0) > 0 }
            if !counted.isEmpty {
                text +=
                    "\n"
                    + Table.render(
                        ["TUNNEL PACKETS", "PACKETS", "BYTES"],
                        counted.map { [Table.cell($0["rule"]), Table.cell($0["packets"]), Table.cell($0["bytes"])] })
            }
            for (heading, key) in [("Warnings", "warnings"), ("Inventory problems", "inventoryProblems")] {
                let list = status[key]?.elements ?? []
                if !list.isEmpty { text += "\n\(heading):\n" + list.map { "  - \(Table.cell($0))\n" }.joined() }
            }
            return text
        }
        // Scripts ask whether all is well.
        if status["summary"]?.string != "OK" { throw ExitCode(1) }
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
        "adopted" + (row["adoption"]?.string.map { ": \(words[$0] ?? $0)" } ?? "")
    }
}

/// Where the inventory comes from, in a line.
enum InventoryText {
    static func line(_ inventory: JSON) -> String {
        let place = inventory["server"] ?? inventory["path"] ?? inventory["endpoints"]
        var text = Table.cell(inventory["source"]) + (place.map { ", " + Table.cell($0) } ?? "")
        if let age = inventory["fromDiskSeconds"]?.integer {
            text += ", NOT REACHED: from disk, \(age) s old"
        } else if inventory["synchronized"]?.bool == false {
            text += ", not read yet"
        }
        let lookups = (inventory["podLookups"]?.members ?? []).map { "\($0.key) \(Table.cell($0.value["count"]))" }
        let notices = (inventory["notices"]?.elements ?? []).compactMap(\.string)
        if !notices.isEmpty { text += "\n" + notices.map { "                  \($0)" }.joined(separator: "\n") }
        return text + (lookups.isEmpty ? "" : "; pods judged by " + lookups.joined(separator: ", "))
    }
}

struct Nodes: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "The cluster's nodes.")
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        helper.show(try await helper.get("/v1/nodes")) { value in
            Table.render(
                ["NAME", "SELF", "INTERNAL-IP", "OVERLAY", "POD CIDRS", "GATEWAY FOR"],
                (value.elements ?? []).map { row in
                    ["name", "self", "internalIP", "overlayAddress", "podCIDRs", "gatewayFor"].map {
                        Table.cell(row[$0])
                    }
                })
        }
    }
}

struct Policies: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Policies and their gateways.")
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        helper.show(try await helper.get("/v1/policies")) { value in
            Table.render(
                ["NAME", "KIND", "GATEWAY", "EGRESS", "ATTACHMENTS", "DESTINATIONS", "PROBLEM"],
                (value.elements ?? []).map { row in
                    ["name", "kind", "gateway", "egressAddress", "attachments", "destinationCIDRs", "problem"].map {
                        Table.cell(row[$0])
                    }
                })
        }
    }
}

enum AttachmentTable {
    static func render(_ rows: [JSON]) -> String {
        Table.render(
            ["POD", "ADDRESS", "POLICY", "GATEWAY", "EGRESS", "TABLE", "MTU", "NOTE"],
            rows.map { row in
                let name = row["name"]?.string ?? ""
                let namespace = row["namespace"]?.string ?? ""
                let pod =
                    name.isEmpty ? Table.cell(row["containerID"]) : namespace.isEmpty ? name : "\(namespace)/\(name)"
                let policies = row["policies"]?.elements ?? []
                func list(_ key: String) -> String {
                    policies.isEmpty ? "-" : policies.map { Table.cell($0[key]) }.joined(separator: ",")
                }
                let held = row["held"]?.bool == true ? "HELD: " : "keeps what it had: "
                let note =
                    row["holds"]?.elements?.first?.string.map { held + $0 } ?? row["refused"]?.string
                    ?? (row["adopted"]?.bool == true
                        ? AdoptionText.note(row) : row["uncovered"] != nil ? "IPv6 not covered" : "-")
                return [
                    pod, Table.cell(row["addresses"]), list("name"), list("gateway"), list("egressAddress"),
                    Table.cell(row["table"]), Table.cell(row["mtu"]), note,
                ]
            })
    }
}

struct Attachments: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "This node's pods and what each of them gets.")
    @OptionGroup var helper: HelperOptions
    func run() async throws {
        helper.show(try await helper.get("/v1/attachments")) { AttachmentTable.render($0.elements ?? []) }
    }
}

struct Diff: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "What the kernel has other than the plan: exit 0 and [] when they are equal, else 1.")
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
        abstract:
            "What Culvert would program on a node, from an inventory alone: no helper, no root. Exit 1 where a policy, or a pod, is refused."
    )
    @Option(help: "Directory of manifests.") var inventory: String
    @Option(help: "Name of the node.") var node: String
    @Option(help: "Configuration file of the helper.") var config: String?
    @Option(name: [.short, .long], help: "json, yaml or table.") var output = OutputFormat.json

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
                defaultPolicy: configuration.planner.defaultPolicy ?? ""))
        let value = PlanJSON.render(plan)
        switch output {
        case .json: print(value.text(indent: 2))
        case .yaml: print(YAMLText.render(value), terminator: "")
        case .table: print(AttachmentTable.render(value["attachments"]?.elements ?? []), terminator: "")
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

import ArgumentParser
import Jansson
import Model

struct GatewayCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "gateway", abstract: "Show the gateways of this node's policies.",
        discussion: """
            Example:
              culvertctl gateway list
            """,
        subcommands: [GatewayList.self], defaultSubcommand: GatewayList.self)
}

struct GatewayList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List the gateway of each policy, its candidates and last changes.",
        discussion: """
            Only policies that a pod of this node uses are listed.

            Example:
              culvertctl gateway list
            """)
    @OptionGroup var helper: HelperOptions

    func run() async throws {
        helper.show(try await helper.get("/v1/gateways")) { value in
            var text = Table.render(
                ["POLICY", "GATEWAY", "UP", "SINCE", "PODS", "CANDIDATES"],
                (value[GatewaysField.slots]?.elements ?? []).map { slot in
                    let candidates = slot[SlotField.candidates]?.elements ?? []
                    return [
                        Table.cell(slot[SlotField.policy]), slot[SlotField.gateway]?.string ?? "none",
                        "\(Table.cell(slot[SlotField.up])) of \(candidates.count)",
                        GatewayList.age(slot[SlotField.sinceSeconds]),
                        Table.cell(slot[SlotField.pods]), candidates.map(GatewayList.candidate).joined(separator: ", "),
                    ]
                })
            if let obstacle = value[GatewaysField.obstacle]?.string, !obstacle.isEmpty {
                text += "\nNo echo can be sent, so it is not known which gateways are alive: \(obstacle)\n"
            }
            let changes = value[GatewaysField.changes]?.elements ?? []
            if !changes.isEmpty {
                text +=
                    "\n"
                    + Table.render(
                        ["LAST CHANGES", "POLICY", "FROM", "TO", "WHY"],
                        changes.prefix(10).map { change in
                            [
                                Table.cell(change[GatewayChangeField.at]),
                                Table.cell(change[GatewayChangeField.policy]),
                                change[GatewayChangeField.from]?.string ?? "none",
                                change[GatewayChangeField.to]?.string ?? "none",
                                Table.cell(change[GatewayChangeField.why]),
                            ]
                        })
            }
            return text
        }
    }

    private static func candidate(_ value: JSON) -> String {
        var text =
            "\(Table.cell(value[CandidateField.node])) \(value[CandidateField.isSelf]?.bool == true ? "here" : Table.cell(value[CandidateField.state]))"
        if value[CandidateField.state]?.string == "up", let time = value[CandidateField.roundTripMilliseconds]?.double {
            text += " \((time * 10).rounded() / 10)ms"
        }
        if let asked = value[CandidateField.askedMilliseconds]?.integer,
            let detection = value[CandidateField.detectionMilliseconds]?.integer
        {
            text += " (asks for \(asked)ms: down after \(detection)ms)"
        }
        return text
    }

    private static func age(_ value: JSON?) -> String {
        guard let seconds = value?.double else { return "-" }
        let whole = Int(seconds)
        if whole < 120 { return "\(whole)s" }
        return whole < 7200 ? "\(whole / 60)m" : whole < 172_800 ? "\(whole / 3600)h" : "\(whole / 86_400)d"
    }
}

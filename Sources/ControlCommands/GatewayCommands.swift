import ArgumentParser
import Jansson

struct GatewayCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "gateway", abstract: "The gateways of this node's policies.",
        subcommands: [GatewayList.self], defaultSubcommand: GatewayList.self)
}

struct GatewayList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "Where each policy's packets go at the moment, since when, and how the candidates are.")
    @OptionGroup var helper: HelperOptions

    func run() async throws {
        helper.show(try await helper.get("/v1/gateways")) { value in
            var text = Table.render(
                ["POLICY", "GATEWAY", "UP", "SINCE", "PODS", "CANDIDATES"],
                (value["slots"]?.elements ?? []).map { slot in
                    let candidates = slot["candidates"]?.elements ?? []
                    return [
                        Table.cell(slot["policy"]), slot["gateway"]?.string ?? "none",
                        "\(Table.cell(slot["up"])) of \(candidates.count)", GatewayList.age(slot["sinceSeconds"]),
                        Table.cell(slot["pods"]), candidates.map(GatewayList.candidate).joined(separator: ", "),
                    ]
                })
            if let obstacle = value["obstacle"]?.string, !obstacle.isEmpty {
                text += "\nNo echo can be sent, so nobody knows which gateways are alive: \(obstacle)\n"
            }
            let changes = value["changes"]?.elements ?? []
            if !changes.isEmpty {
                text +=
                    "\n"
                    + Table.render(
                        ["LAST CHANGES", "POLICY", "FROM", "TO", "WHY"],
                        changes.prefix(10).map { change in
                            [
                                Table.cell(change["at"]), Table.cell(change["policy"]),
                                change["from"]?.string ?? "none", change["to"]?.string ?? "none",
                                Table.cell(change["why"]),
                            ]
                        })
            }
            return text
        }
    }

    private static func candidate(_ value: JSON) -> String {
        var text = "\(Table.cell(value["node"])) \(value["self"]?.bool == true ? "here" : Table.cell(value["state"]))"
        if value["state"]?.string == "up", let time = value["roundTripMilliseconds"]?.double {
            text += " \((time * 10).rounded() / 10)ms"
        }
        if let asked = value["askedMilliseconds"]?.integer, let detection = value["detectionMilliseconds"]?.integer {
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

import FoundationEssentials
import Glibc
import Jansson
import Model

/// The mesh as a drawing, from the topology's JSON.
struct MeshDrawing {
    private struct Segment {
        let key: String
        let title: String
        let gateway: String
        let address: String
        let endpoint: String
        let nodes: [(name: String, address: String)]
        let locationIPs: [String]
    }
    private let segments: [Segment]
    private let peers: [(name: String, networks: String)]

    init(_ topology: JSON) {
        segments = (topology[TopologyField.segments]?.elements ?? []).map { value in
            let key = value[SegmentField.key]?.string ?? ""
            let name = String(key.drop { $0 != ":" }.dropFirst())
            return Segment(
                key: key, title: name.isEmpty ? "(no location)" : name,
                gateway: value[SegmentField.gateway]?.string ?? "",
                address: value[SegmentField.wireGuardAddress]?.string ?? "",
                endpoint: value[SegmentField.endpoint]?.string ?? "",
                nodes: (value[SegmentField.nodes]?.elements ?? []).map {
                    ($0[SegmentNodeField.name]?.string ?? "", $0[SegmentNodeField.privateAddress]?.string ?? "")
                },
                locationIPs: (value[SegmentField.allowedLocationIPs]?.elements ?? []).compactMap(\.string))
        }
        peers = (topology[TopologyField.peers]?.elements ?? []).map { value in
            (
                value[MeshPeerField.name]?.string ?? "",
                (value[MeshPeerField.allowedIPs]?.elements ?? []).compactMap(\.string).joined(separator: ", ")
            )
        }
    }

    private static func quoted(_ text: String) -> String {
        "\"" + text.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"") + "\""
    }

    // MARK: Graphviz

    var dot: String {
        var text = "graph culvert {\n  layout=neato; overlap=false; splines=true; sep=\"+20\";\n"
        text += "  node [shape=box, style=\"rounded,filled\", fillcolor=white, fontname=\"sans-serif\"];\n"
        for (index, segment) in segments.enumerated() {
            text += "  subgraph cluster_\(index) {\n    label=\(Self.quoted(segment.title)); style=rounded;\n"
            for node in segment.nodes {
                let isGateway = node.name == segment.gateway
                let label = ([node.name, node.address] + (isGateway ? [segment.address] : [])).joined(separator: "\n")
                    .replacing("\n", with: "\\n")
                text +=
                    "    \(Self.quoted(node.name)) [label=\"\(label)\"\(isGateway ? ", fillcolor=\"#d6e9f8\"" : "")];\n"
            }
            for node in segment.nodes where node.name != segment.gateway {
                text += "    \(Self.quoted(node.name)) -- \(Self.quoted(segment.gateway)) [style=dashed];\n"
            }
            text += "  }\n"
        }
        for (index, segment) in segments.enumerated() {
            for other in segments.dropFirst(index + 1) {
                text +=
                    "  \(Self.quoted(segment.gateway)) -- \(Self.quoted(other.gateway)) [penwidth=2, color=\"#2a78b5\"];\n"
            }
            for peer in peers {
                text +=
                    "  \(Self.quoted(segment.gateway)) -- \(Self.quoted("peer " + peer.name)) [color=\"#8a6d3b\"];\n"
            }
        }
        for peer in peers {
            text +=
                "  \(Self.quoted("peer " + peer.name)) [shape=ellipse, label=\"\(peer.name)\\n\(peer.networks)\"];\n"
        }
        return text + "}\n"
    }

    // MARK: Mermaid

    var mermaid: String {
        var text = "graph LR\n"
        var ids: [String: String] = [:]
        for (index, segment) in segments.enumerated() {
            text += "  subgraph s\(index)[\(Self.quoted(segment.title))]\n"
            for (number, node) in segment.nodes.enumerated() {
                let id = "s\(index)n\(number)"
                ids[node.name] = id
                let label = ([node.name, node.address] + (node.name == segment.gateway ? [segment.address] : []))
                    .joined(separator: "<br/>")
                text += "    \(id)[\(Self.quoted(label))]\n"
            }
            text += "  end\n"
            for node in segment.nodes where node.name != segment.gateway {
                text += "  \(ids[node.name] ?? "") -.- \(ids[segment.gateway] ?? "")\n"
            }
        }
        for (index, segment) in segments.enumerated() {
            for other in segments.dropFirst(index + 1) {
                text += "  \(ids[segment.gateway] ?? "") === \(ids[other.gateway] ?? "")\n"
            }
        }
        for (number, peer) in peers.enumerated() {
            text += "  p\(number)([\(Self.quoted(peer.name + "<br/>" + peer.networks))])\n"
            for segment in segments { text += "  \(ids[segment.gateway] ?? "") --- p\(number)\n" }
        }
        return text
    }

    // MARK: SVG

    /// Locations on a ring, each a box with its nodes, the gateway first; tunnels between gateways as lines behind them.
    var svg: String {
        let shown = 6
        struct Box {
            var x = 0.0
            var y = 0.0
            let width: Double
            let height: Double
        }
        func lines(_ segment: Segment) -> [(name: String, detail: String, isGateway: Bool)] {
            let gateway = segment.nodes.filter { $0.name == segment.gateway }
            let others = segment.nodes.filter { $0.name != segment.gateway }
            var result = gateway.map { ($0.name, $0.address, true) }
            result += others.prefix(shown).map { ($0.name, $0.address, false) }
            if others.count > shown { result.append(("and \(others.count - shown) more", "", false)) }
            return result
        }
        func textWidth(_ text: String, _ size: Double) -> Double { Double(text.count) * size * 0.6 }
        var boxes = segments.map { segment -> Box in
            let list = lines(segment)
            let widest =
                ([textWidth(segment.title, 15)]
                + list.map { textWidth($0.name, 13) + textWidth($0.detail, 11) + 30 }
                + [textWidth("WireGuard " + segment.address + "  " + segment.endpoint, 11)]
                + segment.locationIPs.map { textWidth("also " + $0, 11) }).max() ?? 0
            return Box(
                width: max(170, widest + 32),
                height: 62 + Double(list.count) * 26 + Double(segment.locationIPs.count) * 17)
        }
        let peerBoxes = peers.map { peer in
            Box(width: max(120, max(textWidth(peer.name, 13), textWidth(peer.networks, 11)) + 32), height: 48)
        }
        // The ring is as wide as its boxes need.
        let count = boxes.count + peerBoxes.count
        let all = boxes + peerBoxes
        let around = all.map { max($0.width, $0.height) + 46 }.reduce(0, +)
        let radius = count <= 1 ? 0 : max(around / (2 * .pi), (all.map(\.width).max() ?? 0) * 0.62 + 40)
        let margin = 40.0
        let reachX = radius * 1.15 + (all.map(\.width).max() ?? 0) / 2
        let reachY = radius * (count == 2 ? 0 : 0.8) + (all.map(\.height).max() ?? 0) / 2
        let width = 2 * (reachX + margin)
        let height = 2 * (reachY + margin) + 34
        let centre = (x: width / 2, y: height / 2 - 10)
        func place(_ index: Int) -> (Double, Double) {
            let angle = (count == 2 ? .pi : -.pi / 2) + 2 * .pi * Double(index) / Double(max(1, count))
            return (centre.x + radius * 1.15 * cos(angle), centre.y + radius * (count == 2 ? 0 : 0.8) * sin(angle))
        }
        for index in boxes.indices { (boxes[index].x, boxes[index].y) = place(index) }

        func escape(_ text: String) -> String {
            text.replacing("&", with: "&amp;").replacing("<", with: "&lt;")
                .replacing(">", with: "&gt;")
        }
        func number(_ value: Double) -> String { Decimals.one(value) }
        func text(_ content: String, _ x: Double, _ y: Double, size: Int, fill: String, more: String = "") -> String {
            "<text x=\"\(number(x))\" y=\"\(number(y))\" font-size=\"\(size)\" fill=\"\(fill)\"\(more)>\(escape(content))</text>\n"
        }
        var out = """
            <svg xmlns="http://www.w3.org/2000/svg" width="\(number(width))" height="\(number(height))" \
            viewBox="0 0 \(number(width)) \(number(height))" font-family="Helvetica, Arial, sans-serif">
            <rect width="100%" height="100%" fill="#ffffff"/>

            """
        for (index, box) in boxes.enumerated() {
            for other in boxes.dropFirst(index + 1) {
                out +=
                    "<line x1=\"\(number(box.x))\" y1=\"\(number(box.y))\" x2=\"\(number(other.x))\" y2=\"\(number(other.y))\" stroke=\"#2a78b5\" stroke-width=\"2.5\" stroke-opacity=\"0.55\"/>\n"
            }
        }
        for (index, _) in peerBoxes.enumerated() {
            let (x, y) = place(boxes.count + index)
            for box in boxes {
                out +=
                    "<line x1=\"\(number(box.x))\" y1=\"\(number(box.y))\" x2=\"\(number(x))\" y2=\"\(number(y))\" stroke=\"#b98a2f\" stroke-width=\"1.5\" stroke-dasharray=\"2 4\"/>\n"
            }
        }
        for (segment, box) in zip(segments, boxes) {
            let left = box.x - box.width / 2
            let top = box.y - box.height / 2
            out +=
                "<rect x=\"\(number(left))\" y=\"\(number(top))\" width=\"\(number(box.width))\" height=\"\(number(box.height))\" rx=\"10\" fill=\"#f6f8fa\" stroke=\"#8b98a5\"/>\n"
            out += text(segment.title, left + 16, top + 24, size: 15, fill: "#1f2933", more: " font-weight=\"bold\"")
            out += text(
                "WireGuard \(segment.address) · \(segment.endpoint)", left + 16, top + 42, size: 11, fill: "#2a78b5")
            var y = top + 52
            for line in lines(segment) {
                if line.isGateway {
                    out +=
                        "<rect x=\"\(number(left + 10))\" y=\"\(number(y))\" width=\"\(number(box.width - 20))\" height=\"23\" rx=\"5\" fill=\"#d6e9f8\"/>\n"
                }
                out += text(line.name, left + 16, y + 16, size: 13, fill: "#1f2933")
                out += text(
                    line.detail, left + box.width - 16, y + 16, size: 11, fill: "#52606d", more: " text-anchor=\"end\"")
                y += 26
            }
            for network in segment.locationIPs {
                out += text("also \(network)", left + 16, y + 10, size: 11, fill: "#52606d")
                y += 17
            }
        }
        for (index, box) in peerBoxes.enumerated() {
            let (x, y) = place(boxes.count + index)
            out +=
                "<rect x=\"\(number(x - box.width / 2))\" y=\"\(number(y - box.height / 2))\" width=\"\(number(box.width))\" height=\"\(number(box.height))\" rx=\"24\" fill=\"#fdf6e3\" stroke=\"#b98a2f\"/>\n"
            out += text(peers[index].name, x, y - 3, size: 13, fill: "#1f2933", more: " text-anchor=\"middle\"")
            out += text(peers[index].networks, x, y + 14, size: 11, fill: "#52606d", more: " text-anchor=\"middle\"")
        }
        let y = height - 16
        out +=
            "<line x1=\"40\" y1=\"\(number(y - 4))\" x2=\"70\" y2=\"\(number(y - 4))\" stroke=\"#2a78b5\" stroke-width=\"2.5\" stroke-opacity=\"0.55\"/>\n"
        out += text("WireGuard between gateways", 78, y, size: 11, fill: "#52606d")
        out += "<rect x=\"262\" y=\"\(number(y - 11))\" width=\"26\" height=\"14\" rx=\"4\" fill=\"#d6e9f8\"/>\n"
        out += text("gateway of its location", 296, y, size: 11, fill: "#52606d")
        if !peers.isEmpty {
            out +=
                "<line x1=\"445\" y1=\"\(number(y - 4))\" x2=\"475\" y2=\"\(number(y - 4))\" stroke=\"#b98a2f\" stroke-width=\"1.5\" stroke-dasharray=\"2 4\"/>\n"
            out += text("outside peer", 483, y, size: 11, fill: "#52606d")
        }
        return out + "</svg>\n"
    }
}

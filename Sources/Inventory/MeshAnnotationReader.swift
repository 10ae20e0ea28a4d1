import Jansson
import Model

/// Reads Kilo's annotations of a node. What is malformed is reported and counts as not there: one bad annotation must
/// not take a node's other ones, or other nodes, with it.
enum MeshAnnotationReader {
    static let prefix = "kilo.squat.ai/"
    /// The most networks that one node may name in allowed-location-ips. Each helper compares each with all others.
    static let mostNetworks = 256
    /// The maximum number of problems that are reported for the annotations of one node: a large malformed value is one
    /// mistake.
    static let mostProblems = 8

    static func read(_ node: Node) -> (MeshAnnotations, [InventoryProblem]) {
        var mesh = MeshAnnotations()
        var problems: [InventoryProblem] = []
        func text(_ key: String) -> String? { node.annotations[prefix + key] }
        var untold = 0
        func report(_ key: String, _ message: String) {
            guard problems.count < mostProblems else {
                untold += 1
                return
            }
            problems.append(
                InventoryProblem(
                    file: "Node \(node.name)", field: "metadata.annotations[\"\(prefix)\(key)\"]", message: message))
        }
        /// nil where it is absent, empty or malformed.
        func value<T>(_ key: String, _ what: String, _ parse: (String) -> T?) -> T? {
            guard let text = text(key), !text.isEmpty else { return nil }
            guard let value = parse(text) else {
                report(key, "\"\(NodeAddressAnnotations.shown(text))\" is not \(what); it is left out")
                return nil
            }
            return value
        }

        mesh.location = text("location")
        mesh.granularity = value("granularity", "location or full") { MeshConfiguration.Granularity(rawValue: $0) }
        mesh.key = value("key", "a WireGuard key") { WireGuardKey($0) }
        let endpoint = { (text: String) in Endpoint(text) }
        let forced = value("force-endpoint", "ADDRESS:PORT or NAME:PORT", endpoint)
        mesh.endpoint = forced ?? value("endpoint", "ADDRESS:PORT or NAME:PORT", endpoint)
        mesh.isEndpointForced = forced != nil
        mesh.wantsToBeGateway = text("leader") != nil
        mesh.persistentKeepalive =
            value("persistent-keepalive", "a number of seconds, 0 to 65535", { UInt16($0) }) ?? 0
        // The watch of thousands of nodes has read it already, and keeps no text of it.
        mesh.lastSeen = .init(
            seconds: value("last-seen", "a Unix time", { Int64($0) }) ?? node.mesh.lastSeen.seconds)
        for part in (text("allowed-location-ips") ?? "").split(separator: ",") {
            let trimmed = part.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed()
            guard mesh.allowedLocationIPs.count < mostNetworks else {
                report(
                    "allowed-location-ips",
                    "names more than \(mostNetworks) networks; those behind \(mesh.allowedLocationIPs[mostNetworks - 1]) are left out: combine them into larger networks"
                )
                break
            }
            if let network = IPNetwork(String(trimmed)) {
                mesh.allowedLocationIPs.append(network)
            } else {
                report(
                    "allowed-location-ips",
                    "\"\(NodeAddressAnnotations.shown(String(trimmed)))\" is not a network in CIDR notation; it is left out"
                )
            }
        }
        mesh.allowedLocationIPs = Array(Set(mesh.allowedLocationIPs)).sorted()
        if let discovered = text("discovered-endpoints"), !discovered.isEmpty, discovered != "null" {
            if let members = (try? JSON.parse(Array(discovered.utf8)))?.members {
                for member in members {
                    let address = member.value["IP"]?.string.flatMap { IPAddress($0) }
                    let port = member.value["Port"]?.integer.flatMap { UInt16(exactly: $0) }
                    if let key = WireGuardKey(member.key), let address, let port, port > 0 {
                        mesh.discoveredEndpoints[key] = SocketAddress(address, port: port)
                    } else {
                        report(
                            "discovered-endpoints",
                            "the entry \"\(NodeAddressAnnotations.shown(member.key))\" is malformed; it is left out")
                    }
                }
            } else {
                report("discovered-endpoints", "is not a JSON object; it is left out")
            }
        }

        // "-" and "" of force-internal-ip say that there is none; of internal-ip that none was found. (A malformed one is
        // reported with the node's other addresses.)
        if let forced = text("force-internal-ip"), forced.isEmpty || forced == "-" {
            mesh.privateAddress = nil
        } else if let forced = NodeAddressAnnotations.address(prefix + "force-internal-ip", of: node.annotations) {
            mesh.privateAddress = forced
        } else if text("internal-ip") != nil {
            mesh.privateAddress = NodeAddressAnnotations.address(prefix + "internal-ip", of: node.annotations)
        } else {
            mesh.privateAddress = node.internalIPs.first { $0.family == .v4 && !$0.isPublic }.map {
                InterfaceAddress($0)
            }
        }
        if untold > 0 {
            problems.append(
                InventoryProblem(
                    file: "Node \(node.name)", field: "metadata.annotations",
                    message: "has \(untold) more malformed values, which are left out too"))
        }
        return (mesh, problems)
    }
}

#if !hasFeature(Embedded)
    import Jansson
#endif

/// What a chained plugin reads from the previous result and what it adds (CNI specification 1.1, "Success").
public enum CNIResult {
    /// A route that Culvert put into the pod.
    public struct AddedRoute: Equatable, Sendable {
        /// Destination in CIDR notation.
        public let destination: String
        /// Gateway, or empty for an on-link route.
        public let gateway: String
        /// Path MTU in bytes.
        public let mtu: Int64
        public init(destination: String, gateway: String, mtu: Int64) {
            self.destination = destination
            self.gateway = gateway
            self.mtu = mtu
        }
    }

    /// The pod's addresses in CIDR notation: those whose interface has a sandbox and is `interfaceName`. An address
    /// without an interface index belongs to that interface too.
    public static func podAddresses(_ result: JSON, interfaceName: String) throws(CNIError) -> [String] {
        guard let list = result["ips"], !list.isNull else { return [] }
        guard let ips = list.elements else { throw CNIError(.invalidConfiguration, "prevResult.ips is not a list") }
        let interfaces: [JSON]
        switch result["interfaces"] {
        case nil, .null?: interfaces = []
        case .array(let elements)?: interfaces = elements
        default: throw CNIError(.invalidConfiguration, "prevResult.interfaces is not a list")
        }
        var addresses: [String] = []
        for ip in ips {
            guard let address = ip["address"]?.string else {
                throw CNIError(.invalidConfiguration, "prevResult.ips has an element without address")
            }
            switch ip["interface"] {
            case nil, .null?: addresses.append(address)
            case .integer(let index)?:
                guard index >= 0, index < Int64(interfaces.count) else {
                    throw CNIError(
                        .invalidConfiguration,
                        "prevResult.ips has interface \(index), but there are \(interfaces.count) interfaces")
                }
                let interface = interfaces[Int(index)]
                let sandbox = interface["sandbox"]?.string ?? ""
                if !sandbox.isEmpty, interface["name"]?.string == interfaceName { addresses.append(address) }
            default: throw CNIError(.invalidConfiguration, "prevResult.ips has an interface that is not a number")
            }
        }
        return addresses
    }

    /// The previous result with the routes that were added, for a configuration of `version`.
    public static func adding(_ routes: [AddedRoute], to result: JSON, version: CNIVersion) -> JSON {
        let complete = result.setting("cniVersion", to: .string(version.text))
        guard !routes.isEmpty else { return complete }
        var list = complete["routes"]?.elements ?? []
        for route in routes {
            list.append(
                .make(
                    ("dst", .string(route.destination)),
                    ("gw", route.gateway.isEmpty ? nil : .string(route.gateway)),
                    ("mtu", version.hasRouteMTU ? .integer(route.mtu) : nil)))
        }
        return complete.setting("routes", to: .array(list))
    }
}

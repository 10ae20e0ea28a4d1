#if !hasFeature(Embedded)
    import CNI
    import Jansson
#endif

/// The helper's answer: the routes it put into the pod, or an error for the runtime.
public enum HelperResponse: Sendable {
    case done(routes: [CNIResult.AddedRoute])
    case failed(CNIError)

    public var json: JSON {
        switch self {
        case .done(let routes):
            .make(
                (
                    "routes",
                    .array(
                        routes.map {
                            .make(
                                ("dst", .string($0.destination)), ("gw", .string($0.gateway)),
                                ("mtu", .integer($0.mtu)))
                        })
                ))
        case .failed(let error):
            .make(
                ("code", .integer(error.code)), ("msg", .string(error.message)), ("details", .string(error.details)))
        }
    }

    /// - Throws: error 11 where the answer makes no sense.
    public init(message bytes: [UInt8]) throws(CNIError) {
        guard let root = try? JSON.parse(bytes) else {
            throw CNIError(.tryAgainLater, "the answer of culvertd is not JSON")
        }
        if let code = root["code"]?.integer {
            self = .failed(
                CNIError(code: code, root["msg"]?.string ?? "", details: root["details"]?.string ?? ""))
            return
        }
        var routes: [CNIResult.AddedRoute] = []
        for route in root["routes"]?.elements ?? [] {
            routes.append(
                CNIResult.AddedRoute(
                    destination: route["dst"]?.string ?? "", gateway: route["gw"]?.string ?? "",
                    mtu: route["mtu"]?.integer ?? 0))
        }
        self = .done(routes: routes)
    }
}

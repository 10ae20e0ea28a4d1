import CLinux

#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
    import Jansson
#endif

extension Plugin {
    /// ADD: hands the pod's addresses and its netlink socket to the helper and prints the previous result with the
    /// routes that the helper added.
    static func add(
        _ environment: CNIEnvironment, _ configuration: NetworkConfiguration, deadline: Int64
    ) throws(CNIError) -> JSON {
        guard let previous = configuration.previousResult else {
            throw CNIError(
                .invalidConfiguration, "prevResult is missing",
                details: "culvert is a chained plugin: put it behind Cilium (or another plugin) in a .conflist")
        }
        let addresses = try CNIResult.podAddresses(previous, interfaceName: environment.interfaceName)
        guard !addresses.isEmpty else {
            throw CNIError(
                .invalidConfiguration, "prevResult has no address for \(environment.interfaceName)",
                details: "culvert routes by the pod's address, so the plugin before it must have assigned one")
        }
        // The helper wakes up meanwhile.
        let connection = HelperConnection.begin(configuration.socket)
        let socket: Int32
        do throws(CNIError) { socket = try openPodSocket(environment.networkNamespace) } catch {
            if connection >= 0 { close(connection) }
            throw error
        }
        defer { close(socket) }
        var request = podRequest(.add, environment, configuration, deadline: deadline)
        request.addresses = addresses
        let response: HelperResponse
        do throws(CNIError) {
            response = try HelperConnection.ask(
                request, socket: configuration.socket, connection: connection, descriptor: socket, deadline: deadline)
        } catch {
            guard isHelperUnavailable(error), configuration.whenHelperUnavailable == .allow else { throw error }
            log("\(error.message); the pod starts without Culvert, because whenHelperUnavailable is \"allow\"")
            return CNIResult.adding([], to: previous, version: configuration.version)
        }
        switch response {
        case .done(let routes): return CNIResult.adding(routes, to: previous, version: configuration.version)
        // A helper that answers can be reached. So what it refuses is refused, even with the error "try again later".
        case .failed(let error): throw error
        }
    }

    static func isHelperUnavailable(_ error: CNIError) -> Bool {
        error.code == CNIError.Code.tryAgainLater.rawValue
    }

    /// A request that names an attachment.
    static func attachmentRequest(
        _ command: CNIEnvironment.Command, _ environment: CNIEnvironment, _ configuration: NetworkConfiguration,
        deadline: Int64
    ) -> HelperRequest {
        var request = HelperRequest(command)
        request.network = configuration.name
        request.containerID = environment.containerID
        request.interfaceName = environment.interfaceName
        request.timeoutMilliseconds = max(1, deadline - culvert_monotonic_milliseconds())
        return request
    }

    /// The same, with what the runtime says of the pod.
    static func podRequest(
        _ command: CNIEnvironment.Command, _ environment: CNIEnvironment, _ configuration: NetworkConfiguration,
        deadline: Int64
    ) -> HelperRequest {
        var request = attachmentRequest(command, environment, configuration, deadline: deadline)
        request.podNamespace = environment.arguments.podNamespace
        request.podName = environment.arguments.podName
        request.podUID = environment.arguments.podUID
        request.labels = configuration.labels + environment.arguments.labels
        request.annotations = configuration.annotations
        request.defaultPolicy = configuration.defaultPolicy
        return request
    }
}

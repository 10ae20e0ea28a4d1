import CLinux

#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
#endif

extension Plugin {
    /// CHECK: the helper compares kernel and pod with the attachment.
    static func check(
        _ environment: CNIEnvironment, _ configuration: NetworkConfiguration, deadline: Int64
    ) throws(CNIError) {
        guard configuration.version.hasCheck else {
            throw CNIError(
                .incompatibleVersion, "CHECK exists from cniVersion 0.4.0 on, not in \(configuration.version.text)")
        }
        guard let previous = configuration.previousResult else {
            throw CNIError(.invalidConfiguration, "prevResult is missing", details: "CHECK compares with it")
        }
        let addresses = try CNIResult.podAddresses(previous, interfaceName: environment.interfaceName)
        let socket = try openPodSocket(environment.networkNamespace)
        defer { close(socket) }
        var request = podRequest(.check, environment, configuration, deadline: deadline)
        request.addresses = addresses
        do throws(CNIError) {
            if case .failed(let error) = try HelperConnection.ask(
                request, socket: configuration.socket, descriptor: socket, deadline: deadline)
            {
                throw error
            }
        } catch {
            guard isHelperUnavailable(error), configuration.whenHelperUnavailable == .allow else { throw error }
            log(error.message)
        }
    }
}

#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
#endif

extension Plugin {
    /// STATUS: error 50 only if an ADD would fail now.
    static func status(_ configuration: NetworkConfiguration, deadline: Int64) throws(CNIError) {
        guard configuration.version.hasGarbageCollection else {
            throw CNIError(
                .incompatibleVersion, "STATUS exists from cniVersion 1.1.0 on, not in \(configuration.version.text)")
        }
        do throws(CNIError) {
            if case .failed(let error) = try HelperConnection.ask(
                HelperRequest(.status), socket: configuration.socket, deadline: deadline)
            {
                throw error
            }
        } catch {
            if configuration.whenHelperUnavailable == .allow { return }
            throw CNIError(.notAvailable, error.message, details: error.details)
        }
    }
}

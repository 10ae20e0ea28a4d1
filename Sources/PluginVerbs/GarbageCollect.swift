#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
#endif

extension Plugin {
    /// GC: attachments of this network that the runtime does not know any more are ended.
    static func collectGarbage(_ configuration: NetworkConfiguration, deadline: Int64) throws(CNIError) {
        guard configuration.version.hasGarbageCollection else {
            throw CNIError(
                .incompatibleVersion, "GC exists from cniVersion 1.1.0 on, not in \(configuration.version.text)")
        }
        guard let valid = configuration.validAttachments else { return }
        var request = HelperRequest(.gc)
        request.network = configuration.name
        request.validAttachments = valid
        if case .failed(let error) = try HelperConnection.ask(
            request, socket: configuration.socket, deadline: deadline)
        {
            throw error
        }
    }
}

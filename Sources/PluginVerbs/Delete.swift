import CLinux

#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
    import Jansson
#endif

extension Plugin {
    /// DEL: ends the attachment. With the helper down it leaves a record that the helper reads when it starts.
    static func delete(
        _ environment: CNIEnvironment, _ configuration: NetworkConfiguration, deadline: Int64
    ) throws(CNIError) {
        // Nothing of the pod: what ADD was refused for must not keep its DEL from getting through.
        let request = attachmentRequest(.del, environment, configuration, deadline: deadline)
        do throws(CNIError) {
            if case .failed(let error) = try HelperConnection.ask(
                request, socket: configuration.socket, deadline: deadline)
            {
                throw error
            }
        } catch {
            guard isHelperUnavailable(error) else { throw error }
            try recordDeletion(request, socket: configuration.socket)
            log("\(error.message); the DEL is recorded for its next start")
        }
    }

    /// Writes `deleted/<container>_<interface>` beside the socket: temporary file, then rename, so that the helper
    /// never reads half a record. Where the directory does not exist no helper ever ran, and there is nothing to end.
    private static func recordDeletion(_ request: HelperRequest, socket: String) throws(CNIError) {
        let bytes = Array(socket.utf8)
        let directory = String(decoding: bytes[0..<(bytes.lastIndex(of: 47) ?? 0)], as: UTF8.self) + "/deleted"
        let path = "\(directory)/\(request.containerID)_\(request.interfaceName)"
        let temporary = "\(directory)/.\(getpid())"
        func failure(_ doing: String) -> CNIError {
            let reason = String(cString: strerror(culvert_errno()))
            unlink(temporary)
            return CNIError(
                .ioFailure, "the DEL cannot be recorded: \(doing): \(reason)",
                details: "culvertd is not running; start it, or make room for its run directory")
        }
        let file = creat(temporary, 0o640)
        if file < 0 && culvert_errno() == ENOENT { return }
        guard file >= 0 else { throw failure(temporary) }
        let record = request.json.bytes()
        let written = write(file, record, record.count)
        let closed = close(file)
        guard written == record.count, closed == 0 else { throw failure(temporary) }
        guard rename(temporary, path) == 0 else { throw failure(path) }
    }
}

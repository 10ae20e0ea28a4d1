import CLinux

#if !hasFeature(Embedded)
    import CNI
    import HelperProtocol
    import Jansson
#endif

extension Plugin {
    /// DEL: ends the attachment. With the helper down it leaves a record that the helper reads when it
    /// starts, or at once where it only was slow.
    static func delete(
        _ environment: CNIEnvironment, _ configuration: NetworkConfiguration, deadline: Int64
    ) throws(CNIError) {
        // Nothing of the pod: what ADD was refused for must not keep its DEL from getting through.
        // And a helper that hangs has taken the ADD's time already: the record is as good as its answer.
        let deadline = min(deadline, culvert_monotonic_milliseconds() + longestDeletion)
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
            log("\(error.message); the DEL is recorded for culvertd to process later")
        }
    }

    /// How long a DEL waits for the helper at most, milliseconds.
    static let longestDeletion: Int64 = 3000

    /// Writes `deleted/<container>_<interface>` beside the socket, as root, into a directory that the helper's group may write
    /// to: no link in it is followed. Where the directory does not exist no helper ever ran, and there is nothing to end.
    private static func recordDeletion(_ request: HelperRequest, socket: String) throws(CNIError) {
        let bytes = Array(socket.utf8)
        let directory = String(decoding: bytes[0..<(bytes.lastIndex(of: 47) ?? 0)], as: UTF8.self) + "/deleted"
        let record = request.json.bytes()
        let result = culvert_write_record(
            directory, request.attachmentID, record, record.count, 0o640)
        guard result < 0, result != -ENOENT else { return }
        throw CNIError(
            .ioFailure, "the DEL cannot be recorded in \(directory): \(String(cString: strerror(-result)))",
            details:
                "culvertd is not running; start it, or make sure that \(directory) is a directory and its file system has free space"
        )
    }
}

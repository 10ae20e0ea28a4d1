import HelperProtocol
import Logging
import Model

extension NodeAgent {
    /// GC: attachments of this network that the runtime does not know any more.
    func collectGarbage(_ request: HelperRequest) {
        guard let valid = request.validAttachments else { return }
        let keep = Set(valid.map { "\($0.containerID)_\($0.interfaceName)" })
        let stale = attachments.values.filter { $0.network == request.network && !keep.contains($0.id) }
        for attachment in stale {
            logger.info("garbage collected", metadata: ["attachment": "\(attachment.id)"])
            end(attachment.id)
        }
        if !stale.isEmpty { convergeAfterEnd(stale) }
    }
}

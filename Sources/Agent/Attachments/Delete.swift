import HelperProtocol
import Model

extension NodeAgent {
    /// DEL: never fails because something is gone already.
    func delete(_ request: HelperRequest) {
        let id = request.attachmentID
        guard let attachment = attachments[id] else { return }
        end(id)
        convergeAfterEnd([attachment])
    }
}

import CNI
import HelperProtocol
import Model
import Netlink
import Planner

extension NodeAgent {
    /// CHECK: the pod, and what it depends on in the kernel, against the attachment. What is wrong with other pods only is
    /// not looked at.
    func check(_ request: HelperRequest, _ pod: PodNetwork) throws(CNIError) {
        func failed(_ message: String, _ details: String = "") -> CNIError {
            CNIError(.checkFailed, message, details: details)
        }
        let id = request.attachmentID
        guard let attachment = attachments[id] else { throw failed("there is no attachment \(id)") }
        let claimed = Set(
            request.addresses.compactMap { IPAddress(String($0.split(separator: "/").first ?? "")) }.map {
                IPNetwork(host: $0)
            })
        guard claimed == Set(attachment.addresses) else {
            throw failed("prevResult has other addresses than the attachment \(id)")
        }
        guard isInformed else {
            throw CNIError(
                .tryAgainLater, "the inventory is not known, so the kernel cannot be compared with a plan",
                details: unknown.joined(separator: "; "))
        }
        let differences: [String]
        let present: [KernelRoute]
        do {
            differences = try reconciler.differences(plan.host, of: claimed)
            present = try pod.ownRoutes()
        } catch { throw CNIError(.datapathFailure, "\(error)") }
        guard differences.isEmpty else {
            throw failed("the kernel differs from the plan", differences.prefix(5).joined(separator: "; "))
        }
        for (destination, mtu) in attachment.podRoutes.sorted(by: { $0.key < $1.key }) {
            guard present.contains(where: { $0.destination == destination && Int($0.mtu) == mtu }) else {
                throw failed("the pod has lost its route to \(destination) with mtu \(mtu)")
            }
        }
    }
}

import CNI
import HelperProtocol
import Inventory
import Logging
import Model
import Netlink
import Planner

/// The calls of the plugin, one by one.
extension NodeAgent {
    /// Serves one request for a thread that waits for the answer, without a detour by other threads.
    ///
    /// - Parameters:
    ///   - descriptor: the pod's netlink socket, already checked, or -1; it is closed here.
    ///   - call: tells this call from all others (`abort`).
    ///   - isAwaited: whether the plugin still waits for the answer.
    ///   - answer: called once, on this actor's thread.
    nonisolated func serve(
        _ request: HelperRequest, descriptor: Int32, call: UInt64, isAwaited: @escaping @Sendable () -> Bool,
        answer: @escaping @Sendable (HelperResponse) -> Void
    ) {
        thread.enqueue {
            self.assumeIsolated {
                $0.begin(request, descriptor: descriptor, call: call, isAwaited: isAwaited, answer: answer)
            }
        }
    }

    private func begin(
        _ request: HelperRequest, descriptor: Int32, call: UInt64, isAwaited: @escaping @Sendable () -> Bool,
        answer: @escaping @Sendable (HelperResponse) -> Void
    ) {
        Task {
            do throws(CNIError) {
                try await serve(
                    request, descriptor: descriptor, call: call, isAwaited: isAwaited, answer: answer)
            } catch {
                note(error, request)
                answer(.failed(error))
            }
        }
    }

    /// - Throws: where the request fails; otherwise `answer` is called, now or later.
    private func serve(
        _ request: HelperRequest, descriptor: Int32, call: UInt64, isAwaited: @escaping @Sendable () -> Bool,
        answer: @escaping @Sendable (HelperResponse) -> Void
    ) async throws(CNIError) {
        let pod: PodNetwork?
        do { pod = descriptor >= 0 ? try PodNetwork(adopting: descriptor) : nil } catch {
            throw CNIError(.datapathFailure, "\(error)")
        }
        switch request.command {
        case .add:
            guard let pod else { throw CNIError(.requestRefused, "ADD came without the pod's netlink socket") }
            let addresses = try NodeAgent.addresses(of: request)
            try await waitForInventory(request)
            let isInInventory = try await identify(request)
            return add(
                WaitingADD(
                    request: request, pod: pod, addresses: addresses, call: call, isInInventory: isInInventory,
                    isAwaited: isAwaited, answer: answer))
        case .check:
            guard let pod else { throw CNIError(.requestRefused, "CHECK came without the pod's netlink socket") }
            try check(request, pod)
        case .del:
            // A plugin that has given up has left a record (`drainDeletions`), and the container may have a newer
            // attachment by now, which this DEL must not end.
            if isAwaited() { delete(request) }
        case .gc: collectGarbage(request)
        case .status: try checkStatus()
        case .version: break
        }
        answer(.done(routes: []))
    }

    /// Tells of a request that has failed.
    func note(_ error: CNIError, _ request: HelperRequest) {
        if request.command == .add, error.code == CNIError.Code.policyRefused.rawValue { record(error, request) }
        logger.warning(
            "\(request.command.rawValue) failed",
            metadata: [
                "container": "\(request.containerID)", "code": "\(error.code)", "error": "\(error.message)",
                "details": "\(error.details)",
            ])
    }

    /// An Event on a pod that may not start.
    private func record(_ error: CNIError, _ request: HelperRequest) {
        guard !request.podNamespace.isEmpty, !request.podName.isEmpty else { return }
        let event = ObjectEvent(
            .pod(namespace: request.podNamespace, name: request.podName, uid: request.podUID),
            reason: "EgressRefused", message: error.message)
        let publisher = publisher
        Task { await publisher.record(event) }
    }

    /// STATUS fails only where an ADD would fail now.
    private func checkStatus() throws(CNIError) {
        guard isInformed, unknown.isEmpty else {
            throw CNIError(
                .notAvailable, "the inventory is not known completely", details: unknown.joined(separator: "; "))
        }
    }
}

extension HelperRequest {
    /// The inventory's pod is the one that this request is about.
    func isOf(_ pod: Pod) -> Bool {
        !podName.isEmpty && pod.namespace == podNamespace && pod.name == podName && pod.isMeant(byUID: podUID)
    }
}

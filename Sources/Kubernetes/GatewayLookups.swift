import ClusterTransport
import Inventory
import Jansson
import Logging

/// What the CiliumNodes do not say of gateways: what these say of themselves (their egress address), and whether Kubernetes has
/// given them up. Asked for once, and every ten minutes; of a gateway in use of which no echo tells anything, and of one that is
/// given up, every minute.
///
/// Not watched: a Node has some kilobytes, which its kubelet reports every few minutes, to each of the thousands of nodes that
/// use it. Nobody waits for the taint but where echoes cannot be sent.
actor GatewayLookups {
    /// What a lookup found in a Node.
    struct Found: Equatable, Sendable {
        /// Those under `culvert.dev/`.
        var annotations: [String: String] = [:]
        /// It has a taint that says so, or is gone while its CiliumNode is still there.
        var isGivenUp = false
    }

    private let client: KubernetesClient
    private let nodeName: String
    private let clock: any Clock<Duration>
    private let logger: Logger
    private var gateways: Set<String> = []
    private var inDoubt: Set<String> = []
    private var lookedUp: [String: (found: Found, isAnswered: Bool, age: @Sendable () -> Duration)] = [:]
    /// Gateways of which the last answer was that there is no such Node. Anything on the way may say so once.
    private var missing: Set<String> = []

    init(client: KubernetesClient, nodeName: String, clock: any Clock<Duration>, logger: Logger) {
        self.client = client
        self.nodeName = nodeName
        self.clock = clock
        self.logger = logger
    }

    /// Names the nodes that are to be looked up.
    ///
    /// - Parameter inDoubt: those that are to be looked up more often.
    func use(_ names: Set<String>, inDoubt: Set<String>) {
        gateways = names
        self.inDoubt = inDoubt
    }

    /// Looks up the gateways until the task is cancelled.
    ///
    /// - Parameters:
    ///   - isNeeded: false ends it.
    ///   - report: is told of what is news; nil: the node is not a gateway any more.
    func run(
        while isNeeded: @Sendable () async -> Bool,
        report: @Sendable (_ gateway: String, _ found: Found?) async -> Void
    ) async {
        while !Task.isCancelled, await isNeeded() {
            var isAnswered = true
            for name in lookedUp.keys where !gateways.contains(name) {
                lookedUp[name] = nil
                missing.remove(name)
                await report(name, nil)
            }
            for name in gateways.sorted() where name != nodeName {
                if let known = lookedUp[name] {
                    // Without an answer it is not known what the gateway says, and a status names no egress address.
                    let isUrgent = inDoubt.contains(name) || known.found.isGivenUp
                    let interval = Duration.seconds(!known.isAnswered ? 10 : isUrgent ? 60 : 600)
                    if known.age() < interval { continue }
                }
                let before = lookedUp[name]
                let answer = await ask(name)
                let found = answer ?? before?.found ?? Found()
                lookedUp[name] = (found, answer != nil, clock.stopwatch())
                // What was reported while it was a gateway earlier may still be believed.
                if answer != nil, before?.isAnswered != true || found != before?.found { await report(name, found) }
                // Nor would the server answer for the next one.
                if answer == nil, !missing.contains(name) {
                    isAnswered = false
                    break
                }
            }
            try? await clock.sleep(for: .seconds(isAnswered ? 2 : 10))
        }
    }

    /// - Returns: nil where there is no answer.
    private func ask(_ name: String) async -> Found? {
        do {
            guard let object = try await client.get(.nodes, name: name) else {
                return missing.insert(name).inserted ? nil : Found(isGivenUp: true)
            }
            missing.remove(name)
            var found = Found()
            for member in object["metadata"]?["annotations"]?.members ?? []
            where member.key.hasPrefix("culvert.dev/") { found.annotations[member.key] = member.value.string }
            if case .success(let objects) = Manifests.read(object), case .node(let node)? = objects.first {
                found.isGivenUp = node.isGivenUp
            }
            return found
        } catch {
            logger.notice("a gateway cannot be looked up", metadata: ["node": "\(name)", "error": "\(error)"])
            return nil
        }
    }
}

import ClusterTransport
import Inventory
import Jansson

/// `status` of an EgressPolicy, as the server has it or as it should be.
struct PolicyStatus: Equatable, Sendable {
    /// Nodes that carry the policy's packets, as far as anybody has said.
    var activeGateways: Set<String> = []
    /// Candidates that answer the echoes of some node. nil: no node with a pod of the policy has reported yet.
    var upGateways: Set<String>?
    /// For people: `1 of 2`.
    var candidates = ""
    /// Since when the active gateways are these, RFC 3339; empty: not known.
    var since = ""
    /// Why there is none; empty where there is one.
    var reason = ""
    var selectedPods: Int?
    /// The policy is refused, and `reason` is the reason.
    var isRefused = false
    /// Of which generation of the spec this is; nil: not said.
    var observedGeneration: Int64?
    /// Since when the conditions `Accepted` and `Ready` are what they are, RFC 3339; empty: not known.
    var acceptedSince = ""
    var readySince = ""

    init() {}

    /// - Returns: nil where the object has no status.
    init?(_ status: JSON?) {
        guard let status, status.members?.isEmpty == false else { return nil }
        func names(_ key: String) -> Set<String>? { status[key]?.elements.map { Set($0.compactMap(\.string)) } }
        activeGateways = names("activeGateways") ?? []
        upGateways = names("upGateways")
        candidates = status["candidates"]?.string ?? ""
        since = status["since"]?.string ?? ""
        reason = status["reason"]?.string ?? ""
        selectedPods = status["selectedPods"]?.integer.flatMap { Int(exactly: $0) }
        observedGeneration = status["observedGeneration"]?.integer
        for condition in status["conditions"]?.elements ?? [] {
            let since = condition["lastTransitionTime"]?.string ?? ""
            switch condition["type"]?.string {
            case "Accepted":
                acceptedSince = since
                isRefused = condition["status"]?.string == "False"
            // One that contradicts what stands beside it is written anew.
            case "Ready" where (condition["status"]?.string == "True") == isReady: readySince = since
            default: break
            }
        }
    }

    /// Packets of the policy's pods leave by a gateway.
    private var isReady: Bool { !activeGateways.isEmpty }

    /// `metav1.Condition`s.
    private var conditions: [JSON] {
        func condition(_ type: String, _ holds: Bool, _ reason: String, _ message: String, since: String) -> JSON {
            .make(
                ("type", .string(type)), ("status", .string(holds ? "True" : "False")), ("reason", .string(reason)),
                ("message", .string(message)), ("lastTransitionTime", .string(since)),
                ("observedGeneration", observedGeneration.map { .integer($0) }))
        }
        let why = isRefused ? "Refused" : upGateways?.isEmpty == true ? "GatewaysDown" : "NoGateway"
        return [
            condition(
                "Accepted", !isRefused, isRefused ? "Refused" : "Valid", isRefused ? reason : "", since: acceptedSince),
            condition(
                "Ready", isReady, isReady ? "GatewayActive" : why,
                isReady ? "egress leaves by \(activeGateways.sorted().joined(separator: ", "))" : reason,
                since: readySince),
        ]
    }

    /// The content of the status, without the time since when it holds.
    var withoutTimes: PolicyStatus {
        var status = self
        (status.since, status.acceptedSince, status.readySince) = ("", "", "")
        return status
    }

    /// - Parameter isOld: the server's definition of EgressPolicy is one before this release's.
    func json(isOld: Bool) -> JSON {
        func list(_ names: Set<String>) -> JSON { .array(names.sorted().map { .string($0) }) }
        if isOld { return .make(("activeGateways", list(activeGateways)), ("reason", .string(reason))) }
        return .make(
            ("conditions", acceptedSince.isEmpty || readySince.isEmpty ? nil : .array(conditions)),
            ("observedGeneration", observedGeneration.map { .integer($0) }),
            ("activeGateways", list(activeGateways)),
            // kubectl prints a list as JSON.
            ("gateways", .string(activeGateways.sorted().joined(separator: ","))), ("upGateways", upGateways.map(list)),
            ("candidates", .string(candidates)), ("since", since.isEmpty ? nil : .string(since)),
            ("selectedPods", selectedPods.map { .integer(Int64($0)) }), ("reason", .string(reason)))
    }

    /// Without what an older definition lacks.
    var ofOldDefinition: PolicyStatus {
        var status = PolicyStatus()
        status.activeGateways = activeGateways
        status.reason = reason
        return status
    }
}

/// What the status of a policy should say, from what this node knows and what others have said.
///
/// Nodes need not agree on which gateway is active: one may reach a gateway that another does not reach. So a node adds what it
/// knows, and takes away what it knows better: a gateway that is down for it, or that its pods have left. Where another node
/// puts such a gateway back, somebody uses it, and it stays for ten minutes: nodes that see different things come to rest with
/// what any of them sees.
struct PolicyStatusAgreement {
    /// Names that several nodes add to and take from.
    private struct Names {
        var seen: Set<String>?
        /// Time since which this node's report is unchanged. A status that is older than this may not take this report
        /// into account.
        private var gone: Set<String> = []
        private var contradicted: [String: @Sendable () -> Duration] = [:]

        /// - Parameter against: those that this node would take away.
        mutating func see(_ new: Set<String>?, against: Set<String>, clock: any Clock<Duration>) {
            let (before, now) = (seen ?? [], new ?? [])
            for name in now.subtracting(before).intersection(gone) where against.contains(name) {
                contradicted[name] = clock.stopwatch()
            }
            gone = gone.union(before.subtracting(now)).subtracting(now)
            seen = new
        }

        mutating func forgetGone() { gone = [] }

        mutating func wanted(adding: Set<String>, against: Set<String>) -> Set<String> {
            contradicted = contradicted.filter {
                against.contains($0.key) && $0.value() < PolicyStatusAgreement.respite
            }
            return (seen ?? []).subtracting(against.subtracting(contradicted.keys)).union(adding)
        }
    }

    /// How long a node does not repeat a statement that another node has contradicted.
    static let respite = Duration.seconds(600)

    private let clock: any Clock<Duration>
    private(set) var report: PolicyReport?
    private(set) var seen: PolicyStatus?
    /// The status that was seen was not written by a helper, so it shows nothing of what other nodes know.
    private(set) var isForeign = false
    private var active = Names()
    private var up = Names()
    /// Gateways that this node's pods have used and do not use any more.
    private var left: Set<String> = []
    /// What this node has written and the watch has not shown yet, and what the watch has shown instead.
    private var awaited: (status: PolicyStatus, elapsed: @Sendable () -> Duration)?
    private var older: PolicyStatus??
    /// How long a watch may take to show what was written.
    static let watchLag = Duration.seconds(5)
    /// This node has written since its report last changed.
    private var hasSpoken = false

    init(clock: any Clock<Duration>) { self.clock = clock }

    /// What this node knows. nil: nothing any more.
    mutating func take(_ new: PolicyReport?) {
        guard new != report else { return }
        if let before = report, let new, before.standing == .user, new.standing == .user {
            left = left.union(before.activeGateways).subtracting(new.activeGateways)
        } else {
            left = []
        }
        report = new
        hasSpoken = false
        active.forgetGone()
        up.forgetGone()
    }

    /// What a watch shows.
    ///
    /// - Parameter isForeign: somebody else than a helper has written it.
    mutating func see(_ status: PolicyStatus?, isForeign: Bool = false) {
        if let own = awaited, !isForeign {
            // The watch shows every change in its order: what it shows before this node's own is older.
            // But for the number of pods, which another node may have added to it meanwhile: of two changes in a row the watch's
            // reader sees the last.
            var withoutCount = status
            withoutCount?.selectedPods = own.status.selectedPods
            if withoutCount != own.status, own.elapsed() < PolicyStatusAgreement.watchLag {
                older = .some(status)
                return
            }
        }
        awaited = nil
        older = nil
        note(status, isForeign: isForeign)
    }

    private mutating func note(_ status: PolicyStatus?, isForeign: Bool = false) {
        guard status != seen || isForeign != self.isForeign else { return }
        self.isForeign = isForeign
        let said = isForeign ? nil : status
        active.see(said?.activeGateways, against: isOver.union(left), clock: clock)
        up.see(said?.upGateways, against: isOver, clock: clock)
        seen = status
    }

    /// This node has written it.
    mutating func wrote(_ status: PolicyStatus) {
        note(status)
        awaited = (status, clock.stopwatch())
        hasSpoken = true
    }

    /// Nodes of which this node knows that they are not gateways.
    private var isOver: Set<String> {
        guard let report else { return [] }
        let named = (active.seen ?? []).union(up.seen ?? [])
        return named.subtracting(report.candidates).union(report.down)
    }

    /// Users have said that all gateways are down.
    var isDownForUsers: Bool { !isForeign && seen?.upGateways != nil && seen?.activeGateways.isEmpty == true }

    /// - Parameters:
    ///   - count: of selected pods, where this node counts them.
    ///   - now: RFC 3339.
    /// - Returns: the status as it should be; nil: this node has nothing to say.
    mutating func wanted(count: Int?, now: String) -> PolicyStatus? {
        if let own = awaited, own.elapsed() >= PolicyStatusAgreement.watchLag {
            awaited = nil
            if let older { note(older) }
            older = nil
        }
        guard let report else { return nil }
        var status = PolicyStatus()
        let before = isForeign ? PolicyStatus() : seen ?? PolicyStatus()
        // Another node knows a newer spec, which has not come here yet.
        if let known = before.observedGeneration, let own = report.generation, own < known { return nil }
        status.observedGeneration = report.generation ?? before.observedGeneration
        switch report.standing {
        case .user:
            status.activeGateways = active.wanted(adding: Set(report.activeGateways), against: isOver.union(left))
            status.upGateways = up.wanted(adding: Set(report.up), against: isOver)
        case .candidate, .bystander:
            status.activeGateways = active.wanted(adding: [], against: isOver)
            status.upGateways = up.seen == nil ? nil : up.wanted(adding: [], against: isOver)
            // What nodes with pods of the policy report takes precedence over what a gateway reports of itself. The
            // gateway may report once that it exists.
            if status.activeGateways.isEmpty, !(isDownForUsers && hasSpoken) {
                status.activeGateways = Set(report.activeGateways)
            }
        }
        if status.activeGateways.isEmpty {
            // Two nodes that have different reasons do not contradict each other again and again.
            let isSaid = !before.reason.isEmpty && (hasSpoken || (isDownForUsers && report.standing != .user))
            let isKept = isSaid && before.activeGateways.isEmpty
            status.reason = isKept ? before.reason : report.reason
            status.isRefused = isKept ? before.isRefused : report.isRefused
        }
        let wasReady = !before.activeGateways.isEmpty
        status.acceptedSince =
            before.isRefused == status.isRefused && !before.acceptedSince.isEmpty ? before.acceptedSince : now
        status.readySince =
            wasReady != status.activeGateways.isEmpty && !before.readySince.isEmpty ? before.readySince : now
        status.since = before.activeGateways == status.activeGateways && !before.since.isEmpty ? before.since : now
        status.selectedPods = count ?? seen?.selectedPods
        let text = (status.upGateways.map { "\($0.count)" } ?? "?") + " of \(report.candidates.count)"
        let hasNewNames =
            status.activeGateways != before.activeGateways || status.upGateways != before.upGateways
        status.candidates =
            hasSpoken && !hasNewNames && seen != nil && !before.candidates.isEmpty ? before.candidates : text
        return status == seen ? nil : status
    }
}

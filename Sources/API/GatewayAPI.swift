import Agent
import Jansson
import Liveness
import Model
import Planner

/// `/v1/gateways`: where each policy's packets go at the moment, and how its candidates are.
enum GatewayAPI {
    static func render(_ agent: NodeAgent) async -> JSON {
        let node = await agent.snapshot()
        let echoes = agent.echoes.snapshot
        let health = agent.failOver.health
        let ages = agent.failOver.ages
        let choices = agent.failOver.previous.decided
        let sessions = Dictionary(
            echoes.sessions.flatMap { session in session.session.ends.map { ($0, session) } },
            uniquingKeysWith: { first, _ in first })
        var pods: [String: Int] = [:]
        for entry in node.plan.attachments { for policy in entry.assigned { pods[policy.slot, default: 0] += 1 } }
        func milliseconds(_ nanoseconds: Int64) -> JSON { .real(Double(nanoseconds / 1000) / 1000) }
        let inUse = node.plan.liveness.slots.filter(\.isInUse)
        let slots = inUse.sorted { ($0.policy, $0.key) < ($1.policy, $1.key) }.map { slot -> JSON in
            let active = choices[slot.key]?.candidate
            let candidates = slot.candidates.map { candidate -> JSON in
                let session = sessions[candidate.end]
                return CandidateField.object(
                    (.node, .string(candidate.candidate.node)),
                    (.egress, .string(candidate.candidate.egress.text)),
                    (.active, .bool(candidate.candidate == active)),
                    (.state, .string(health.state(candidate.end).rawValue)),
                    (.isSelf, .bool(candidate.candidate.node == node.nodeName)),
                    (.roundTripMilliseconds, session.map { milliseconds($0.roundTrip) }),
                    (.silentMilliseconds, session?.sinceLastHeard.map(milliseconds)),
                    (.intervalMilliseconds, session.map { .integer(Int64($0.session.interval)) }),
                    (.askedMilliseconds, session?.session.asked.map { .integer(Int64($0)) }),
                    (
                        .detectionMilliseconds,
                        session.map { .integer(Int64($0.session.interval * $0.session.multiplier)) }
                    ),
                    (.sent, session.map { .integer(Int64(clamping: $0.sent)) }),
                    (.translated, session.map { .integer(Int64($0.proofs)) }),
                    (.notTranslated, session.map { .integer(Int64($0.failedProofs)) }))
            }
            return SlotField.object(
                (.policy, .string(slot.policy)), (.slot, .string(slot.key)), (.nextHop, .integer(Int64(slot.id))),
                (.gateway, active.map { .string($0.node) } ?? .null),
                (.sinceSeconds, ages[slot.key].map { .real($0) }),
                (.up, .integer(Int64(slot.candidates.count { health.state($0.end) == .up }))),
                (.pods, .integer(Int64(pods[slot.key] ?? 0))), (.failBack, .bool(slot.takesBack)),
                (.candidates, .array(candidates)))
        }
        return GatewaysField.object(
            (.obstacle, .string(echoes.obstacle)),
            (.wakeUpLatenessMilliseconds, milliseconds(echoes.worstLateness)),
            (.wakeUpLatenessEverMilliseconds, milliseconds(echoes.worstLatenessEver)),
            (.strangers, .integer(Int64(clamping: echoes.strangers))), (.slots, .array(slots)),
            (.changes, .array(node.moves.map(change))))
    }

    private static func change(_ move: NodeSnapshot.Move) -> JSON {
        GatewayChangeField.object(
            (.policy, .string(move.policy)), (.from, move.from.map { .string($0) } ?? .null),
            (.to, move.to.map { .string($0) } ?? .null), (.why, .string(move.why)),
            (.at, .string(move.at)), (.silentMilliseconds, move.silentMilliseconds.map { .real($0) }),
            (.switchedMilliseconds, .real(move.switchedMilliseconds)))
    }
}

import Agent
import CNI
import HTTPTypes
import HummingbirdCore
import Installer
import Jansson
import Logging
import Model
import NIOCore
import NIOPosix
import Planner
import ServiceLifecycle

/// `api.sock`: HTTP and JSON for people and tools.
public enum StatusAPI {
    /// The server, to be run. (HummingbirdCore has no router, and brings none of Foundation's tables with it.)
    ///
    /// - Parameters:
    ///   - socket: path of the Unix socket.
    ///   - isReady: whether `cni.sock` listens.
    ///   - onServerRunning: called when the socket is there.
    public static func server(
        socket: String, agent: NodeAgent, logger: Logger, isReady: @escaping @Sendable () -> Bool,
        onServerRunning: @escaping @Sendable () -> Void = {}
    ) throws -> any Service {
        try HTTPServerBuilder.http1().buildServer(
            configuration: .init(
                address: .unixDomainSocket(path: socket), serverName: "culvertd/\(CulvertRelease.version)"),
            eventLoopGroup: MultiThreadedEventLoopGroup.singleton, logger: logger,
            responder: { request, writer, _ in
                var response: Response
                if request.method == .get || request.method == .head {
                    response = await answer(request.uri.path, agent: agent, isReady: isReady())
                } else {
                    response = text(.methodNotAllowed, "only GET is answered\n")
                }
                if request.method == .head { response = response.createHeadResponse() }
                response.headers[.server] = "culvertd/\(CulvertRelease.version)"
                try await writer.write(response: response.head, body: response.body)
            }, onServerRunning: { _ in onServerRunning() })
    }

    private static func answer(_ path: String, agent: NodeAgent, isReady: Bool) async -> Response {
        switch path {
        case "/healthz": return text(.ok, "ok\n")
        case "/readyz":
            guard isReady else {
                let problems = problems(in: await agent.source.status())
                return text(
                    .serviceUnavailable,
                    "starting: cni.sock does not listen yet"
                        + (problems.isEmpty ? "" : ": " + problems.joined(separator: "; ")) + "\n")
            }
            let summary = StatusSummary(await agent.snapshot())
            return summary.unready.isEmpty
                ? text(.ok, summary.level == .ok ? "ok\n" : "\(summary.line)\n")
                : text(.serviceUnavailable, "\(summary.line)\n")
        case "/v1/status": return json(await status(agent))
        case "/v1/nodes": return json(await nodes(agent))
        case "/v1/policies": return json(.array(await agent.snapshot().plan.policies.map(PlanJSON.policy)))
        case "/v1/gateways": return json(await GatewayAPI.render(agent))
        case "/v1/attachments":
            return json(.array(await agent.snapshot().plan.attachments.map(PlanJSON.attachment)))
        case "/v1/plan": return json(PlanJSON.render(await agent.snapshot().plan))
        case "/v1/topology":
            return json(MeshJSON.topology(await agent.topology, configuration: agent.configuration.mesh))
        case "/v1/mtu": return json(MeshJSON.mtu(await agent.snapshot().plan.meshMTU))
        case "/v1/peers":
            do { return json(try await peers(agent)) } catch { return failure(error) }
        case "/v1/diff":
            do {
                return json(.array(try await agent.differences().map { .string($0) }))
            } catch { return failure(error) }
        default: return text(.notFound, "nothing is here; /v1/status is\n")
        }
    }

    private static func failure(_ error: any Error) -> Response {
        json(ErrorField.object((.error, .string("\(error)"))), status: .internalServerError)
    }

    private static func text(_ status: HTTPResponse.Status, _ text: String) -> Response {
        Response(
            status: status, headers: [.contentType: "text/plain; charset=utf-8"],
            body: .init(byteBuffer: ByteBuffer(string: text)))
    }

    private static func json(_ value: JSON, status: HTTPResponse.Status = .ok) -> Response {
        Response(
            status: status, headers: [.contentType: "application/json"],
            body: .init(byteBuffer: ByteBuffer(string: value.text(indent: 2) + "\n")))
    }

    /// What the source cannot do at this moment.
    private static func problems(in status: JSON) -> [String] {
        (status[SourceField.problems]?.elements ?? []).compactMap(\.string)
    }

    /// The source's own status; what could not be written to it is among its problems.
    private static func sourceStatus(_ agent: NodeAgent) async -> JSON {
        let status = await agent.source.status()
        let unwritten = await agent.publisher.problems()
        guard !unwritten.isEmpty else { return status }
        let problems = problems(in: status) + unwritten
        return status.setting(SourceField.problems, to: .array(problems.sorted().map { .string($0) }))
    }

    static func status(_ agent: NodeAgent) async -> JSON {
        let node = await agent.snapshot()
        let chain = ChainState.read(runDirectory: agent.runDirectory)
        let summary = StatusSummary(node, chain: chain)
        let (facts, plan, inventory) = (node.facts, node.plan, node.inventory)
        let counters = (try? await agent.firewallCounters()) ?? []
        let adopted = plan.attachments.filter(\.attachment.adopted)
        var warnings = plan.warnings
        let source = await sourceStatus(agent)
        for problem in problems(in: source) { warnings.append("inventory: \(problem)") }
        if let asked = node.askedEchoInterval {
            warnings.append(
                "\(node.inventory.nodes.count - 1) nodes could send echoes to this gateway: it asks each of them for one every "
                    + "\(asked) ms, so a fail-over takes longer")
        }
        if !node.meshProblem.isEmpty { warnings.append("mesh: \(node.meshProblem)") }
        if !node.echoes.obstacle.isEmpty {
            warnings.append(
                "it is not known which gateways are alive, so there is no fail-over: \(node.echoes.obstacle)")
        }
        for session in node.echoes.sessions where session.failedProofs > 0 && session.proofs == 0 {
            warnings.append(
                "gateway \(session.session.end.node) sends echoes back without translating them: its packets may leave with the pods' own addresses"
            )
        }
        for entry in adopted where !entry.policies.isEmpty {
            guard let adoption = entry.adoption else { continue }
            warnings.append("\(entry.attachment.displayName) \(adoption.text): \(adoption.remedy)")
        }
        return StatusField.object(
            (.summary, .string(summary.level.rawValue)),
            (.reasons, .array(summary.reasons.map { .string($0) })),
            (.version, .string(CulvertRelease.version)), (.node, .string(facts.nodeName)),
            (
                .datapath,
                .string(
                    !node.isInformed
                        ? "left as it was" : node.failures.isEmpty ? "as planned" : node.failures[0].message)
            ),
            (
                .refused,
                .array(
                    node.failures.map {
                        RefusedChangeField.object((.operation, .string($0.operation)), (.error, .string($0.message)))
                    })
            ),
            (
                .repairs,
                .object(
                    node.repairs.sorted { $0.key.rawValue < $1.key.rawValue }.map {
                        JSON.Member($0.key.rawValue, .integer(Int64($0.value)))
                    })
            ),
            (.tunnelProtocol, .string(node.configuration.tunnelProtocol.rawValue)),
            (.overlayAddress, facts.overlayAddress.map { .string("\($0)") } ?? .null),
            (.underlay, .string(facts.underlayDevice)), (.underlayMTU, .integer(Int64(facts.underlayMTU))),
            (.inventory, source), (.chain, chain?.json),
            (
                .serviceNetworks,
                .array(Planner.keptServices(node.configuration, inventory, facts).map { .string("\($0)") })
            ),
            (.nodes, .integer(Int64(inventory.nodes.count))), (.policies, .integer(Int64(plan.policies.count))),
            (.attachments, .integer(Int64(plan.attachments.count))), (.adopted, .integer(Int64(adopted.count))),
            (
                .adoptedBecause,
                .object(
                    plan.adoptions.sorted { $0.key < $1.key }.map { JSON.Member($0.key, .integer(Int64($0.value))) })
            ),
            (
                .firewall,
                .array(
                    counters.map {
                        CounterField.object(
                            (.rule, .string($0.comment)), (.packets, .integer(Int64(clamping: $0.packets))),
                            (.bytes, .integer(Int64(clamping: $0.bytes))))
                    })
            ),
            (.warnings, .array(warnings.map { .string($0) })),
            (.inventoryProblems, .array(inventory.problems.map { .string("\($0)") })))
    }

    /// The peers of this node's WireGuard device as planned, with what the kernel says of them.
    static func peers(_ agent: NodeAgent) async throws -> JSON {
        let there = try await agent.wireGuardDevice()?.peers ?? [:]
        let topology = await agent.topology
        var names: [WireGuardKey: (String, String)] = [:]
        for segment in topology.segments {
            if let key = segment.gateway.mesh.key {
                names[key] = (segment.gateway.name, topology.location(of: segment.gateway))
            }
        }
        for peer in topology.peers { names[peer.publicKey] = (peer.name, "") }
        let planned = await agent.snapshot().plan.host.wireGuard?.peers ?? []
        return .array(
            planned.map { peer in
                let now = there[peer.publicKey]
                let (name, location) = names[peer.publicKey] ?? ("", "")
                return PeerField.object(
                    (.name, .string(name)), (.location, .string(location)),
                    (.publicKey, .string(peer.publicKey.text)),
                    (.endpoint, now?.configuration.endpoint.map { .string("\($0)") } ?? .null),
                    (.lastHandshake, .integer(now?.lastHandshake ?? 0)),
                    (.receivedBytes, .integer(Int64(clamping: now?.receivedBytes ?? 0))),
                    (.sentBytes, .integer(Int64(clamping: now?.sentBytes ?? 0))),
                    (.persistentKeepalive, .integer(Int64(peer.persistentKeepalive))),
                    (.allowedIPs, .array((now?.configuration.allowedIPs ?? []).map { .string("\($0)") })))
            })
    }

    static func nodes(_ agent: NodeAgent) async -> JSON {
        let snapshot = await agent.snapshot()
        let (inventory, own, plan) = (snapshot.inventory, snapshot.nodeName, snapshot.plan)
        return .array(
            inventory.nodes.values.sorted { $0.name < $1.name }.map { node in
                NodeField.object(
                    (.name, .string(node.name)), (.isSelf, .bool(node.name == own)),
                    (.internalIP, node.nodeV4.map { .string("\($0)") } ?? .null),
                    (.overlayAddress, node.overlayV4.map { .string("\($0)") } ?? .null),
                    (.podCIDRs, .array(node.podCIDRs.map { .string("\($0)") })),
                    (.gatewayFor, .array(plan.policies.filter { $0.gateway == node.name }.map { .string($0.name) })))
            })
    }
}

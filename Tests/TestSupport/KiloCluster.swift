import CLinux
import Foundation
import Jansson

/// Two locations of two nodes (n1 and n2 in a, n3 and n4 in b), each of which runs a helper or Tests/Lab/kilo_like.py, which says
/// and does what Kilo does. They share one API server.
public final class KiloCluster {
    public let api: APIServer
    public let lab: Lab
    private var kilos: [String: pid_t] = [:]

    /// - Parameters:
    ///   - wireGuard: the program that speaks WireGuard for the helpers; nil: the kernel does.
    ///   - hasPublicNodes: all four nodes have public addresses, not only n1 and n3.
    public init(_ name: String, wireGuard: String? = "wireguard-go", hasPublicNodes: Bool = false) throws {
        api = try APIServer.withRoles(name)
        var extra = ["LAB_API": "\(api.socket)"]
        if let wireGuard { extra["LAB_WIREGUARD"] = wireGuard }
        if hasPublicNodes { extra["LAB_PUBLIC"] = "all" }
        lab = try Lab(
            name, script: "sites.sh",
            configuration: """
                inventory: {source: kubernetes, kubeconfig: \(api.kubeconfig)}
                encapsulation: {protocol: \(Lab.tunnelProtocol)}
                mesh: {enabled: true, kiloInterop: true}

                """, extra: extra)
        Shell.run(
            """
            cd \(lab.directory)/inventory && for f in *.yaml; do
                /usr/bin/python3 -c 'import sys, json, yaml; docs = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d]
            for d in docs:
                if d["kind"] == "Node": d["spec"]["podCIDR"] = d["spec"]["podCIDRs"][0]
            print(json.dumps(docs))' $f |
                    curl -sf --unix-socket \(api.socket) --data-binary @- http://localhost/_standin/apply > /dev/null
                rm $f
            done
            """)
    }

    deinit { for pid in kilos.values where pid > 1 { CLinux.kill(pid, SIGKILL) } }

    /// Starts Kilo on a node, which has an own view of /run/wireguard, as a container has.
    ///
    /// - Parameters:
    ///   - device: what `kilo0` is (`kilo_like.py --help`).
    ///   - tunnel: the name of the tunnel's device.
    ///   - tunnelKind: what that device is.
    public func startKilo(
        _ number: Int, device: String = "none", tunnel: String = "cilium_tunl", tunnelKind: String = "none"
    ) throws {
        let node = "n\(number)"
        let addresses = api.get("/api/v1/nodes/\(node)")?["status"]?["addresses"]?.elements ?? []
        func address(_ type: String) -> String? {
            addresses.first { $0["type"]?.string == type }?["address"]?.string
        }
        let external = address("ExternalIP").map { "--external-ip \($0)/32" } ?? ""
        let file = "\(lab.directory)/kilo\(number)"
        let started = Shell.run(
            """
            mkdir -p \(file).wireguard /run/wireguard
            (exec nsenter --net=/run/netns/\(lab.prefix)-\(node) unshare -m sh -c 'mount --bind "$0" /run/wireguard && exec "$@"' \
                \(file).wireguard /usr/bin/python3 \(Shell.packageRoot)/Tests/Lab/kilo_like.py --server unix:\(api.socket) --token ADMIN \
                --node \(node) --internal-ip \(address("InternalIP") ?? "")/32 \(external) --compatibility-ip 10.244.\(number).1/32 \
                --key \(file).key --state \(file).state --device \(device) --tunnel \(tunnel) --tunnel-kind \(tunnelKind) \
                >> \(file).log 2>&1 < /dev/null) &
            echo $!
            """)
        guard let pid = pid_t(started.output.trimmingCharacters(in: .whitespacesAndNewlines)), pid > 1 else {
            throw Lab.Failure(description: "Kilo does not start: \(started.errors)")
        }
        kilos[node] = pid
    }

    /// Ends Kilo on a node, and waits until it is gone.
    ///
    /// - Parameter cleanly: it takes back what it has done.
    public func endKilo(_ number: Int, cleanly: Bool) {
        guard let pid = kilos.removeValue(forKey: "n\(number)"), pid > 1 else { return }
        CLinux.kill(pid, cleanly ? SIGTERM : SIGKILL)
        _ = lab.eventually(20) { CLinux.kill(pid, 0) != 0 }
    }

    /// Gateways and their addresses by location, as a node of Kilo's sees them.
    public func leaders(ofKilo number: Int) -> [String: String] {
        let state = Shell.run("cat \(lab.directory)/kilo\(number).state").output
        let members = (try? JSON.parse(Array(state.utf8)))?.members ?? []
        return Dictionary(
            members.map { ($0.key, "\($0.value["leader"]?.string ?? "") \($0.value["address"]?.string ?? "")") },
            uniquingKeysWith: { first, _ in first })
    }

    /// The same, as a helper sees them.
    public func leaders(of node: String) -> [String: String] {
        let graph = lab.ctl(node, "graph -o json").json
        return Dictionary(
            (graph?["segments"]?.elements ?? []).map {
                ($0["key"]?.string ?? "", "\($0["gateway"]?.string ?? "") \($0["wireGuardAddress"]?.string ?? "")")
            }, uniquingKeysWith: { first, _ in first })
    }

    /// What stands in the annotations of a Node.
    public func annotations(_ node: String) -> [String: String] {
        Dictionary(
            (api.get("/api/v1/nodes/\(node)")?["metadata"]?["annotations"]?.members ?? []).map {
                ($0.key, $0.value.string ?? "")
            }, uniquingKeysWith: { first, _ in first })
    }

    /// Writes annotations of a Node.
    public func annotate(_ node: String, _ annotations: [String: String]) {
        let text = annotations.map { "\"\($0.key)\":\"\($0.value)\"" }.joined(separator: ",")
        Shell.run(
            "curl -sf -X PATCH --unix-socket \(api.socket) -H 'Authorization: Bearer ADMIN' -H 'Content-Type: application/merge-patch+json' --data-binary @- http://localhost/api/v1/nodes/\(node)",
            input: "{\"metadata\":{\"annotations\":{\(text)}}}")
    }
}

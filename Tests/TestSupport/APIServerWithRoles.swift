import Foundation

extension APIServer {
    /// A server that gives the helpers exactly the verbs of install/kubernetes/base/rbac.yaml, and their kubeconfig beside it.
    public static func withRoles(_ name: String) throws -> APIServer {
        let directory = "/run/culvert-\(Shell.prefix)-api-\(name)"
        Shell.run(
            "mkdir -p \(directory) && printf 'SECRET-T1 system:serviceaccount:culvert:culvertd\nADMIN admin system:masters\n' > \(directory)/tokens"
        )
        let api = try APIServer(
            name,
            arguments:
                "--token-file \(directory)/tokens --rbac \(Shell.packageRoot)/install/kubernetes/base/rbac.yaml --bookmark-seconds 1"
        )
        try """
        apiVersion: v1
        kind: Config
        current-context: lab
        contexts: [{name: lab, context: {cluster: lab, user: lab}}]
        clusters: [{name: lab, cluster: {server: "http://127.0.0.1:6443"}}]
        users: [{name: lab, user: {token: SECRET-T1}}]
        """.write(toFile: api.kubeconfig, atomically: true, encoding: .utf8)
        Shell.run("chown 65534 \(api.kubeconfig); chmod 600 \(api.kubeconfig); chmod 777 \(api.socket)")
        return api
    }

    /// What the helpers are told of it.
    public var kubeconfig: String { "\(directory)/kubeconfig" }
    /// The Unix socket that it listens on.
    public var socket: String { "\(directory)/api.unix" }
}

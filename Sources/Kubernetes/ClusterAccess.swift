import CLinux
import ClusterTransport
import FoundationEssentials
import Glibc
import Inventory
import Jansson
import Model

/// How the API server is reached and who we are to it.
public struct ClusterAccess: Equatable, Sendable {
    /// What proves who we are.
    public enum Credential: Equatable, Sendable {
        case none
        case token(String)
        /// Read again before it expires: the kubelet renews a service account's token in place.
        case tokenFile(String)
        /// `client.authentication.k8s.io` plugin.
        case exec(ExecCredentialPlugin)
        /// PEM.
        case certificate(chain: [UInt8], key: [UInt8])
    }

    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
        public init(_ description: String) { self.description = description }
    }

    /// `https://HOST:PORT`, without a path's last slash.
    public var server: String
    /// PEM; nil: the system's.
    public var certificateAuthority: [UInt8]?
    public var skipsVerification = false
    /// The name that the server's certificate is for, where it is not the server's own.
    public var tlsServerName: String?
    /// The proxy on the way.
    public var proxy: Proxy?
    public var credential: Credential
    private var origin = Origin.given

    /// `proxy-url`.
    public struct Proxy: Equatable, Sendable {
        public let host: String
        public let port: Int
        /// SOCKS version 5 (RFC 1928); else HTTP's CONNECT.
        public let isSOCKS: Bool

        /// - Throws: where it is none that can be used.
        init(_ text: String) throws(Failure) {
            let url = URL(string: text)
            guard !text.contains("@") else {
                throw Failure("proxy-url: a proxy with user and password is not supported")
            }
            guard let url, let host = url.host, !host.isEmpty, let scheme = url.scheme,
                ["http", "socks5"].contains(scheme)
            else { throw Failure("proxy-url \"\(text)\" is neither http://HOST:PORT nor socks5://HOST:PORT") }
            self.host = host
            isSOCKS = scheme == "socks5"
            port = url.port ?? (isSOCKS ? 1080 : 80)
        }
    }

    /// Where it was read, so that it can be read again.
    private enum Origin: Equatable, Sendable {
        case given
        case inCluster(server: String, directory: String)
        case kubeconfig(path: String, context: String?, server: String?)
    }

    public init(server: String, certificateAuthority: [UInt8]? = nil, credential: Credential = .none) {
        self.server = server.hasSuffix("/") ? String(server.dropLast()) : server
        self.certificateAuthority = certificateAuthority
        self.credential = credential
    }

    /// The same access, with the certificates read from their files again: they are renewed in place.
    public func reloaded() throws(Failure) -> ClusterAccess {
        switch origin {
        case .given: self
        case .inCluster(let server, let directory):
            try ClusterAccess.inCluster(server: server, environment: [:], directory: directory)
        case .kubeconfig(let path, let context, let server):
            try ClusterAccess.kubeconfig(path, context: context, server: server)
        }
    }

    /// The certificate authority of the server, and the client certificate of this program.
    var transportSecurity: TransportSecurity {
        var identity: TransportSecurity.Identity?
        if case .certificate(let chain, let key) = credential { identity = .init(chain: chain, key: key) }
        return TransportSecurity(
            certificateAuthority: certificateAuthority, identity: identity, skipsVerification: skipsVerification)
    }

    // MARK: in the cluster

    public static let serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

    /// The pod's service account (Kubernetes, "Accessing the Kubernetes API from a Pod").
    ///
    /// - Parameter server: instead of `KUBERNETES_SERVICE_HOST`, e.g. KubePrism's `https://localhost:7445`.
    public static func inCluster(
        server: String? = nil, environment: [String: String], directory: String = serviceAccount
    ) throws(Failure) -> ClusterAccess {
        let address: String
        if let server {
            address = server
        } else if let host = environment["KUBERNETES_SERVICE_HOST"], !host.isEmpty {
            let port = environment["KUBERNETES_SERVICE_PORT"] ?? "443"
            address = "https://\(host.contains(":") ? "[\(host)]" : host):\(port)"
        } else {
            throw Failure(
                "KUBERNETES_SERVICE_HOST is not set, so this process does not run in a pod: set inventory.kubeconfig or inventory.server"
            )
        }
        guard access("\(directory)/token", R_OK) == 0 else {
            throw Failure(
                "\(directory)/token cannot be read; give the pod a service account (automountServiceAccountToken), or name a file with inventory.kubeconfig"
            )
        }
        var access = ClusterAccess(
            server: address,
            certificateAuthority: FileManager.default.contents(atPath: "\(directory)/ca.crt").map { [UInt8]($0) },
            credential: .tokenFile("\(directory)/token"))
        access.origin = .inCluster(server: address, directory: directory)
        return access
    }

    // MARK: kubeconfig

    /// A kubeconfig file (Kubernetes, "Organizing Cluster Access Using kubeconfig Files").
    ///
    /// - Parameters:
    ///   - context: instead of the file's `current-context`.
    ///   - server: instead of the cluster's.
    public static func kubeconfig(
        _ path: String, context: String? = nil, server: String? = nil
    ) throws(Failure) -> ClusterAccess {
        let text = String(decoding: try secret(path), as: UTF8.self)
        let root: JSON
        do throws(YAMLDocuments.Failure) {
            root = try YAMLDocuments.parse(text).first?.value ?? .null
        } catch { throw Failure("\(path): \(error.message)") }
        guard root.members != nil else { throw Failure("\(path): is not a kubeconfig") }
        let base = PathText.directory(of: path)
        func entry(_ list: String, _ name: String, _ key: String) throws(Failure) -> JSON {
            guard let found = root[list]?.elements?.first(where: { $0["name"]?.string == name })?[key] else {
                throw Failure("\(path): there is no \(key) \"\(name)\" in \(list)")
            }
            return found
        }
        guard let name = context ?? root["current-context"]?.string, !name.isEmpty else {
            throw Failure("\(path): has no current-context; name one with inventory.context")
        }
        let chosen = try entry("contexts", name, "context")
        let cluster = try entry("clusters", chosen["cluster"]?.string ?? "", "cluster")
        guard let address = server ?? cluster["server"]?.string else {
            throw Failure("\(path): cluster \"\(chosen["cluster"]?.string ?? "")\" has no server")
        }
        /// A value that is in the file itself in base64, or in a file of its own.
        func bytes(_ object: JSON, _ key: String, isSecret: Bool) throws(Failure) -> [UInt8]? {
            if let data = object["\(key)-data"]?.string {
                guard let decoded = Data(base64Encoded: data) else {
                    throw Failure("\(path): \(key)-data is not base64")
                }
                return [UInt8](decoded)
            }
            guard let file = object[key]?.string else { return nil }
            let whole = file.hasPrefix("/") ? file : base + "/" + file
            if isSecret { return try secret(whole) }
            guard let data = FileManager.default.contents(atPath: whole) else {
                throw Failure("\(path): \(key) \(whole) cannot be read")
            }
            return [UInt8](data)
        }
        var access = ClusterAccess(
            server: address, certificateAuthority: try bytes(cluster, "certificate-authority", isSecret: false))
        access.skipsVerification = cluster["insecure-skip-tls-verify"]?.bool ?? false
        access.tlsServerName = cluster["tls-server-name"]?.string.flatMap { $0.isEmpty ? nil : $0 }
        if let text = cluster["proxy-url"]?.string, !text.isEmpty {
            do { access.proxy = try Proxy(text) } catch { throw Failure("\(path): \(error.description)") }
        }
        access.origin = .kubeconfig(path: path, context: context, server: server)
        guard let user = chosen["user"]?.string else { return access }
        let who = try entry("users", user, "user")
        if let chain = try bytes(who, "client-certificate", isSecret: false) {
            guard let key = try bytes(who, "client-key", isSecret: true) else {
                throw Failure("\(path): user \"\(user)\" has a client-certificate and no client-key")
            }
            access.credential = .certificate(chain: chain, key: key)
        } else if let token = who["token"]?.string {
            access.credential = .token(token)
        } else if let file = who["tokenFile"]?.string {
            let whole = file.hasPrefix("/") ? file : base + "/" + file
            _ = try secret(whole)
            access.credential = .tokenFile(whole)
        } else if let exec = who["exec"] {
            access.credential = .exec(try ExecCredentialPlugin(exec, path: path, base: base))
        } else if who["auth-provider"] != nil || who["username"] != nil {
            throw Failure(
                "\(path): user \"\(user)\" uses an authentication method that Kubernetes 1.26 removed; use a certificate, a token or exec"
            )
        }
        return access
    }

    private static func secret(_ path: String) throws(Failure) -> [UInt8] {
        do { return try SecretFile.contents(path) } catch { throw Failure(error.description) }
    }
}

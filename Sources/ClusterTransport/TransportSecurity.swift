import AsyncHTTPClient
import NIOCore
import NIOSSL

/// How a client connects to servers of the cluster: the authorities that it trusts, and its own certificate.
public struct TransportSecurity: Equatable, Sendable {
    /// PEM.
    public struct Identity: Equatable, Sendable {
        let chain: [UInt8]
        let key: [UInt8]
        public init(chain: [UInt8], key: [UInt8]) {
            self.chain = chain
            self.key = key
        }
    }

    /// PEM; nil: the system's.
    let certificateAuthority: [UInt8]?
    let identity: Identity?
    let skipsVerification: Bool

    public init(certificateAuthority: [UInt8]?, identity: Identity?, skipsVerification: Bool = false) {
        self.certificateAuthority = certificateAuthority
        self.identity = identity
        self.skipsVerification = skipsVerification
    }

    /// HTTP/1.1 without redirects. Each watch has a connection of its own, so that one that the network has forgotten takes
    /// no other with it; and etcd's gateway speaks nothing else.
    ///
    /// A connection that is refused fails the requests that wait for it: who makes them knows how long to wait. (The pool's own
    /// back-off goes up to a minute, and a server that is back is not asked before that is over.)
    ///
    /// - Throws: where something is no PEM.
    public func configuration(connectSeconds: Int64, idleSeconds: Int64) throws -> HTTPClient.Configuration {
        var tls = TLSConfiguration.makeClientConfiguration()
        if let certificateAuthority {
            tls.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(certificateAuthority))
        }
        if skipsVerification { tls.certificateVerification = .none }
        if let identity {
            tls.certificateChain = try NIOSSLCertificate.fromPEMBytes(identity.chain).map { .certificate($0) }
            tls.privateKey = .privateKey(try NIOSSLPrivateKey(bytes: identity.key, format: .pem))
        }
        var configuration = HTTPClient.Configuration()
        configuration.tlsConfiguration = tls
        configuration.timeout = .init(connect: .seconds(connectSeconds), read: .seconds(idleSeconds))
        configuration.httpVersion = .http1Only
        configuration.redirectConfiguration = .disallow
        configuration.connectionPool.retryConnectionEstablishment = false
        configuration.http1_1ConnectionDebugInitializer = { KeepAlive.set(on: $0) }
        return configuration
    }
}

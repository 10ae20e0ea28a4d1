import ClusterTransport
import FoundationEssentials
import Inventory
import Jansson

/// Where an etcd is: as Cilium's own configuration files say it (the format of etcd's clientv3), or file by file.
public struct EtcdConfiguration: Equatable, Sendable {
    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// The PEM files; nil: the system's authorities, no certificate.
    public struct Files: Equatable, Sendable {
        public var certificateAuthority: String?
        public var certificate: String?
        public var key: String?
        public init(certificateAuthority: String? = nil, certificate: String? = nil, key: String? = nil) {
            self.certificateAuthority = certificateAuthority
            self.certificate = certificate
            self.key = key
        }
    }

    /// `http(s)://HOST:PORT`, without a path.
    public let endpoints: [String]
    /// What `files` held when they were read.
    let transportSecurity: TransportSecurity
    private let origin: Origin

    /// So that it can be read again.
    private enum Origin: Equatable, Sendable {
        case file(String)
        case files(Files)
    }

    /// - Throws: what is wrong with which endpoint or file.
    public init(endpoints: [String], files: Files = Files()) throws(Failure) {
        try self.init(endpoints: endpoints, files: files, origin: .files(files), where: "inventory")
    }

    /// Keys `endpoints`, `trusted-ca-file` (or `ca-file`), `cert-file`, `key-file`.
    ///
    /// - Throws: what is wrong with which file.
    public init(contentsOf path: String) throws(Failure) {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw Failure(description: "\(path): cannot be read")
        }
        let root: JSON
        do { root = try YAMLDocuments.parse(String(decoding: data, as: UTF8.self)).first?.value ?? .null } catch {
            throw Failure(description: "\(path): \(error.message)")
        }
        for key in ["username", "password"] where root[key] != nil {
            throw Failure(
                description: "\(path): \(key): etcd's users and passwords are not supported; use a certificate")
        }
        func name(_ key: String) -> String? { root[key]?.string.flatMap { $0.isEmpty ? nil : $0 } }
        try self.init(
            endpoints: (root["endpoints"]?.elements ?? []).compactMap(\.string),
            files: Files(
                certificateAuthority: name("trusted-ca-file") ?? name("ca-file"), certificate: name("cert-file"),
                key: name("key-file")),
            origin: .file(path), where: path)
    }

    private init(endpoints: [String], files: Files, origin: Origin, where place: String) throws(Failure) {
        self.endpoints = endpoints.map { $0.hasSuffix("/") ? String($0.dropLast()) : $0 }
        guard !endpoints.isEmpty, endpoints.allSatisfy({ $0.hasPrefix("http://") || $0.hasPrefix("https://") }) else {
            throw Failure(description: "\(place): endpoints must be a list of http:// or https:// addresses")
        }
        func contents(_ name: String?, isSecret: Bool = false) throws(Failure) -> [UInt8]? {
            guard let name else { return nil }
            if isSecret {
                do { return try SecretFile.contents(name) } catch { throw Failure(description: error.description) }
            }
            guard let data = FileManager.default.contents(atPath: name) else {
                throw Failure(description: "\(place): \(name) cannot be read")
            }
            return [UInt8](data)
        }
        var identity: TransportSecurity.Identity?
        switch (try contents(files.certificate), try contents(files.key, isSecret: true)) {
        case (let chain?, let key?): identity = .init(chain: chain, key: key)
        case (nil, nil): break
        default: throw Failure(description: "\(place): a certificate needs its key, and a key its certificate")
        }
        transportSecurity = TransportSecurity(
            certificateAuthority: try contents(files.certificateAuthority), identity: identity)
        self.origin = origin
    }

    /// The same configuration, with the certificates read from their files again: they are renewed in place.
    func reloaded() throws(Failure) -> EtcdConfiguration {
        switch origin {
        case .file(let path): try EtcdConfiguration(contentsOf: path)
        case .files(let files): try EtcdConfiguration(endpoints: endpoints, files: files)
        }
    }
}

import ClusterTransport
import Foundation
import Inventory
import Jansson

/// Where an etcd is, as Cilium's own configuration files say it (`endpoints`, `trusted-ca-file`, `cert-file`,
/// `key-file`; the format of etcd's clientv3).
public struct EtcdConfiguration: Equatable, Sendable {
    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// `http(s)://HOST:PORT`, without a path.
    public var endpoints: [String]
    /// PEM; nil: the system's.
    public var certificateAuthority: [UInt8]?
    /// PEM.
    public var certificate: [UInt8]?
    /// PEM.
    public var key: [UInt8]?

    public init(endpoints: [String]) { self.endpoints = endpoints }

    /// - Throws: what is wrong with which file.
    public init(contentsOf path: String) throws(Failure) {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw Failure(description: "\(path): cannot be read")
        }
        let root: JSON
        do { root = try YAMLDocuments.parse(String(decoding: data, as: UTF8.self)).first?.value ?? .null } catch {
            throw Failure(description: "\(path): \(error.message)")
        }
        endpoints = (root["endpoints"]?.elements ?? []).compactMap(\.string).map {
            $0.hasSuffix("/") ? String($0.dropLast()) : $0
        }
        guard !endpoints.isEmpty, endpoints.allSatisfy({ $0.hasPrefix("http://") || $0.hasPrefix("https://") }) else {
            throw Failure(description: "\(path): endpoints must be a list of http:// or https:// addresses")
        }
        func file(_ key: String, isSecret: Bool = false) throws(Failure) -> [UInt8]? {
            guard let name = root[key]?.string, !name.isEmpty else { return nil }
            if isSecret {
                do { return try SecretFile.contents(name) } catch { throw Failure(description: error.description) }
            }
            guard let data = FileManager.default.contents(atPath: name) else {
                throw Failure(description: "\(path): \(key) \(name) cannot be read")
            }
            return [UInt8](data)
        }
        certificateAuthority = try file("trusted-ca-file")
        certificate = try file("cert-file")
        key = try file("key-file", isSecret: true)
    }
}

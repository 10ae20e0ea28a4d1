import CLinux
import Crypto
import FoundationEssentials
import Glibc
import Inventory
import Model

/// The node's WireGuard key (Curve25519, RFC 7748): made on the node, and never anywhere else.
public struct WireGuardKeyFile: Sendable {
    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    public let publicKey: WireGuardKey
    /// 32 bytes. Not for logs, plans or messages.
    let privateKey: [UInt8]

    /// Reads `DIRECTORY/wireguard.key`, or makes it, mode 0600, where there is none.
    ///
    /// - Throws: where the file can be read by others, is no key, or cannot be made; with the remedy.
    public init(stateDirectory: String) throws {
        let path = stateDirectory + "/wireguard.key"
        let key: Curve25519.KeyAgreement.PrivateKey
        var status = stat()
        if stat(path, &status) == 0 {
            guard status.st_mode & 0o077 == 0 else {
                throw Failure(description: "\(path) can be read by others; it holds a private key: chmod 600 \(path)")
            }
            guard let data = FileManager.default.contents(atPath: path) else {
                throw Failure(description: "\(path) cannot be read by this user: chown it to the helper's user")
            }
            let text = String(decoding: data, as: UTF8.self).trimmed
            guard let bytes = WireGuardKey(text)?.bytes,
                let read = try? Curve25519.KeyAgreement.PrivateKey(rawRepresentation: bytes)
            else {
                throw Failure(
                    description:
                        "\(path) is not a WireGuard key (32 bytes in base64); put the right one back, or remove it for a new one"
                )
            }
            key = read
        } else {
            mkdir(stateDirectory, 0o750)
            key = Curve25519.KeyAgreement.PrivateKey()
            try WireGuardKeyFile.write(key.rawRepresentation.base64EncodedString() + "\n", path)
        }
        privateKey = [UInt8](key.rawRepresentation)
        guard let own = WireGuardKeyFile.publicKey(of: privateKey) else {
            throw Failure(description: "\(path) has no public key")
        }
        publicKey = own
    }

    /// nil where those are not 32 bytes.
    static func publicKey(of privateKey: [UInt8]) -> WireGuardKey? {
        guard let key = try? Curve25519.KeyAgreement.PrivateKey(rawRepresentation: privateKey) else { return nil }
        return WireGuardKey(bytes: [UInt8](key.publicKey.rawRepresentation))
    }

    private static func write(_ text: String, _ path: String) throws {
        do { try AtomicFile.write(text, to: path, mode: 0o600, isSynced: true) } catch {
            throw Failure(
                description:
                    "\(error); the directory must belong to the helper's user, or name another with --state-dir")
        }
    }
}

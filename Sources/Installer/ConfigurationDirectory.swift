/// What a directory of network configurations holds, as far as it matters for the chain: a value, so that the choice of
/// what to do is a function of it.
public struct DirectoryContent: Equatable, Sendable {
    public struct File: Equatable, Sendable {
        public let name: String
        public let body: Body
        public init(_ name: String, _ body: Body) {
            self.name = name
            self.body = body
        }
    }
    public enum Body: Equatable, Sendable {
        /// - Parameter mode: the permission bits.
        case regular([UInt8], mode: UInt32)
        /// A symbolic link, and what it leads to.
        case link([UInt8])
        /// Not known: why it could not be read.
        case unreadable(String)
    }

    /// Sorted by name, as the runtimes do: of the directory's files those that a runtime reads (`.conf`, `.conflist`,
    /// `.json`), and those that Cilium has put aside (`.cilium_bak` behind such a name).
    public var files: [File]
    /// Networks with a drop-in of ours, `<network>/90-culvert.conf`, and its bytes.
    public var dropIns: [String: [UInt8]]

    public init(files: [File], dropIns: [String: [UInt8]] = [:]) {
        self.files = files.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
        self.dropIns = dropIns
    }
}

/// Names in the directory.
public enum ChainFileNames {
    /// Names for a list of our own, in the order of preference. The one that is taken sorts before the file of the network.
    public static let ownLists = ["02-culvert.conflist", "00-culvert.conflist", "00-0-culvert.conflist"]
    /// Inside the directory that has the network's name.
    public static let dropIn = "90-culvert.conf"
    /// Left in a network's directory that the installer has made.
    public static let madeDirectory = ".made-by-culvert"
    /// Behind the name of a file that Cilium has put aside.
    public static let putAside = ".cilium_bak"
    /// Of temporary files. No runtime reads a file with this ending.
    public static let temporaryPrefix = ".culvert-"
    public static let temporarySuffix = ".tmp"

    /// A runtime reads a file of this name: libcni's `ConfFiles` looks at what follows the last dot.
    public static func isRead(_ name: String) -> Bool {
        name.hasSuffix(".conf") || name.hasSuffix(".conflist") || name.hasSuffix(".json")
    }
    static func isPutAside(_ name: String) -> Bool {
        name.hasSuffix(putAside) && isRead(String(name.dropLast(putAside.count)))
    }
    static func precedes(_ a: String, _ b: String) -> Bool { a.utf8.lexicographicallyPrecedes(b.utf8) }
}

/// One change to the directory. Each is one `rename` or `unlink`, so a reader sees the state before or the state after it.
public enum DirectoryChange: Equatable, Sendable {
    /// A file that is ours alone.
    case write(name: String, [UInt8], mode: UInt32)
    /// A file of another program, which contained `expected` when the change was chosen. The change is not carried out
    /// if the file contains something else now.
    case replace(name: String, expected: [UInt8], [UInt8], mode: UInt32)
    /// A file that is ours alone.
    case remove(name: String)
    case writeDropIn(network: String, [UInt8])
    case removeDropIn(network: String)
}

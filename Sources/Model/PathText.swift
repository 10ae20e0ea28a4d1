/// What a path says of directory and name. (Of Foundation only its essentials are used, which do not have this: the rest brings
/// 40 MB of tables for dates and languages into the programs.)
public enum PathText {
    /// `/a` of `/a/b`; empty where the path names no directory.
    public static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "" }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// `b` of `/a/b`.
    public static func name(of path: String) -> String {
        path.lastIndex(of: "/").map { String(path[path.index(after: $0)...]) } ?? path
    }
}

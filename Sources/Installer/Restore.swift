/// What takes Culvert's plugin out of a directory of network configurations.
public enum Restore {
    /// Files that belong to Culvert are removed. From files of others only Culvert's entry is removed, whoever has
    /// rewritten them since. Entries without the installer's mark belong to whoever wrote them, and stay.
    public static func changes(_ content: DirectoryContent) -> [DirectoryChange] {
        let view = DirectoryView(content)
        var changes: [DirectoryChange] = []
        // Lists that a runtime reads first go first: behind them stands the network's own file.
        for own in view.ownLists { changes.append(.remove(name: own.name)) }
        for name in view.ownPutAside { changes.append(.remove(name: name)) }
        for network in content.dropIns.keys.sorted() { changes.append(.removeDropIn(network: network)) }
        for file in content.files {
            guard !view.ownLists.contains(where: { $0.name == file.name }), !view.ownPutAside.contains(file.name),
                case .regular(let bytes, let mode) = file.body
            else { continue }
            let name =
                ChainFileNames.isPutAside(file.name)
                ? String(file.name.dropLast(ChainFileNames.putAside.count)) : file.name
            guard let list = try? ConfigurationListFile(bytes, fileName: name) else { continue }
            let clean = list.withoutMarkedEntries()
            if clean != bytes {
                changes.append(.replace(name: file.name, expected: bytes, clean, mode: mode))
            }
        }
        return changes
    }

    /// Files that still call Culvert's plugin after `changes`, because somebody else has written the entry.
    public static func foreignEntries(_ content: DirectoryContent) -> [String] {
        content.files.filter { file in
            guard ChainFileNames.isRead(file.name), let bytes = file.bytes,
                let list = try? ConfigurationListFile(bytes, fileName: file.name)
            else { return false }
            return list.foreignEntries > 0
        }.map(\.name)
    }
}

import Jansson
import Model

/// Reads fields of one object and remembers where it is, so that an error names the field.
struct ManifestReader {
    let value: JSON
    /// e.g. `spec.selectors[0]`; empty for the object itself.
    let path: String

    struct Failure: Error, Equatable {
        let field: String
        let message: String
    }

    init(_ value: JSON, path: String = "") {
        self.value = value
        self.path = path
    }

    private func child(_ key: String) -> String { path.isEmpty ? key : "\(path).\(key)" }
    func fail(_ key: String, _ message: String) -> Failure { Failure(field: child(key), message: message) }

    /// The member, nil when it is absent or null.
    private func member(_ key: String) -> JSON? {
        guard let value = value[key], !value.isNull else { return nil }
        return value
    }

    func string(_ key: String) throws(Failure) -> String? {
        guard let value = member(key) else { return nil }
        guard let text = value.string else { throw fail(key, "is not a string") }
        return text
    }
    func required(_ key: String) throws(Failure) -> String {
        guard let text = try string(key), !text.isEmpty else { throw fail(key, "is missing") }
        return text
    }
    func integer(_ key: String) throws(Failure) -> Int64? {
        guard let value = member(key) else { return nil }
        guard let number = value.integer else { throw fail(key, "is not a whole number") }
        return number
    }
    func bool(_ key: String) throws(Failure) -> Bool? {
        guard let value = member(key) else { return nil }
        guard let flag = value.bool else { throw fail(key, "is not true or false") }
        return flag
    }
    func object(_ key: String) throws(Failure) -> ManifestReader? {
        guard let value = member(key) else { return nil }
        guard value.members != nil else { throw fail(key, "is not an object") }
        return ManifestReader(value, path: child(key))
    }
    func list(_ key: String) throws(Failure) -> [ManifestReader]? {
        guard let value = member(key) else { return nil }
        guard let elements = value.elements else { throw fail(key, "is not a list") }
        return elements.enumerated().map { ManifestReader($0.element, path: "\(child(key))[\($0.offset)]") }
    }
    func objects(_ key: String) throws(Failure) -> [ManifestReader]? {
        guard let elements = try list(key) else { return nil }
        for element in elements where element.value.members == nil {
            throw Failure(field: element.path, message: "is not an object")
        }
        return elements
    }
    func strings(_ key: String) throws(Failure) -> [String]? {
        guard let elements = try list(key) else { return nil }
        var texts: [String] = []
        for element in elements {
            guard let text = element.value.string else {
                throw Failure(field: element.path, message: "is not a string")
            }
            texts.append(text)
        }
        return texts
    }
    func map(_ key: String) throws(Failure) -> [String: String] {
        guard let value = member(key) else { return [:] }
        guard let members = value.members else { throw fail(key, "is not a map of strings") }
        var map: [String: String] = [:]
        for member in members {
            guard let text = member.value.string else {
                throw fail("\(key)[\"\(member.key)\"]", "is not a string (quote it)")
            }
            map[member.key] = text
        }
        return map
    }
    func networks(_ key: String) throws(Failure) -> [IPNetwork] {
        var networks: [IPNetwork] = []
        for (index, text) in (try strings(key) ?? []).enumerated() {
            guard let network = IPNetwork(text) else {
                throw fail("\(key)[\(index)]", "\"\(text)\" is not a network in CIDR notation")
            }
            networks.append(network)
        }
        return networks
    }
    func namespaces(_ key: String) throws(Failure) -> NamespaceList {
        let names = try strings(key) ?? []
        do throws(NamespaceList.Failure) { return try NamespaceList(names) } catch {
            throw fail("\(key)[\(error.place)]", error.message)
        }
    }

    /// Networks of Services, of a list of texts that stands at `key`.
    func serviceNetworks(_ key: String, _ texts: [String]) throws(Failure) -> [IPNetwork] {
        var networks: [IPNetwork] = []
        for text in texts {
            guard let network = IPNetwork(text) else {
                throw fail(key, "\"\(text)\" is not a network in CIDR notation")
            }
            guard ServiceNetworks.isPlausible(network) else {
                throw fail(key, "\(network) is larger than a network of Services can be")
            }
            networks.append(network)
        }
        return networks
    }
    /// The first member that is not one of these.
    func unknownMember(besides known: Set<String>) -> String? { unknownMembers(besides: known).first }
    /// The members that are not one of these.
    func unknownMembers(besides known: Set<String>) -> [String] {
        (value.members ?? []).filter { !known.contains($0.key) && !$0.value.isNull }.map { child($0.key) }
    }
}

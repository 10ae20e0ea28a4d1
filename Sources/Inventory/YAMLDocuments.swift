import Jansson
import Yams

/// YAML (and JSON, which is a part of it) as JSON values.
public enum YAMLDocuments {
    public struct Failure: Error, Equatable {
        /// 1-based.
        public let document: Int
        public let message: String
    }

    /// Values per byte of text, above which the text is an alias bomb.
    static let maximumExpansion = 10

    /// Every document of the text, empty ones left out; with the error that ended the reading, if one did.
    public static func parse(_ text: String) throws(Failure) -> [(number: Int, value: JSON)] {
        var documents: [(Int, JSON)] = []
        var number = 0
        var budget = text.utf8.count * maximumExpansion + 1000
        do {
            // The sequence ends at an error, and keeps it.
            var nodes = try Yams.compose_all(yaml: text)
            while let node = nodes.next() {
                number += 1
                let value = try convert(node, &budget)
                if !value.isNull { documents.append((number, value)) }
            }
            if let error = nodes.error { throw error }
        } catch let error as Failure {
            throw Failure(document: number, message: error.message)
        } catch {
            throw Failure(document: number + 1, message: describe(error))
        }
        return documents
    }

    /// Where and what is wrong. Never a word of the text: the text may be a kubeconfig, or have a preshared key in it.
    private static func describe(_ error: any Error) -> String {
        func place(_ mark: Mark) -> String { "line \(mark.line), column \(mark.column): " }
        return switch error as? YamlError {
        case .scanner(let context, let problem, let mark, _)?, .parser(let context, let problem, let mark, _)?,
            .composer(let context, let problem, let mark, _)?:
            "is not YAML: " + place(mark) + problem + (context.map { " (\($0.text), line \($0.mark.line))" } ?? "")
        case .reader(let problem, let offset, _, _)?:
            "is not YAML: " + (offset.map { "character \($0): " } ?? "") + problem
        case .duplicatedKeysInMapping(_, let context)?:
            "is not YAML: the map in line \(context.mark.line) has a key twice"
        default: "is not YAML"
        }
    }

    private static func convert(_ node: Yams.Node, _ budget: inout Int) throws -> JSON {
        budget -= 1
        guard budget > 0 else {
            throw Failure(document: 0, message: "its aliases expand to more than \(maximumExpansion) values a byte")
        }
        switch node {
        case .mapping(let mapping):
            var members: [JSON.Member] = []
            for (key, value) in mapping {
                guard let name = key.string else { throw Failure(document: 0, message: "a key is not a string") }
                members.append(JSON.Member(name, try convert(value, &budget)))
            }
            return .object(members)
        case .sequence(let sequence):
            var elements: [JSON] = []
            for element in sequence { elements.append(try convert(element, &budget)) }
            return .array(elements)
        case .scalar(let scalar):
            if scalar.style != .plain && scalar.style != .any { return .string(scalar.string) }
            if node.null != nil { return .null }
            // Yams reads YAML 1.1's numbers to the base 60, `1:30`, and traps where such a number overflows. Kubernetes'
            // own YAML has none.
            if scalar.string.utf8.contains(UInt8(ascii: ":")) { return .string(scalar.string) }
            if let value = node.bool { return .bool(value) }
            if let value = node.int { return .integer(Int64(value)) }
            if let value = node.float { return .real(value) }
            return .string(scalar.string)
        case .alias: throw Failure(document: 0, message: "an alias names no anchor")
        }
    }
}

import Agent
import Foundation
import TestSupport
import Testing

/// The documentation prints the command that removes what the helper has written into Nodes: with every annotation.
@Suite struct PublishedAnnotationsTests {
    @Test func theDocumentedCommandsRemoveEveryAnnotation() throws {
        func documentation(_ name: String) throws -> String {
            try String(contentsOfFile: "\(Shell.packageRoot)/docs/\(name)", encoding: .utf8)
        }
        let ofOne = PublishedAnnotations.removal(of: "NODE")
        #expect(try documentation("migrating-from-kilo.md").contains("   \(ofOne)\n"))
        let ofAll = ofOne.replacing("node NODE", with: "nodes --all")
        #expect(try documentation("uninstall.md").contains("\n\(ofAll)\n"))
    }
}

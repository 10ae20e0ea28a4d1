import Foundation
import Inventory

/// A file of the inventory directory, and the helper's configuration.
func check(_ bytes: [UInt8]) {
    guard let text = String(validating: bytes, as: UTF8.self) else { return }
    _ = Manifests.parse(text, file: "f")
    _ = try? HelperConfiguration(text: text)
}

import Foundation
import HelperProtocol

/// A message on `cni.sock`, and an answer of the helper.
func check(_ bytes: [UInt8]) {
    if let request = try? HelperRequest(message: bytes) {
        precondition(
            (try? HelperRequest(message: request.json.bytes())) != nil, "a request does not survive its own text")
    }
    _ = try? HelperResponse(message: bytes)
}

import CNI
import Foundation
import HelperProtocol
import Jansson
import Testing

/// Messages between plugin and helper.
@Suite struct HelperMessageTests {
    /// The helper reads a request on a thread of 512 KiB stack (`culvert_start_thread`).
    @Test func aRequestThatIsNestedAsDeepAsPossibleIsRefused() async {
        for depth in [33, 100, 2000, 2047, 2048, 60_000] {
            let text =
                "{\"labels\":" + String(repeating: "[", count: depth) + String(repeating: "]", count: depth) + "}"
            let isRefused = await withCheckedContinuation { continuation in
                let thread = Thread {
                    do throws(CNIError) {
                        _ = try HelperRequest(message: Array(text.utf8))
                        continuation.resume(returning: false)
                    } catch { continuation.resume(returning: error.code == CNIError.Code.requestRefused.rawValue) }
                }
                thread.stackSize = 512 * 1024
                thread.start()
            }
            #expect(isRefused, "\(depth)")
        }
    }

    @Test func bracketsInATextAreNoNesting() throws {
        var request = HelperRequest(.add)
        request.containerID = "c"
        request.interfaceName = "eth0"
        request.addresses = ["10.244.1.9/32"]
        request.labels = [("a", String(repeating: "[{\"\\", count: 100))]
        let read = try HelperRequest(message: request.json.bytes())
        #expect(read.labels.first?.1 == request.labels.first?.1)
    }
}

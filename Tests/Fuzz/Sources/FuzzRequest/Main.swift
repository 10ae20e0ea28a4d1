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

/// `LLVMFuzzerRunDriver` of libFuzzer.
@_silgen_name("LLVMFuzzerRunDriver")
func runDriver(
    _ argc: UnsafeMutablePointer<CInt>,
    _ argv: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ body: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
) -> CInt

@main
enum Fuzz {
    static func main() {
        var argc = CommandLine.argc
        var argv = CommandLine.unsafeArgv
        exit(
            runDriver(&argc, &argv) { bytes, count in
                check([UInt8](UnsafeBufferPointer(start: bytes, count: count)))
                return 0
            })
    }
}

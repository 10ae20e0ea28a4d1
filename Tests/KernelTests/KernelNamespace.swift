import Foundation
import Testing

/// A network namespace of this process's own; everything in it is gone with the process. The suites in it take turns, because
/// they share it.
@Suite(
    .serialized,
    .enabled(
        if: ProcessInfo.processInfo.environment["CULVERT_OWN_NETNS"] == "1",
        "needs root and a network namespace; install/test.sh gives both"))
enum KernelNamespace {}

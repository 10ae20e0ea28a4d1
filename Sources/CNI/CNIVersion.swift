/// The versions of the CNI specification that the plugin speaks.
public enum CNIVersion: Int, Sendable, CaseIterable {
    case v0_3_0, v0_3_1, v0_4_0, v1_0_0, v1_1_0

    public static let latest = CNIVersion.v1_1_0

    public var text: String {
        switch self {
        case .v0_3_0: "0.3.0"
        case .v0_3_1: "0.3.1"
        case .v0_4_0: "0.4.0"
        case .v1_0_0: "1.0.0"
        case .v1_1_0: "1.1.0"
        }
    }

    public init?(_ text: String) {
        for version in CNIVersion.allCases where version.text == text {
            self = version
            return
        }
        return nil
    }

    /// CHECK exists from 0.4.0 on; GC and STATUS from 1.1.0 on.
    public var hasCheck: Bool { rawValue >= CNIVersion.v0_4_0.rawValue }
    public var hasGarbageCollection: Bool { self == .v1_1_0 }
    /// Routes carry `mtu` (and more) from 1.1.0 on.
    public var hasRouteMTU: Bool { self == .v1_1_0 }
}

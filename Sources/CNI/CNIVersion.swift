/// The versions of the CNI specification that the plugin speaks.
public enum CNIVersion: Int, Sendable, CaseIterable {
    case version030, version031, version040, version100, version110

    public static let latest = CNIVersion.version110

    public var text: String {
        switch self {
        case .version030: "0.3.0"
        case .version031: "0.3.1"
        case .version040: "0.4.0"
        case .version100: "1.0.0"
        case .version110: "1.1.0"
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
    public var hasCheck: Bool { rawValue >= CNIVersion.version040.rawValue }
    public var hasGarbageCollection: Bool { self == .version110 }
    /// Routes carry `mtu` (and more) from 1.1.0 on.
    public var hasRouteMTU: Bool { self == .version110 }
}

import Model

/// Every kind of encapsulation, by its name in the configuration.
public enum EncapsulationRegistry {
    static func encapsulation(_ name: Configuration.TunnelProtocol) -> any Encapsulation {
        switch name {
        case .ipip: IPIPEncapsulation()
        case .fou: FOUEncapsulation()
        case .vxlan: VXLANEncapsulation()
        }
    }

    static var all: [any Encapsulation] { Configuration.TunnelProtocol.allCases.map(encapsulation) }

    /// Modules that the kernel needs for all kinds, each once, as modprobe(8) names them.
    public static var kernelModules: [String] {
        all.flatMap(\.kernelModules).reduce(into: []) { modules, module in
            if !modules.contains(module) { modules.append(module) }
        }
    }
}

extension Configuration {
    /// How packets are carried to gateways.
    var encapsulation: any Encapsulation { EncapsulationRegistry.encapsulation(tunnelProtocol) }
}

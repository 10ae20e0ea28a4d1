import Model
import TestSupport
import Testing

@testable import Planner

/// What holds of every kind of encapsulation.
struct EncapsulationTests {
    static let local = IPAddress(v4: 0x0AF4_0101)
    static let gateways = [IPAddress(v4: 0x0AF4_0201), IPAddress(v4: 0x0AF4_0301), local]
    static let identities = [
        EgressIdentity.defaultAddress, EgressIdentity(.init(.address(IPAddress(v4: 0xC000_021F)))),
        EgressIdentity(.init(.interface("eth1"))), EgressIdentity(.init(.untranslated)),
    ]
    static let paths = identities.flatMap { identity in
        gateways.map { TunnelPath(local: local, gateway: $0, identity: identity) }
    }
    static let overlayMTU = 1450

    func tunnels(_ encapsulation: any Encapsulation) -> TunnelLinks {
        TunnelLinks(
            encapsulation: encapsulation, local: Self.local, overlayMTU: Self.overlayMTU,
            senders: Self.paths.map { .init(gateway: $0.gateway, identity: $0.identity) },
            served: Set(Self.identities), previous: AssignedIDs())
    }

    @Test(arguments: Configuration.TunnelProtocol.allCases)
    func aNameGivesTheKindOfThatName(_ name: Configuration.TunnelProtocol) {
        #expect(EncapsulationRegistry.encapsulation(name).name == name)
    }

    @Test(arguments: EncapsulationRegistry.all)
    func aKeyStandsForExactlyOneDevice(_ encapsulation: any Encapsulation) {
        let devices =
            Self.identities.map {
                (encapsulation.receiverKey($0), encapsulation.receiver(local: Self.local, $0))
            } + Self.paths.map { (encapsulation.senderKey($0), encapsulation.sender($0)) }
        for (key, kind) in devices {
            for (otherKey, otherKind) in devices {
                #expect((key == otherKey) == (kind == otherKind), "\(key) \(kind), \(otherKey) \(otherKind)")
            }
        }
        #expect(Set(Self.identities.map(encapsulation.receiverKey)).count == Self.identities.count)
        #expect(Set(Self.identities.map(encapsulation.wireKey)).count == Self.identities.count)
        for path in Self.paths {
            #expect(encapsulation.numberedKeys(path).contains(encapsulation.senderKey(path)))
            if path.isToSelf { #expect(encapsulation.senderKey(path) != encapsulation.receiverKey(path.identity)) }
        }
    }

    /// A helper of the next release finds the numbers of this one on disk.
    @Test(arguments: [
        (Configuration.TunnelProtocol.ipip, "0>10.244.2.1", "0>10.244.1.1", "0"),
        (.fou, "0>10.244.2.1", "0>10.244.1.1", "0"),
        (.vxlan, "vxlan/0", "vxlan/0>self", "vxlan/0"),
    ])
    func keysOnDiskStayAsTheyAre(
        _ name: Configuration.TunnelProtocol, _ sender: String, _ toSelf: String, _ receiver: String
    ) {
        let encapsulation = EncapsulationRegistry.encapsulation(name)
        #expect(encapsulation.senderKey(Self.paths[0]) == sender)
        #expect(encapsulation.senderKey(Self.paths[2]) == toSelf)
        #expect(encapsulation.receiverKey(.defaultAddress) == receiver)
    }

    @Test(arguments: EncapsulationRegistry.all)
    func theSmallestMTUIsTheOverlaysLessTheLargestOverhead(_ encapsulation: any Encapsulation) throws {
        let all = tunnels(encapsulation).tunnels.values
        for tunnel in all {
            #expect(tunnel.link.mtu == Self.overlayMTU - encapsulation.overhead(of: tunnel.identity))
            #expect(tunnel.podMTU == tunnel.link.mtu - encapsulation.ebpfAllowance)
        }
        let largest = try #require(Self.identities.map(encapsulation.overhead).max())
        #expect(all.map(\.link.mtu).min() == Self.overlayMTU - largest)
    }

    @Test(arguments: EncapsulationRegistry.all)
    func everySenderHasADeviceAndANextHopThatNamesIt(_ encapsulation: any Encapsulation) throws {
        let tunnels = tunnels(encapsulation)
        for path in Self.paths {
            let device = try #require(tunnels.tunnel(gateway: path.gateway, identity: path.identity)).link.name
            let hop = try #require(tunnels.nextHop(gateway: path.gateway, identity: path.identity))
            switch hop {
            case .device(let name): #expect(name == device)
            case .via(let peer, let name):
                #expect(name == device)
                #expect(peer != Self.local)
                #expect(tunnels.neighbours.contains { $0.device == device && $0.peer == peer })
            case .blackhole, .group, .pair: Issue.record("\(hop) leads into no tunnel")
            }
        }
    }

    @Test(arguments: EncapsulationRegistry.all)
    func everyEnvelopeIsClosedWhereNothingIsReceived(_ encapsulation: any Encapsulation) {
        for envelope in encapsulation.envelopes {
            #expect(!envelope.isOpen(receiving: []), "\(envelope.name)")
        }
        let chain = TunnelFilter.chain(
            tunnels: tunnels(encapsulation), local: Self.local, serving: [], overlay: .cilium, mesh: false, sources: nil
        )
        #expect(chain.rules.count == encapsulation.envelopes.count)
        #expect(chain.rules.allSatisfy { $0.statements.last == .drop })
    }

    @Test(arguments: EncapsulationRegistry.all)
    func eachIdentityComesInExactlyOneEnvelope(_ encapsulation: any Encapsulation) {
        for identity in Self.identities {
            #expect(encapsulation.envelopes.filter { $0.isOpen(receiving: [identity]) }.count == 1, "\(identity)")
        }
    }

    @Test(arguments: EncapsulationRegistry.all)
    func aKindNamesItsKernelModules(_ encapsulation: any Encapsulation) {
        #expect(!encapsulation.kernelModules.isEmpty)
        #expect(Set(encapsulation.kernelModules).isSubset(of: EncapsulationRegistry.kernelModules))
    }
}

import Model

/// One change to a device's peers.
public enum WireGuardChange: Equatable, Sendable {
    case remove(WireGuardKey)
    /// `replacing`: the allowed addresses that the peer has go; otherwise those named are added. `endpoint` nil: the one
    /// that it has stays.
    case set(WireGuardPeer, replacing: Bool, endpoint: SocketAddress?)
}

/// What makes a device's peers equal to the wanted ones: only peers that differ are touched, so that the tunnels of the
/// others go on undisturbed.
public enum WireGuardChanges {
    /// A peer that has not shaken hands for so long is not there where the kernel thinks (REJECT_AFTER_TIME of the
    /// WireGuard paper, section 6.1), seconds.
    public static let handshakeLifetime: Int64 = 180

    /// - Parameters:
    ///   - previous: what was wanted last; nil after a start.
    ///   - now: seconds since 1970.
    ///   - isRouted: whether packets for an address go through the device itself. A peer that has moved there, by a
    ///     packet that came through another tunnel, would never be reached again: what is sent to it is sent to it again.
    public static func between(
        _ there: [WireGuardKey: PeerStatus], _ wanted: [WireGuardPeer], previous: [WireGuardPeer]?, now: Int64,
        isRouted: (IPAddress) -> Bool = { _ in false }
    ) -> [WireGuardChange] {
        var changes: [WireGuardChange] = []
        let keys = Set(wanted.map(\.publicKey))
        for key in there.keys.sorted() where !keys.contains(key) { changes.append(.remove(key)) }
        let before = Dictionary(
            (previous ?? []).map { ($0.publicKey, $0.endpoint) }, uniquingKeysWith: { first, _ in first })
        for peer in wanted {
            guard let old = there[peer.publicKey] else {
                changes.append(.set(peer, replacing: true, endpoint: peer.endpoint))
                continue
            }
            // A peer that moved is found by what it sends; its endpoint is only set where ours is news, or where the
            // peer is not heard of.
            var endpoint: SocketAddress?
            if let told = peer.endpoint, told != old.configuration.endpoint {
                let isNews = before[peer.publicKey].map { $0 != told } ?? false
                let isSilent = now - old.lastHandshake > handshakeLifetime
                let isLoop = old.configuration.endpoint.map { isRouted($0.address) } ?? true
                if isNews || isSilent || isLoop { endpoint = told }
            }
            let oldNetworks = Set(old.configuration.allowedIPs)
            let isSmaller = !oldNetworks.isSubset(of: peer.allowedIPs)
            let added = isSmaller ? peer.allowedIPs : peer.allowedIPs.filter { !oldNetworks.contains($0) }
            let same =
                added.isEmpty && !isSmaller && old.configuration.presharedKey == peer.presharedKey
                && old.configuration.persistentKeepalive == peer.persistentKeepalive && endpoint == nil
            if same { continue }
            var change = peer
            change.allowedIPs = added
            changes.append(.set(change, replacing: isSmaller, endpoint: endpoint))
        }
        return changes
    }
}

import Model

/// Which policies may select a pod, by one label of each selector: a pod is compared with few of thousands of policies.
struct SelectorIndex: Sendable {
    private struct Label: Hashable, Sendable {
        let key: String
        let value: String
    }
    /// Places of policies with a selector that asks for this label.
    private var byLabel: [Label: [Int]] = [:]
    /// Places of those with a selector that asks for no label by its value, or with selectors that cannot be read.
    private var others: [Int] = []

    init(_ policies: [EgressPolicy]) {
        // Of several labels the one that the fewest selectors ask for.
        var uses: [Label: Int] = [:]
        for policy in policies {
            for selector in policy.selectors {
                for (key, value) in selector.pod?.matchLabels ?? [:] {
                    uses[Label(key: key, value: value), default: 0] += 1
                }
            }
        }
        for (place, policy) in policies.enumerated() {
            let labels = policy.selectors.map { selector in
                (selector.pod?.matchLabels ?? [:]).map { Label(key: $0.key, value: $0.value) }.min {
                    (uses[$0] ?? 0, $0.key, $0.value) < (uses[$1] ?? 0, $1.key, $1.value)
                }
            }
            if policy.hasUnknownSelectors || labels.contains(nil) {
                others.append(place)
            } else {
                for label in Set(labels.compactMap { $0 }) { byLabel[label, default: []].append(place) }
            }
        }
    }

    /// Places of the policies that may select a pod with these labels, in order, each once.
    func candidates(_ labels: [String: String]) -> [Int] {
        var places = others
        for (key, value) in labels { places += byLabel[Label(key: key, value: value)] ?? [] }
        places.sort()
        var last: Int?
        places.removeAll { place in
            defer { last = place }
            return place == last
        }
        return places
    }
}

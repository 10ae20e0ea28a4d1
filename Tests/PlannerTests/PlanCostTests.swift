import Model
import TestSupport
import Testing

@testable import Planner

/// What spares a plan the work for thousands of policies and pods changes nothing of what it says.
struct PlanCostTests {
    @Test(arguments: 0..<20) func aPodGetsTheSamePoliciesWhetherOneOrAllAreLookedAt(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        func some(_ count: ClosedRange<Int>) -> [String: String] {
            Dictionary(
                (0..<Int.random(in: count, using: &random)).map { _ in
                    ("k\(Int.random(in: 0...3, using: &random))", "v\(Int.random(in: 0...2, using: &random))")
                }, uniquingKeysWith: { first, _ in first })
        }
        let policies = (0..<40).map { number in
            var policy = EgressPolicy(name: "p\(number)", source: .culvert)
            policy.selectors = (0..<Int.random(in: 0...2, using: &random)).map { _ in
                var selector = EgressPolicy.Selector(pod: LabelSelector(matchLabels: some(0...2)))
                switch Int.random(in: 0...3, using: &random) {
                case 0: selector.pod = nil
                case 1:
                    selector.pod?.matchExpressions = [.init(key: "k0", operation: .notIn, values: ["v1"])]
                default: break
                }
                return selector
            }
            policy.hasUnknownSelectors = Int.random(in: 0...9, using: &random) == 0
            return policy
        }
        let index = SelectorIndex(policies)
        for _ in 0..<50 {
            let labels = some(0...4)
            let candidates = index.candidates(labels)
            #expect(candidates == Set(candidates).sorted())
            for (place, policy) in policies.enumerated() where !candidates.contains(place) {
                #expect(
                    !policy.selectors.contains { $0.pod?.matches(labels) ?? true }, "seed \(seed): p\(place), \(labels)"
                )
                #expect(!policy.hasUnknownSelectors)
            }
        }
    }

    /// Of a thousand policies with a label each, a pod is compared with its own.
    @Test func aPodIsComparedWithFewPolicies() {
        let policies = (0..<1000).map { number in
            var policy = EgressPolicy(name: "p\(number)", source: .culvert)
            policy.selectors = [.init(pod: LabelSelector(matchLabels: ["team": "a", "app": "p\(number)"]))]
            return policy
        }
        #expect(SelectorIndex(policies).candidates(["team": "a", "app": "p7"]) == [7])
    }

    @Test(arguments: 0..<20) func rulesAreInTheOrderOfTheKernel(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let sources: [IPNetwork?] =
            [nil]
            + ["10.0.0.1/32", "10.0.0.0/24", "10.0.0.0/16", "255.255.255.255/32", "fd00::1/128"]
            .map { IPNetwork($0) }
        let rules = (0..<60).map { _ -> Rule in
            let priority = UInt32.random(in: 100...103, using: &random)
            return Bool.random(using: &random)
                ? Rule(
                    priority: priority, incoming: ["a", "b"].randomElement(using: &random)!,
                    table: UInt32.random(in: 1...3, using: &random))
                : Rule(
                    priority: priority, source: sources.randomElement(using: &random)!,
                    table: UInt32.random(in: 1...3, using: &random))
        }
        #expect(Rule.inOrder(rules) == rules.sorted(by: Rule.isBefore), "seed \(seed)")
    }
}

import Model

/// What is kept from one plan to the next, so that a plan costs work in proportion to what has changed. Only a memory: a plan
/// is the same whatever memory it is given.
public struct PlannerMemory: Sendable {
    var nodes = NodeIndex()

    /// The catalogue of policies, and what it was made of.
    struct CatalogueInputs: Equatable, Sendable {
        var configuration: Configuration
        var nodeName: String
        var policies: [EgressPolicy]
        var nodeLabels: [String: String]
        var cilium: CiliumSettings?
        /// Of the index of nodes.
        var generation: Int
    }
    var catalogue: (inputs: CatalogueInputs, value: PolicyCatalogue)?

    /// Grows whenever the catalogue is made anew.
    private(set) var catalogueGeneration = 0

    /// All that the choice for a pod depends on besides the pod.
    struct AssignmentWorld: Equatable, Sendable {
        var catalogueGeneration: Int
        var namespaces: [String: [String: String]]
    }
    var assignmentWorld: AssignmentWorld?
    struct Judged: Sendable {
        let attachment: Attachment
        let pod: Pod?
        let choice: PolicyAssignment.Choice
        let tableKey: String
    }
    var judged: [String: Judged] = [:]

    /// Grows whenever the networks that keep their normal path are others.
    private(set) var keptGeneration = 0
    /// Networks that keep their normal path, and what they were made of.
    struct KeptInputs: Equatable, Sendable {
        var configuration: Configuration
        var cilium: CiliumSettings?
        var services: ServiceNetworks
        var local: IPAddress?
        var others: [IPNetwork]
        var generation: Int
    }
    var kept: (inputs: KeptInputs, value: KeptNetworks)?

    /// Verdicts of policy tables by their key, and what they were made of.
    struct Verdicts: Sendable {
        let number: UInt32
        let policies: [AssignedPolicy]
        let keptGeneration: Int
        let v4: [EgressPolicyRoutes.Entry]
        let v6: [EgressPolicyRoutes.Entry]
        let group: UInt32
        let claimedV4: [ClosedRange<UInt32>]
        let claims: [(prefix: IPNetwork, policy: Int)]
    }
    var verdicts: [String: Verdicts] = [:]

    /// What of the firewall does not depend on the pods here, and what it was made of.
    var firewallFrame: (world: FirewallPlan.World, frame: FirewallPlan.Frame)?

    /// Destinations for the firewall by the number of their group.
    struct GroupDestinations: Sendable {
        let ranges: [ClosedRange<UInt32>]
        let set: FirewallSet
    }
    var groups: [UInt32: GroupDestinations] = [:]

    /// The same ranges, in one place with those of the group where they are equal: such lists are compared at a glance.
    func shared(_ ranges: [ClosedRange<UInt32>], group: UInt32) -> [ClosedRange<UInt32>] {
        if let known = groups[group]?.ranges, known == ranges { known } else { ranges }
    }

    /// Routes of policy tables by number, and what they were made of.
    struct TableRoutes: Sendable {
        struct Inputs: Equatable, Sendable {
            let v4: [EgressPolicyRoutes.Entry]
            let v6: [EgressPolicyRoutes.Entry]
            let hops: [UInt32?]
        }
        let inputs: Inputs
        let table: HostState.RouteTable
    }
    var tableRoutes: [UInt32: TableRoutes] = [:]

    /// What follows from the catalogue of policies and the ends of tunnels alone.
    struct CatalogueOutcomeInputs: Equatable, Sendable {
        var catalogueGeneration: Int
        var nodesGeneration: Int
        var facts: LocalFacts
        var health: GatewayHealth
        var cilium: CiliumSettings?
        var services: ServiceNetworks
        var unreachable: TargetVerdicts
    }
    struct CatalogueOutcome: Sendable {
        var senders: [TunnelLinks.Sender]
        var activation: GatewayActivation
        /// What was active before when the activation was decided.
        var previous: GatewayActivation.Previous
        /// By name, each with no attachments.
        var policies: [PolicyPlan]
        /// Places in `policies`, by source and name.
        var places: [String: Int]
        var warnings: [String]
    }
    var catalogueOutcome: (inputs: CatalogueOutcomeInputs, value: CatalogueOutcome)?

    /// Grows whenever that is worked out anew.
    private(set) var outcomeGeneration = 0

    /// Next hops, and what they were made of.
    struct NextHopInputs: Equatable, Sendable {
        var outcomeGeneration: Int
        var policies: [AssignedPolicy]
        var choices: [GatewayChoice?]
        var tunnels: [String: TunnelLinks.Tunnel]?
        var uplink: String?
        var numbers: AssignedIDs.Numbers
        var retired: Set<UInt32>
    }
    private var hops: (inputs: NextHopInputs, value: NextHops)?

    mutating func nextHops(_ inputs: NextHopInputs, make: () -> NextHops) -> NextHops {
        if let hops, hops.inputs == inputs { return hops.value }
        let value = make()
        // The next plan comes with these numbers.
        var inputs = inputs
        inputs.numbers = value.numbers
        hops = (inputs, value)
        return value
    }

    public init() {}

    mutating func policyCatalogue(
        configuration: Configuration, nodeName: String, inventory: Inventory
    ) -> PolicyCatalogue {
        let inputs = CatalogueInputs(
            configuration: configuration, nodeName: nodeName, policies: inventory.policies,
            nodeLabels: inventory.nodes[nodeName]?.labels ?? [:], cilium: inventory.cilium,
            generation: nodes.generation)
        if let catalogue, catalogue.inputs == inputs { return catalogue.value }
        let value = PolicyCatalogue(
            configuration: configuration, nodeName: nodeName, inventory: inventory, index: &nodes)
        catalogue = (inputs, value)
        catalogueGeneration += 1
        return value
    }

    /// - Parameter update: brings what was worked out with other previous gateways up to date.
    mutating func outcome(
        _ inputs: CatalogueOutcomeInputs, update: (inout CatalogueOutcome) -> Void, make: () -> CatalogueOutcome
    ) -> CatalogueOutcome {
        if catalogueOutcome?.inputs == inputs, var value = catalogueOutcome?.value {
            catalogueOutcome = nil
            update(&value)
            catalogueOutcome = (inputs, value)
            return value
        }
        let value = make()
        catalogueOutcome = (inputs, value)
        outcomeGeneration += 1
        return value
    }

    mutating func keptNetworks(_ inputs: KeptInputs, inventory: Inventory) -> KeptNetworks {
        if let kept, kept.inputs == inputs { return kept.value }
        let value = KeptNetworks(
            configuration: inputs.configuration, inventory: inventory, local: inputs.local, index: nodes,
            others: inputs.others)
        // Where the networks are the same all the same, what was worked out with them still holds.
        if kept?.value != value { keptGeneration += 1 }
        kept = (inputs, value)
        return value
    }
}

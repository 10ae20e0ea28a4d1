import ClusterTransport
import Model

/// Custom resources whose definition is not installed: there are none of them, until somebody installs it.
struct CustomResourceDefinitions {
    /// How long the server must have said that a resource does not exist before what was known of it goes.
    static let missingPatience = Duration.seconds(10)
    /// At an ADD a kind of policy that is missing is looked for again where the last look is older.
    static let lookAge = Duration.seconds(1)
    /// The most that an ADD waits for such a look.
    static let lookPatience = Duration.seconds(1)

    /// Those of which the server says that they do not exist.
    var missing: Set<Resource> = []
    private let clock: any Clock<Duration>
    /// Lists, failures and "there is no such resource", by resource.
    private var answers: [Resource: (count: Int, age: @Sendable () -> Duration)] = [:]
    /// Kinds of policies that an ADD looks for at the moment.
    private var isLooking: Set<Resource> = []

    init(clock: any Clock<Duration>) { self.clock = clock }

    /// The server has said something of a resource, or could not be asked.
    mutating func noteAnswer(of resource: Resource) {
        answers[resource] = ((answers[resource]?.count ?? 0) + 1, clock.stopwatch())
    }

    /// For people: not a problem, as a cluster may use one kind of policy only.
    var notices: [String] {
        Resource.policyKinds.filter { missing.contains($0) }.map {
            "\($0.kind): its CustomResourceDefinition is not installed; checking again every 10 s"
        }
    }

    /// One look for kinds of policies that are missing.
    struct Look {
        /// Resources that are to be listed anew; other ADDs have begun to look for the rest.
        fileprivate(set) var begun: [Resource] = []
        /// How many answers there were before.
        fileprivate var waiting: [Resource: Int] = [:]
    }

    mutating func beginLook() -> Look {
        var look = Look()
        for resource in Resource.policyKinds where missing.contains(resource) {
            guard let last = answers[resource] else { continue }
            if last.age() > CustomResourceDefinitions.lookAge, isLooking.insert(resource).inserted {
                look.begun.append(resource)
            }
            // Other pods wait for a look that is under way.
            if isLooking.contains(resource) { look.waiting[resource] = last.count }
        }
        return look
    }

    /// Whether an answer is missing.
    func isUnderWay(_ look: Look) -> Bool { look.waiting.contains { answers[$0.key]?.count == $0.value } }

    mutating func end(_ look: Look) { isLooking.subtract(look.waiting.keys) }
}

import Model

/// ADDs that were served, for one whose answer nobody takes: what there was before each.
///
/// An undone ADD takes back its own work only: where the runtime has come again for the same container meanwhile, the newer
/// ADD stays.
struct ServedADDs {
    private struct Served {
        let call: UInt64
        var before: Attachment?
    }
    /// By the attachment's ID, in the order in which they were served.
    private var served: [String: [Served]] = [:]
    /// Nobody comes for one container more often before the first answer is given up.
    private static let most = 16

    mutating func note(_ id: String, call: UInt64, before: Attachment?) {
        served[id] = Array((served[id] ?? []).suffix(ServedADDs.most - 1)) + [Served(call: call, before: before)]
    }

    /// The attachment has ended: there is nothing to undo.
    mutating func forget(_ id: String) { served[id] = nil }

    enum Undo: Equatable {
        /// A newer ADD is in force, or the attachment has ended.
        case nothing
        case end
        case restore(Attachment)
    }

    /// What undoing that ADD means now.
    mutating func undo(_ id: String, call: UInt64) -> Undo {
        guard var calls = served[id], let place = calls.firstIndex(where: { $0.call == call }) else { return .nothing }
        let before = calls.remove(at: place).before
        // The newer one goes back to what there was before both.
        if place < calls.count { calls[place].before = before }
        served[id] = calls.isEmpty ? nil : calls
        if place < calls.count { return .nothing }
        return before.map { .restore($0) } ?? .end
    }
}

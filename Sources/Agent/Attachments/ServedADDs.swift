import Model

/// ADDs that were served, for one whose answer nobody takes: what there was before each, and who had its addresses.
///
/// An undone ADD takes back its own work only: where the runtime has come again for the same container meanwhile, the newer
/// ADD stays.
struct ServedADDs {
    private struct Served {
        let call: UInt64
        var before: Attachment?
        var displaced: [Attachment]
    }
    /// By the attachment's ID, in the order in which they were served.
    private var served: [String: [Served]] = [:]
    /// Nobody comes for one container more often before the first answer is given up.
    private static let most = 16

    mutating func note(_ id: String, call: UInt64, before: Attachment?, displaced: [Attachment] = []) {
        served[id] =
            Array((served[id] ?? []).suffix(ServedADDs.most - 1))
            + [Served(call: call, before: before, displaced: displaced)]
    }

    /// The attachment has ended: there is nothing to undo.
    mutating func forget(_ id: String) { served[id] = nil }

    enum Undo: Equatable {
        /// A newer ADD is in force, or the attachment has ended.
        case nothing
        /// The container has what it had before; nil: nothing. Others that had its addresses have them again, where nobody
        /// else has them by now.
        case restore(Attachment?, displaced: [Attachment])
    }

    /// What undoing that ADD means now.
    mutating func undo(_ id: String, call: UInt64) -> Undo {
        guard var calls = served[id], let place = calls.firstIndex(where: { $0.call == call }) else { return .nothing }
        let undone = calls.remove(at: place)
        // The newer one goes back to what there was before both.
        if place < calls.count {
            calls[place].before = undone.before
            calls[place].displaced += undone.displaced
        }
        served[id] = calls.isEmpty ? nil : calls
        return place < calls.count ? .nothing : .restore(undone.before, displaced: undone.displaced)
    }
}

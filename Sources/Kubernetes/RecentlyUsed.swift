/// The values that were used last, as many as there is room for.
struct RecentlyUsed<Value: Hashable> {
    private let room: Int
    /// When each was used last, counted in uses.
    private var uses: [Value: UInt64] = [:]
    /// Uses in their order, from `start` on; one that is not its value's last counts for nothing.
    private var order: [(value: Value, use: UInt64)] = []
    private var start = 0
    private var use: UInt64 = 0

    /// - Parameter room: at least 1.
    init(room: Int) { self.room = room }

    var count: Int { uses.count }

    /// Uses a value; the one that was not used for the longest time makes room for it.
    ///
    /// - Returns: whether it is new, or was forgotten.
    mutating func insert(_ value: Value) -> Bool {
        use += 1
        let isNew = uses.updateValue(use, forKey: value) == nil
        order.append((value, use))
        while uses.count > room, start < order.count {
            let oldest = order[start]
            start += 1
            if uses[oldest.value] == oldest.use { uses[oldest.value] = nil }
        }
        if order.count > 4 * room {
            order = order[start...].filter { uses[$0.value] == $0.use }
            start = 0
        }
        return isNew
    }

    mutating func remove(_ value: Value) { uses[value] = nil }
}

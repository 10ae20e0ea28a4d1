import Model
import Testing

@testable import Agent

struct ServedADDsTests {
    func attachment(_ address: String) -> Model.Attachment {
        Model.Attachment(containerID: "c", interfaceName: "eth0", addresses: [IPNetwork(address)!])
    }

    @Test func anAbortUndoesItsOwnADDAndNoNewerOne() {
        var adds = ServedADDs()
        let first = attachment("10.0.0.1/32")
        let second = attachment("10.0.0.2/32")
        adds.note("c", call: 1, before: nil)
        #expect(adds.undo("d", call: 1) == .nothing && adds.undo("c", call: 7) == .nothing)
        adds.note("c", call: 2, before: first)
        #expect(adds.undo("c", call: 1) == .nothing, "the runtime has come again")
        // The second goes back to what there was before both.
        #expect(adds.undo("c", call: 2) == .restore(nil, displaced: []))
        #expect(adds.undo("c", call: 2) == .nothing)
        adds.note("c", call: 3, before: first)
        adds.note("c", call: 4, before: second)
        #expect(adds.undo("c", call: 4) == .restore(second, displaced: []))
        #expect(adds.undo("c", call: 3) == .restore(first, displaced: []))
        adds.note("c", call: 5, before: nil)
        adds.forget("c")
        #expect(adds.undo("c", call: 5) == .nothing, "it has ended")
        for call in UInt64(10)..<100 { adds.note("c", call: call, before: first) }
        #expect(adds.undo("c", call: 10) == .nothing)
        #expect(adds.undo("c", call: 99) == .restore(first, displaced: []))
    }

    @Test func whoeverHadTheAddressesOfUndoneADDsHasThemAgain() {
        var adds = ServedADDs()
        let (other, another) = (attachment("10.0.0.1/32"), attachment("10.0.0.2/32"))
        adds.note("c", call: 1, before: nil, displaced: [other])
        adds.note("c", call: 2, before: attachment("10.0.0.1/32"), displaced: [another])
        #expect(adds.undo("c", call: 1) == .nothing)
        #expect(adds.undo("c", call: 2) == .restore(nil, displaced: [another, other]))
    }
}

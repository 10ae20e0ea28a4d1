import CLinux
import CMnl
import CNftnl
import Model
import Netlink

/// Sets that the firewall fills by itself with flows of pods: what is known of a pod's flows goes with the pod.
extension FirewallSocket {
    /// Deletes what sets of flows know of these pod addresses. Flows that begin meanwhile may stay.
    ///
    /// - Parameter sets: sets of table `inet culvert` whose keys begin with two addresses, of which the second is the pod's.
    /// - Returns: how many elements there were.
    /// - Throws: what the kernel had against it. Not where the sets, or single elements, are not there any more.
    public func forget(flowsOf addresses: Set<IPAddress>, in sets: [FirewallSet]) throws -> Int {
        var count = 0
        for set in sets {
            let keys: [[UInt8]]
            do { keys = try self.keys(of: set.name) { addresses.contains($0) } } catch let error as NetlinkError
                where error.code == ENOENT
            { continue }
            for start in stride(from: 0, to: keys.count, by: 256) {
                try delete(keys[start..<min(start + 256, keys.count)], of: set.name)
            }
            count += keys.count
        }
        return count
    }

    /// One of them may have expired since it was listed, which refuses the whole transaction: then one after the other.
    private func delete(_ keys: ArraySlice<[UInt8]>, of name: String) throws {
        do {
            var batch = FirewallBatch(firstSequence: sequence)
            batch.delete(keys: keys, ofSet: name)
            try commit(&batch)
        } catch let error as NetlinkError where error.code == ENOENT {
            guard keys.count > 1 else { return }
            for index in keys.indices { try delete(keys[index...index], of: name) }
        }
    }

    /// - Parameter isWanted: by the second address of the key.
    private func keys(of name: String, _ isWanted: (IPAddress) -> Bool) throws -> [[UInt8]] {
        let get = request(
            NFT_MSG_GETSETELEM, family: UInt32(NFPROTO_INET), flags: NLM_F_DUMP, "nft list set inet culvert \(name)"
        ) {
            mnl_attr_put_strz($0, UInt16(NFTA_SET_ELEM_LIST_TABLE.rawValue), Ownership.firewallTable)
            mnl_attr_put_strz($0, UInt16(NFTA_SET_ELEM_LIST_SET.rawValue), name)
        }
        var keys: [[UInt8]] = []
        try socket.dump(get, restart: keys.removeAll()) { reply in
            guard let set = nftnl_set_alloc() else { return }
            defer { nftnl_set_free(set) }
            guard nftnl_set_elems_nlmsg_parse(reply.header, set) == 0, let iterator = nftnl_set_elems_iter_create(set)
            else { return }
            defer { nftnl_set_elems_iter_destroy(iterator) }
            while let element = nftnl_set_elems_iter_next(iterator) {
                var length: UInt32 = 0
                guard let data = nftnl_set_elem_get(element, UInt16(NFTNL_SET_ELEM_KEY), &length), length >= 8 else {
                    continue
                }
                let key = [UInt8](UnsafeRawBufferPointer(start: data, count: Int(length)))
                if let pod = IPAddress(bytes: key[4..<8]), isWanted(pod) { keys.append(key) }
            }
        }
        return keys
    }
}

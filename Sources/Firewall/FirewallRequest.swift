import CMnl
import CNftnl
import Netlink

/// One request to nf_tables (linux/netfilter/nf_tables.h).
///
/// - Parameters:
///   - family: `NFPROTO_…`; `NFPROTO_UNSPEC` asks for all.
///   - flags: `NLM_F_DUMP`, where it asks for a list.
///   - operation: what an error names: the command of `nft` that does the same.
///   - body: adds the attributes; at most 4,096 bytes with the header.
func request(
    _ command: nf_tables_msg_types, family: UInt32, flags: Int32, _ operation: String,
    _ body: (UnsafeMutablePointer<nlmsghdr>) -> Void = { _ in }
) -> NetlinkMessage {
    let bytes = [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
        guard let base = buffer.baseAddress,
            let header = nftnl_nlmsg_build_hdr(base, UInt16(command.rawValue), UInt16(family), UInt16(flags), 0)
        else { return }
        body(header)
        count = Int(header.pointee.nlmsg_len)
    }
    return NetlinkMessage(operation: operation, raw: bytes)
}

/// A string of libnftnl's; empty where there is none.
func text(_ pointer: UnsafePointer<CChar>?) -> String { pointer.map { String(cString: $0) } ?? "" }

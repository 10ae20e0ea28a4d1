// What Cilium does with BPF host routing to a packet that a pod sends to the world: look the route up with
// bpf_fib_lookup (flags 0, tot_len 0) and redirect to the device, past netfilter. Traffic inside the cluster
// goes up the stack, as it is Cilium's own business. Licence: Apache-2.0 (this file), GPL-compatible for the kernel.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2

SEC("tc")
int from_container(struct __sk_buff *skb) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ethhdr *eth = data;
    struct iphdr *ip = data + sizeof(*eth);
    if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP)) return TC_ACT_OK;
    // Pods, nodes and services of the lab.
    if ((bpf_ntohl(ip->daddr) >> 24) == 10) return TC_ACT_OK;
    struct bpf_fib_lookup fib = {};
    fib.family = AF_INET;
    fib.tos = ip->tos;
    fib.l4_protocol = ip->protocol;
    fib.ipv4_src = ip->saddr;
    fib.ipv4_dst = ip->daddr;
    fib.ifindex = skb->ifindex;
    long verdict = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
    if (verdict != BPF_FIB_LKUP_RET_SUCCESS && verdict != BPF_FIB_LKUP_RET_NO_NEIGH) return TC_ACT_SHOT;
    struct bpf_redir_neigh next = {};
    next.nh_family = fib.family;
    next.ipv4_nh = fib.ipv4_dst;
    return bpf_redirect_neigh(fib.ifindex, &next, sizeof(next), 0);
}

char LICENSE[] SEC("license") = "GPL";

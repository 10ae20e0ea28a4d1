#!/usr/bin/env bash
# Two locations of two nodes each (n1, n2 in a; n3, n4 in b), each behind a router of its own that routes /32s, lets
# nodes send only from their own addresses, and drops and counts IP protocols 4 and 47. Private addresses are routed in
# their own location only; n1 and n3 have public addresses; n2 and n4 are behind the router's NAT. Cilium's stand-in
# joins the nodes of one location. Helpers and pods are lab.sh's.
#
# LAB_PUBLIC=all gives public addresses to n2 and n4 too.
#
#   sites.sh up PREFIX DIR      make the network, and an inventory in DIR/inventory
#   sites.sh share PREFIX DIR   hand what each node publishes to the others' inventory
set -euo pipefail
command=$1 P=$2 D=$3
# (`ip netns exec` would also mount /sys anew, which takes a second in an emulated VM.)
ns() { local name=$1; shift; nsenter "--net=/run/netns/$P-$name" "$@"; }
# Commands of ip, in one process: in an emulated VM each process takes a good part of a second.
batch() { ip -n "$P-$1" -batch -; }
mac() { printf '02:ce:00:00:00:%02x' "$1"; }
location() { [ "$1" -le 2 ] && echo a || echo b; }
private() { [ "$1" -le 2 ] && echo "10.1.0.1$1" || echo "10.2.0.1$1"; }
public() { case $1:${LAB_PUBLIC:-} in 1:* | 3:* | *:all) echo "198.51.100.$1" ;; esac; }

up() {
    mkdir -p "$D/inventory"
    for name in ra rb n1 n2 n3 n4; do
        ip netns add "$P-$name"
        ns $name ip link set lo up
        ns $name sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
            net.ipv6.conf.all.disable_ipv6=1
    done
    ip link add out netns "$P-ra" type veth peer name out netns "$P-rb"
    local here there own nodes others
    for l in a b; do
        [ $l = a ] && { here=192.0.2.1 there=192.0.2.2 own=10.1.0.0/24 nodes="1 2" others="3 4"; } \
            || { here=192.0.2.2 there=192.0.2.1 own=10.2.0.0/24 nodes="3 4" others="1 2"; }
        ns r$l ip addr add $here/30 dev out
        ns r$l ip link set out up
        for n in $others; do [ -n "$(public $n)" ] && ns r$l ip route add "$(public $n)" via $there; done
        for n in $nodes; do
            ip link add "to-n$n" netns "$P-r$l" type veth peer name eth0 netns "$P-n$n"
            batch n$n <<B
addr add $(private $n)/32 dev eth0
link set eth0 up
route add 10.255.0.1 dev eth0 scope link
route add default via 10.255.0.1 src $(private $n)
B
            [ -n "$(public $n)" ] && ip -n "$P-n$n" addr add "$(public $n)/32" dev eth0
            {
                echo "addr add 10.255.0.1/32 dev to-n$n"
                echo "link set to-n$n up"
                for address in $(private $n) $(public $n); do echo "route add $address/32 dev to-n$n"; done
            } | batch r$l
        done
        ns r$l nft -f - <<N
table inet cloud {
    counter ipip { }
    counter gre { }
    counter fragments { }
    counter foreign { }
    counter vxlan { }
    counter wireguard { }
    counter others { }
    set seen { type ifname . ipv4_addr . ipv4_addr . inet_proto; flags dynamic; }
    # What a capture on the underlay would show.
    chain capture {
        type filter hook prerouting priority -400;
        ip frag-off & 0x3fff != 0 counter name fragments
        udp dport 8472 counter name vxlan accept
        udp dport 51820 counter name wireguard accept
        udp sport 51820 counter name wireguard accept
        meta nfproto ipv4 counter name others add @seen { iifname . ip saddr . ip daddr . ip protocol }
    }
    chain forward {
        type filter hook forward priority filter;
        ip protocol 4 counter name ipip drop
        ip protocol 47 counter name gre drop
        iifname "to-n*" ip saddr != { $own, 198.51.100.0/24 } counter name foreign drop
        oifname "out" ip daddr { 10.0.0.0/8 } drop
        iifname "out" ip daddr { 10.0.0.0/8 } ct state new drop
    }
    chain input {
        type filter hook input priority filter;
        # Nothing may take the place of a NAT mapping that a node behind this router will make.
        iifname "out" udp dport 1024-65535 drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        # As clouds do: a public address belongs to one node, the rest share the router's.
$(for n in $nodes; do [ -n "$(public $n)" ] && echo "        oifname \"out\" ip saddr $(private $n) snat ip to $(public $n)"; done)
        oifname "out" ip saddr $own masquerade
    }
}
N
    done
    local n peer
    for n in 1 2 3 4; do
        {
            cat <<B
link add cilium_host mtu 1500 type veth peer name cilium_net
link set cilium_net up
link set cilium_host up
addr add 10.244.$n.1/32 dev cilium_host
link add cilium_vxlan address $(mac "$n") mtu 1450 type vxlan external dstport 8472
link set cilium_vxlan up
rule add priority 100 lookup local
rule del priority 0
B
            for peer in 1 2 3 4; do
                [ $peer = $n ] || [ "$(location $peer)" != "$(location $n)" ] && continue
                cat <<B
route add 10.244.$peer.0/24 encap ip id 6 dst $(private $peer) via 10.244.$peer.1 dev cilium_vxlan src 10.244.$n.1 mtu 1450 onlink
neigh add 10.244.$peer.1 lladdr $(mac "$peer") dev cilium_vxlan nud permanent
B
            done
        } | batch n$n
        ns n$n sysctl -qw net.ipv4.conf.default.rp_filter=1
        ns n$n nft -f - <<N
table ip cilium_standin {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth0" ip saddr 10.244.$n.0/24 ip daddr != 10.244.0.0/16 masquerade
    }
}
N
        cat > "$D/inventory/node-n$n.yaml" <<Y
apiVersion: v1
kind: Node
metadata:
  name: n$n
  labels: {kubernetes.io/hostname: n$n, topology.kubernetes.io/region: $(location $n), zone: z$n}
spec:
  podCIDRs: [10.244.$n.0/24]
status:
  addresses:
    - {type: InternalIP, address: $(private $n)}
$([ -n "$(public $n)" ] && echo "    - {type: ExternalIP, address: $(public $n)}")
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata:
  name: n$n
spec:
  addresses:
    - {type: InternalIP, ip: $(private $n)}
    - {type: CiliumInternalIP, ip: 10.244.$n.1}
  ipam:
    podCIDRs: [10.244.$n.0/24]
Y
    done
    cat > "$D/inventory/cilium-config.yaml" <<'Y'
apiVersion: v1
kind: ConfigMap
metadata: {name: cilium-config, namespace: kube-system}
data:
  routing-mode: tunnel
  tunnel-protocol: vxlan
  kube-proxy-replacement: "true"
  enable-bpf-masquerade: "true"
  enable-endpoint-routes: "true"
Y
}

share() {
    local file name
    for file in "$D"/n?/published/*.yaml; do
        [ -e "$file" ] || continue
        name=published-$(basename "$file")
        cmp -s "$file" "$D/inventory/$name" && continue
        cp "$file" "$D/inventory/.$name.tmp"
        mv "$D/inventory/.$name.tmp" "$D/inventory/$name"
    done
}

"$command"

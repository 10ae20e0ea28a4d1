#!/usr/bin/env bash
# A three-node cluster in network namespaces, with a stand-in for Cilium's VXLAN overlay, behind a router that drops
# and counts IP protocols 4 and 47 and routes /32s, as a Hetzner-like cloud does. See README.md, "The lab".
#
#   lab.sh up PREFIX DIR            make the network, and an inventory in DIR/inventory
#   lab.sh helper PREFIX DIR NODE   start culvertd of NODE (n1, n2, n3) as an unprivileged user
#   lab.sh pod PREFIX DIR NODE NAME LAST [UID-LABELS]   make a pod 10.244.<node>.LAST, and its ADD
#   lab.sh plugin PREFIX DIR NODE COMMAND POD           run the plugin once more
#   lab.sh reboot PREFIX DIR NODE   end the node's namespace with all that its kernel holds, and make it anew
#   lab.sh down PREFIX DIR          end everything that was made
#
# LAB_PLUGIN: more members of the plugin's configuration, such as '"defaultPolicy": "shop"'.
# LAB_ROUTING=ebpf puts host_routing.bpf.o on every pod's veth; LAB_BIN is where the programs are.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command=$1 P=$2 D=$3
shift 3
BIN=${LAB_BIN:-$here/../../.build/debug}
# (`ip netns exec` would also mount /sys anew, which takes a second in an emulated VM.)
ns() { local name=$1; shift; nsenter "--net=/run/netns/$P-$name" "$@"; }
# Commands of ip, in one process: in an emulated VM each process takes a good part of a second.
batch() { ip -n "$P-$1" -batch -; }

number() { echo "${1#n}"; }
mac() { printf '02:ce:00:00:00:%02x' "$1"; }

# A namespace that forwards, as routers and nodes do.
namespace() {
    ip netns add "$P-$1"
    ip -n "$P-$1" link set lo up
    ns "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=1 \
        net.ipv6.conf.all.disable_ipv6=1
}

# What the kernel of a node has, and the router has for it, before there is a helper.
network() {
    local n peer
    n=$(number "$1")
    namespace "n$n"
    ip link add "to-n$n" netns "$P-r" type veth peer name eth0 netns "$P-n$n"
    batch r <<B
addr add 10.0.0.1/32 dev to-n$n
link set to-n$n up
route add 10.0.0.1$n/32 dev to-n$n
route add 192.0.2.${n}1/32 via 10.0.0.1$n dev to-n$n onlink
route add 192.0.2.${n}2/32 via 10.0.0.1$n dev to-n$n onlink
route add 10.244.$n.0/24 via 10.0.0.1$n dev to-n$n onlink
B
    # With second and third egress addresses for the gateways.
    batch n$n <<B
addr add 10.0.0.1$n/32 dev eth0
link set eth0 up
route add 10.0.0.1 dev eth0 scope link
route add default via 10.0.0.1
addr add 192.0.2.${n}1/32 dev eth0
addr add 192.0.2.${n}2/32 dev eth0
B
    # Cilium's devices. It turns reverse-path filtering off on its own and moves the local table to 100.
    ns n$n sysctl -qw net.ipv4.conf.default.rp_filter=0
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
        for peer in 1 2 3; do
            [ $peer = $n ] && continue
            cat <<B
route add 10.244.$peer.0/24 encap ip id 6 dst 10.0.0.1$peer via 10.244.$peer.1 dev cilium_vxlan src 10.244.$n.1 mtu 1450 onlink
neigh add 10.244.$peer.1 lladdr $(mac "$peer") dev cilium_vxlan nud permanent
B
        done
    } | batch n$n
    ns n$n sysctl -qw net.ipv4.conf.default.rp_filter=1
    # Cilium's masquerade for pods without a policy.
    ns n$n nft -f - <<N
table ip cilium_standin {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth0" ip saddr 10.244.$n.0/24 ip daddr != 10.244.0.0/16 masquerade
    }
}
N
}

up() {
    mkdir -p "$D/inventory"
    namespace r
    namespace out
    ip -n "$P-r" addr add 169.254.169.254/32 dev lo
    ns r nft -f - <<'N'
table inet cloud {
    counter ipip { }
    counter gre { }
    set metadata { type ipv4_addr; flags dynamic; counter; }
    chain forward {
        type filter hook forward priority filter;
        ip protocol 4 counter name ipip drop
        ip protocol 47 counter name gre drop
    }
    chain input {
        type filter hook input priority filter;
        ip daddr 169.254.169.254 add @metadata { ip saddr }
    }
}
N
    # The outside host, with two addresses, and one that policies exclude.
    ip link add to-out netns "$P-r" type veth peer name eth0 netns "$P-out"
    batch r <<B
addr add 203.0.113.1/24 dev to-out
link set to-out up
B
    batch out <<B
addr add 203.0.113.10/24 dev eth0
addr add 203.0.113.20/24 dev eth0
addr add 203.0.113.99/24 dev eth0
link set eth0 up
route add default via 203.0.113.1
B
    ns out nft -f - <<'N'
table inet watch {
    set pings { type ipv4_addr . ipv4_addr; flags dynamic; counter; }
    set datagrams { type ipv4_addr . ipv4_addr; flags dynamic; counter; }
    set connections { type ipv4_addr . ipv4_addr; flags dynamic; counter; }
    chain in {
        type filter hook prerouting priority raw;
        icmp type echo-request add @pings { ip saddr . ip daddr }
        meta l4proto udp add @datagrams { ip saddr . ip daddr }
        tcp flags syn / syn,ack add @connections { ip saddr . ip daddr }
    }
}
N
    for n in 1 2 3; do
        network "n$n"
        cat > "$D/inventory/node-n$n.yaml" <<Y
apiVersion: v1
kind: Node
metadata:
  name: n$n
  labels: {kubernetes.io/hostname: n$n, zone: z$n}
spec:
  podCIDRs: [10.244.$n.0/24]
status:
  addresses:
    - {type: InternalIP, address: 10.0.0.1$n}
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata:
  name: n$n
  labels: {kubernetes.io/hostname: n$n, zone: z$n}
spec:
  addresses:
    - {type: InternalIP, ip: 10.0.0.1$n}
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
    cat > "$D/inventory/namespace.yaml" <<'Y'
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {team: shop}}
Y
}

# unprivileged NODE COMMAND...: becomes the command, on the node, as an unprivileged user with CAP_NET_ADMIN as its whole
# bounding set, /proc/sys read-only, a /run/wireguard of the node's own, and /dev/net/tun open to everybody, as udev makes it
# (a machine without udev may have it for root only). exec all the way down, so that the process id is the command's.
unprivileged() {
    # LAB_GROUPS: numbers of more groups that the process is in.
    local node=$1 groups=--clear-groups
    [ -z "${LAB_GROUPS:-}" ] || groups=--groups=$LAB_GROUPS
    shift
    mkdir -p /run/wireguard
    exec ip netns exec "$P-$node" unshare -m sh -c 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys &&
        { [ ! -e /dev/net/tun ] || { mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200; }; } &&
        mount --bind "$0" /run/wireguard && exec "$@"' "$D/$node/wireguard" \
        setpriv --reuid 65534 --regid 65534 $groups --inh-caps -all,+net_admin --ambient-caps -all,+net_admin \
        --bounding-set -all,+net_admin "$@"
}

helper() {
    local node=$1
    mkdir -p "$D/$node/wireguard"
    chown 65534:65534 "$D/$node" "$D/$node/wireguard"
    chmod 2770 "$D/$node"
    # LAB_WIREGUARD names a program that speaks WireGuard where the kernel does not; one for all runs of the helper.
    if [ -n "${LAB_WIREGUARD:-}" ] && [ ! -e "$D/$node.wireguard.pid" ]; then
        (unprivileged "$node" "$LAB_WIREGUARD" -f cni-culvert-wg >> "$D/$node.wireguard.log" 2>&1 < /dev/null) &
        echo $! > "$D/$node.wireguard.pid"
        for _ in $(seq 100); do [ -S "$D/$node/wireguard/cni-culvert-wg.sock" ] && break; sleep 0.1; done
    fi
    # LAB_API is the Unix socket of a stand-in for the API server: every node finds it at 127.0.0.1:6443.
    if [ -n "${LAB_API:-}" ] && [ ! -e "$D/$node.api.pid" ]; then
        (exec ip netns exec "$P-$node" socat TCP-LISTEN:6443,bind=127.0.0.1,fork,reuseaddr "UNIX-CONNECT:$LAB_API" > /dev/null 2>&1 < /dev/null) &
        echo $! > "$D/$node.api.pid"
    fi
    # The limit of files that most systems begin with; the helper raises it.
    (ulimit -S -n 1024; unprivileged "$node" "$BIN/culvertd" run ${LAB_CONFIG:+--config "$LAB_CONFIG"} --node "$node" --inventory "$D/inventory" \
        --run-dir "$D/$node" --state-dir "$D/$node/state" --log-level "${LAB_LOG_LEVEL:-info}" >> "$D/$node.log" 2>&1 < /dev/null) &
    echo $! > "$D/$node.pid"
    # LAB_NO_WAIT: a helper that is not to become ready.
    [ -z "${LAB_NO_WAIT:-}" ] || return 0
    for _ in $(seq 300); do
        [ -S "$D/$node/cni.sock" ] && ns "$node" curl -sf --unix-socket "$D/$node/api.sock" http://localhost/readyz > /dev/null && return 0
        kill -0 "$(cat "$D/$node.pid")" 2> /dev/null || { echo "culvertd of $node ended:" >&2; tail -5 "$D/$node.log" >&2; return 1; }
        sleep 0.1
    done
    echo "culvertd of $node is not ready" >&2
    tail -5 "$D/$node.log" >&2
    return 1
}

# The environment and configuration of a call of the plugin, as a runtime would have them.
plugin() {
    local node=$1 verb=$2 name=$3
    local address; address=$(cat "$D/pods/$name.address")
    local netns=${LAB_NETNS-/run/netns/$P-$name}
    ns "$node" env CNI_COMMAND="$verb" CNI_CONTAINERID="$P-$name" CNI_NETNS="$netns" CNI_IFNAME=eth0 \
        CNI_PATH="$BIN" CNI_ARGS="${LAB_CNI_ARGS-IgnoreUnknown=1;CULVERT_LABELS=$(cat "$D/pods/$name.labels")}" "$BIN/culvert" <<J
{
  "cniVersion": "${LAB_CNI_VERSION:-1.0.0}", "name": "cilium", "type": "culvert",
  "socket": "$D/$node/cni.sock", "timeoutSeconds": ${LAB_TIMEOUT:-30},${LAB_PLUGIN:+ $LAB_PLUGIN,}
  "runtimeConfig": ${LAB_RUNTIME_CONFIG:-{\}},
  "prevResult": {
    "cniVersion": "${LAB_CNI_VERSION:-1.0.0}",
    "interfaces": [{"name": "lxc$name"}, {"name": "eth0", "sandbox": "$netns"}],
    "ips": [{"address": "$address/32", "gateway": "10.244.$(number "$node").1", "interface": 1}],
    "routes": [{"dst": "0.0.0.0/0"}]
  }
}
J
}

pod() {
    local node=$1 name=$2 last=$3 labels=${4:-} n
    n=$(number "$node")
    mkdir -p "$D/pods"
    echo "10.244.$n.$last" > "$D/pods/$name.address"
    echo "$node" > "$D/pods/$name.node"
    echo "$labels" > "$D/pods/$name.labels"
    ip netns add "$P-$name"
    ip link add eth0 mtu 1450 netns "$P-$name" type veth peer name "lxc$name" mtu 1450 netns "$P-$node"
    batch "$node" <<B
link set lxc$name up
route replace 10.244.$n.$last/32 dev lxc$name
B
    batch "$name" <<B
link set lo up
link set eth0 up
addr add 10.244.$n.$last/32 dev eth0
route add 10.244.$n.1 dev eth0 scope link
route add default via 10.244.$n.1 dev eth0
B
    if [ "${LAB_ROUTING:-stack}" = ebpf ]; then
        tc -n "$P-$node" -batch - <<B
qdisc add dev lxc$name clsact
filter add dev lxc$name ingress bpf da obj ${LAB_BPF:-$D/host_routing.bpf.o} sec tc
B
    fi
    # LAB_NO_ADD: a pod of a node that Culvert is not on.
    [ -n "${LAB_NO_ADD:-}" ] || plugin "$node" ADD "$name"
}

# Whatever ran on the node must have ended before: a process, or a pod's end of a veth pair, would keep the old kernel state.
reboot() {
    ip netns del "$P-$1"
    # The kernel takes the namespace apart a moment later, and with it the router's end of the node's uplink.
    for _ in $(seq 100); do ns r ip link show "to-$1" > /dev/null 2>&1 || break; sleep 0.05; done
    network "$1"
}

# What tests start has SIGTERM blocked, and nothing here has anything to lose. A process that has ended may have left its number
# to somebody else's: outside the lab's namespaces only what names the lab in its command is ended.
down() {
    local file name pid
    for file in "$D"/*.pid; do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        if tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -qF -e "$P-" -e "$D"; then kill -9 "$pid" 2> /dev/null || true; fi
        rm -f "$file"
    done
    for name in /run/netns/"$P"-*; do
        [ -e "$name" ] || continue
        name=${name##*/}
        ip netns pids "$name" 2> /dev/null | xargs -r kill -9 2> /dev/null || true
        ip netns del "$name"
    done
}

"$command" "$@"

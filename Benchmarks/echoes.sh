#!/usr/bin/env bash
# echoes.sh [BIN [SECONDS]]: what echoes cost, natively with vxlan. A source node with 1 and 50 candidates (processor time of its
# helper, ADD, lateness of the judging thread idle and beside eight spinning processes), and a gateway with 10 to 5,000 nodes
# that send to it, which one program stands for. BIN is where culvert, culvertd, culvertctl and culvert-bench are: a release
# build for figures. SECONDS (default 40, longer than an unanswered UDP flow is tracked) is how long each is watched. Needs root, and what install/test.sh installs.
set -euo pipefail
source "$(dirname "$0")/../install/prepare.sh"
need_root
with_run_on_tmpfs "$0" "$@"
bin=${1:-$root/.build/release} seconds=${2:-40}
lab=$root/Tests/Lab/lab.sh
P=echoes$$ D=/run/culvert-$P
mkdir -p "$D"
chmod 755 "$D"
export LAB_BIN=$bin LAB_CONFIG=$D/culvertd.yaml
echo "encapsulation: {protocol: vxlan}" > "$LAB_CONFIG"
spinners=()
trap 'kill -KILL "${spinners[@]}" 2> /dev/null || true; for c in a b g; do "$lab" down "$P$c" "$D/$c" 2> /dev/null || true; done; rm -rf "$D"' EXIT

# nodes FILE FIRST LAST NET LABELS: nodes of this cluster, each with the overlay address NET.x.y.1.
nodes() {
    python3 - "$@" <<'Y'
import json, sys
file, first, last, net, labels = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
items = []
for n in range(first, last + 1):
    pod = f"10.{net + n // 256}.{n % 256}"
    node = f"10.0.{1 + n // 250}.{n % 250 + 1}"
    items.append({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"x{n:05}", "labels": labels},
                  "spec": {"podCIDRs": [f"{pod}.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": node}]}})
    items.append({"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": f"x{n:05}", "labels": labels},
                  "spec": {"addresses": [{"type": "InternalIP", "ip": node}, {"type": "CiliumInternalIP", "ip": f"{pod}.1"}],
                           "ipam": {"podCIDRs": [f"{pod}.0/24"]}}})
with open(file + ".new", "w") as out:
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, out)
Y
    mv "$1.new" "$1"
}
policy() {
    printf -- '---\n{apiVersion: culvert.dev/v1alpha1, kind: EgressPolicy, metadata: {name: %s}, spec: {selectors: [{podSelector: {matchLabels: {app: %s}}}], destinationCIDRs: [0.0.0.0/0], egressGateway: {nodeSelector: {matchLabels: %s}}}}\n' "$@"
}
# ticks PID: processor time so far, hundredths of a second.
ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
# nanoseconds PID: the same, of the threads that live, and finer.
nanoseconds() { cat /proc/"$1"/task/*/schedstat | awk '{sum += $1} END {printf "%d", sum}'; }
# share PID: of a core, over $seconds.
share() {
    local before; before=$(nanoseconds "$1")
    sleep "$seconds"
    awk -v a="$before" -v b="$(nanoseconds "$1")" -v s="$seconds" 'BEGIN {printf "%.2f %%", (b - a) / 1e7 / s}'
}
# card C: what n1 sends is handed to the second core where it leaves n1, as a network card would take it, and its helper stays
# on the first one. Otherwise the sender handles the packets to their end, in the router, in n2, and back in n1.
card() {
    taskset -apc 0 "$(cat "$D/$1/n1.pid")" > /dev/null
    ip netns exec "$P$1-r" sh -c 'echo 2 > /sys/class/net/to-n1/queues/rx-0/rps_cpus'
}
no_card() {
    ip netns exec "$P$1-r" sh -c 'echo 0 > /sys/class/net/to-n1/queues/rx-0/rps_cpus'
    taskset -apc "0-$(($(nproc) - 1))" "$(cat "$D/$1/n1.pid")" > /dev/null
}
gateways() { "$bin/culvertctl" gateway list --run-dir "$D/$1/n1" -o json; }
# up C COUNT: waits until so many candidates are up.
up() {
    for _ in $(seq 600); do
        [ "$(gateways "$1" | python3 -c 'import json, sys; print(max([s["up"] for s in json.load(sys.stdin)["slots"]] or [0]))')" = "$2" ] && return
        sleep 0.1
    done
    echo "$1: not $2 candidates up" >&2
    gateways "$1" | tail -40 >&2
    exit 1
}
lateness() { gateways b | python3 -c 'import json, sys; v = json.load(sys.stdin); print(f"{v[sys.argv[1]]:.1f} ms")' "$1"; }

# source C CANDIDATES: a node n1, and n2's kernel in place of so many gateways, without a helper.
source_node() {
    local c=$1 count=$2 p=$P$1
    mkdir -p "$D/$c"
    chmod 755 "$D/$c"
    "$lab" up "$p" "$D/$c"
    ip -n "$p-n1" route add 10.64.0.0/16 encap ip id 6 dst 10.0.0.12 via 10.244.2.1 dev cilium_vxlan src 10.244.1.1 mtu 1450 onlink
    for i in $(seq "$count"); do ip -n "$p-n2" addr add "10.64.$i.1/32" dev cilium_host; done
    ip -n "$p-n2" link add echo type vxlan id 1 dstport 8475 nolearning
    ip netns exec "$p-n2" sysctl -qw net.ipv4.conf.echo.rp_filter=0
    # Each gateway has a MAC address of its own, which this one device cannot have.
    ip netns exec "$p-n2" nft 'add table netdev echo; add chain netdev echo in { type filter hook ingress device echo priority 0; }; add rule netdev echo in meta pkttype set host'
    ip -n "$p-n2" link set echo up
    nodes "$D/$c/inventory/gateways.json" 1 "$count" 64 '{"role": "gateway"}'
    { policy p0 p0 '{role: gateway}'; policy p1 p1 '{role: gateway}'; } > "$D/$c/inventory/policies.yaml"
    "$lab" helper "$p" "$D/$c" n1
    "$lab" pod "$p" "$D/$c" n1 y 10 app:p0 > /dev/null
    for i in $(seq 0 15); do
        ip netns add "$p-x$i"
        ip link add eth0 mtu 1450 netns "$p-x$i" type veth peer name "lxcx$i" netns "$p-n1"
        ip -n "$p-n1" link set "lxcx$i" up
        ip -n "$p-x$i" link set eth0 up
        ip -n "$p-x$i" addr add "10.244.1.$((200 + i))/32" dev eth0
        ip -n "$p-x$i" route add 10.244.1.1 dev eth0
        ip -n "$p-x$i" route add default via 10.244.1.1
    done
    up "$c" "$count"
}

echo "A source node: processor time of its helper, of a core, over $seconds s (goal: under 1 % with 50 candidates). The"
echo "kernel handles an echo to its end in the sender's time, so the way through the router and the gateways is in it"
source_node a 1
printf '  %2d candidate:  %s\n' 1 "$(share "$(cat "$D/a/n1.pid")")"
source_node b 50
printf '  %2d candidates: %s\n' 50 "$(share "$(cat "$D/b/n1.pid")")"
if [ "$(nproc)" -gt 1 ]; then
    card b
    printf '  %2d candidates: %s without the time of the router and of the gateways\n' 50 "$(share "$(cat "$D/b/n1.pid")")"
    no_card b
fi
printf 'The judging thread with 50 candidates, latest wake-up of the last minute: idle %s' "$(lateness wakeUpLatenessMilliseconds)"
for _ in 1 2 3 4 5 6 7 8; do
    (exec sh -c 'while :; do :; done' > /dev/null 2>&1 < /dev/null) &
    spinners+=($!)
done
sleep "$seconds"
printf ', %s s beside 8 spinning processes %s, fail-overs %s\n' "$seconds" "$(lateness wakeUpLatenessMilliseconds)" \
    "$(gateways b | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["changes"]))')"
kill -KILL "${spinners[@]}"
wait "${spinners[@]}" 2> /dev/null || true
spinners=()
echo "ADD with 50 candidates beside ADD with one (goal: p50 at most 1.2)"
"$bin/culvert-bench" scale "$bin/culvert" "1 candidate|$D/a/n1/cni.sock|${P}a|p1|p0" "50 candidates|$D/b/n1/cni.sock|${P}b|p1|p0"
for c in a b; do
    for i in $(seq 0 15); do ip netns del "$P$c-x$i"; done
    "$lab" down "$P$c" "$D/$c" 2> /dev/null
done

echo "A gateway: its kernel's time for an echo there and back (with the program's that stands for the senders: an upper bound)"
gcc -O2 -o "$D/senders" "$root/Benchmarks/echo_senders.c"
mkdir -p "$D/g"
chmod 755 "$D/g"
"$lab" up "${P}g" "$D/g"
policy shop shop '{zone: z3}' > "$D/g/inventory/policy.yaml"
# The nodes that are none are all at 203.0.113.10, where the program is.
ip -n "${P}g-n3" route add 10.128.0.0/10 encap ip id 6 dst 203.0.113.10 via 10.244.1.1 dev cilium_vxlan onlink
"$lab" helper "${P}g" "$D/g" n3
senders() { ip netns exec "${P}g-out" "$D/senders" "$@"; }
wall() { ip netns exec "${P}g-r" nft "$@"; }
wall 'add table inet wall; add chain inet wall forward { type filter hook forward priority -10; }'
printf '  %7s %10s %9s %13s %22s %12s %10s\n' senders echoes/s answered 'us an echo' 'of a core, unslowed' 'helper' conntrack
for count in 10 100 1000 5000; do
    nodes "$D/g/inventory/senders.json" 4 $((count + 3)) 128 '{}'
    for _ in $(seq 120); do
        read -r sent back _ <<< "$(senders "$count" "$((count * 10 < 5000 ? count * 10 : 5000))" 1)"
        [ "$back" -ge $((sent * 99 / 100)) ] && break
        sleep 0.5
    done
    rate=$((count * 10 < 20000 ? count * 10 : 20000))
    before=$(ticks "$(cat "$D/g/n3.pid")")
    read -r sent back full <<< "$(senders "$count" "$rate" "$seconds")"
    helper=$(awk -v a="$before" -v b="$(ticks "$(cat "$D/g/n3.pid")")" -v s="$seconds" 'BEGIN {printf "%.2f %%", (b - a) / s}')
    tracked=$(ip netns exec "${P}g-n3" cat /proc/sys/net/netfilter/nf_conntrack_count)
    # The same packets, dropped before they reach the gateway.
    wall 'add rule inet wall forward ip daddr 10.0.0.13 udp dport 8472 drop'
    read -r _ _ without <<< "$(senders "$count" "$rate" "$seconds")"
    wall flush chain inet wall forward
    awk -v c="$count" -v r="$rate" -v n="$sent" -v b="$back" -v f="$full" -v w="$without" -v h="$helper" -v t="$tracked" \
        'BEGIN {e = (f - w) / n; printf "  %7d %10d %7.1f %% %13.2f %20.1f %% %12s %10d\n", c, r, 100 * b / n, e, e * c * 10 / 10000, h, t}'
done

#!/usr/bin/env bash
# churn.sh PREFIX DIR NODE COUNT PARALLEL: ADDs and DELs of COUNT mixed containers, PARALLEL at a time. Fails where one fails.
set -uo pipefail
P=$1 D=$2 node=$3 count=$4 parallel=$5
BIN=${LAB_BIN:?}
export P D node BIN
one() {
    local i=$1 name=x$1 labels version last out
    case $((i % 3)) in 0) labels=app:shop ;; 1) labels=app:bank ;; *) labels=app:none ;; esac
    case $((i % 2)) in 0) version=1.0.0 ;; *) version=0.3.1 ;; esac
    last=$((20 + i % 200))
    local net=$((i / 200 % 200))
    local address=10.245.$net.$last
    set -e
    ip netns add "$P-$name"
    ip link add eth0 netns "$P-$name" type veth peer name "lxc$name" netns "$P-$node"
    ip -n "$P-$node" link set "lxc$name" up
    ip -n "$P-$name" link set eth0 up
    ip -n "$P-$name" addr add "$address/32" dev eth0
    ip -n "$P-$name" route add 10.244.1.1 dev eth0
    ip -n "$P-$name" route add default via 10.244.1.1
    call() {
        CNI_COMMAND=$1 CNI_CONTAINERID=$P-$name CNI_NETNS=$2 CNI_IFNAME=eth0 CNI_PATH=$BIN \
            CNI_ARGS="IgnoreUnknown=1;CULVERT_LABELS=$labels" ip netns exec "$P-$node" "$BIN/culvert" <<J
{"cniVersion":"$version","name":"cilium","type":"culvert","socket":"$D/$node/cni.sock","timeoutSeconds":60,
"prevResult":{"cniVersion":"$version","interfaces":[{"name":"eth0","sandbox":"$2"}],"ips":[{"version":"4","address":"$address/32","interface":0}]}}
J
    }
    out=$(call ADD "/run/netns/$P-$name") || { echo "ADD $name: $out"; exit 1; }
    # Every fifth loses its DEL: the link just disappears.
    if [ $((i % 5)) != 0 ]; then out=$(call DEL "") || { echo "DEL $name: $out"; exit 1; }; fi
    ip netns del "$P-$name"
}
export -f one
seq "$count" | xargs -P "$parallel" -I{} bash -c 'one {}' || exit 1
# The lost ones end by themselves.
for _ in $(seq 100); do [ -z "$(ls -A "$D/$node/attachments")" ] && exit 0; sleep 0.1; done
echo "attachments left: $(ls -A "$D/$node/attachments" | wc -l)"
exit 1

#!/usr/bin/env bash
# scale.sh BIN DIR: ADD on four nodes: 3 and 5,000 nodes, 1 and 1,000 policies, each with 100 pods that have policies. Also how
# long a helper takes from its start until it is ready, and its memory. Called by run.sh, from a release build. Needs root.
set -euo pipefail
bin=$1 D=$2
root=$(cd "$(dirname "$0")/.." && pwd)
lab=$root/Tests/Lab/lab.sh
export LAB_BIN=$bin
P=scale$$
trap 'for c in a b c d; do "$lab" down "$P$c" "$D/$c" 2> /dev/null; done' EXIT

# inventory DIR NODES POLICIES: and two policies more, which none of the 100 pods has. Of the first there is a pod that is bound to n1
# and has no address yet.
inventory() {
    python3 - "$@" <<'Y'
import json, sys
directory, nodes, policies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
items = []
for n in range(4, nodes + 1):
    pod = f"10.{128 + n // 256 % 64}.{n % 256}"
    node = f"10.0.{1 + n // 250}.{n % 250 + 1}"
    items.append({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"x{n}", "labels": {"zone": f"q{n % 50}"}},
                  "spec": {"podCIDRs": [f"{pod}.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": node}]}})
    items.append({"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": f"x{n}"},
                  "spec": {"addresses": [{"type": "InternalIP", "ip": node}, {"type": "CiliumInternalIP", "ip": f"{pod}.1"}],
                           "ipam": {"podCIDRs": [f"{pod}.0/24"]}}})
for p in range(policies + 2):
    items.append({"apiVersion": "cilium.io/v2", "kind": "CiliumEgressGatewayPolicy", "metadata": {"name": f"p{p:04}"},
                  "spec": {"selectors": [{"podSelector": {"matchLabels": {"app": f"p{p}"}}}], "destinationCIDRs": ["0.0.0.0/0"],
                           "egressGateway": {"nodeSelector": {"matchLabels": {"zone": "z3"}}}}})
items.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "soon", "labels": {"app": f"p{policies}"}},
              "spec": {"nodeName": "n1"}})
with open(f"{directory}/many.json", "w") as file:
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, file)
Y
}

# pod PREFIX NAME: a network namespace with a link to n1.
pod() {
    ip netns add "$1-$2"
    ip link add eth0 mtu 1450 netns "$1-$2" type veth peer name "lxc$2" netns "$1-n1"
    ip -n "$1-n1" link set "lxc$2" up
    ip -n "$1-$2" link set eth0 up
    ip -n "$1-$2" addr add "$3/32" dev eth0
    ip -n "$1-$2" route add 10.244.1.1 dev eth0
    ip -n "$1-$2" route add default via 10.244.1.1
}

arguments=()
for entry in "a 3 1" "b 5000 1" "c 3 1000" "d 5000 1000"; do
    read -r c nodes policies <<< "$entry"
    mkdir -p "$D/$c"
    chmod 755 "$D/$c"
    echo "encapsulation: {protocol: vxlan}" > "$D/$c/culvertd.yaml"
    "$lab" up "$P$c" "$D/$c"
    inventory "$D/$c/inventory" "$nodes" "$policies"
    start=$(date +%s%N)
    LAB_CONFIG=$D/$c/culvertd.yaml "$lab" helper "$P$c" "$D/$c" n1
    for i in $(seq 0 99); do
        pod "$P$c" "y$i" "10.244.1.$((20 + i))"
        [ "$policies" = 1 ] && label=p0 || label=p$i
        CNI_COMMAND=ADD CNI_CONTAINERID=y$i CNI_NETNS=/run/netns/$P$c-y$i CNI_IFNAME=eth0 CNI_PATH=$bin \
            CNI_ARGS="IgnoreUnknown=1;CULVERT_LABELS=app:$label" "$bin/culvert" > /dev/null <<J
{"cniVersion":"1.0.0","name":"net","type":"culvert","socket":"$D/$c/n1/cni.sock","timeoutSeconds":60,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/$P$c-y$i"}],"ips":[{"address":"10.244.1.$((20 + i))/32","gateway":"10.244.1.1","interface":0}]}}
J
    done
    for i in $(seq 0 15); do pod "$P$c" "x$i" "10.244.1.$((200 + i))"; done
    # Once more, with 100 attachments on disk: from exec until /readyz.
    kill "$(cat "$D/$c/n1.pid")"
    while kill -0 "$(cat "$D/$c/n1.pid")" 2> /dev/null; do sleep 0.1; done
    LAB_NO_WAIT=1 LAB_CONFIG=$D/$c/culvertd.yaml "$lab" helper "$P$c" "$D/$c" n1
    start=$(date +%s%N)
    until ip netns exec "$P$c-n1" curl -sf --unix-socket "$D/$c/n1/api.sock" http://localhost/readyz > /dev/null; do sleep 0.01; done
    printf '%s nodes, %s policies, 100 pods: %d ms from start to ready, %d MiB resident\n' "$nodes" "$policies" \
        $((($(date +%s%N) - start) / 1000000)) "$(awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$(cat "$D/$c/n1.pid")/status")"
    arguments+=("$nodes nodes, $policies policies|$D/$c/n1/cni.sock|$P$c|CULVERT_LABELS=app:p0|K8S_POD_NAMESPACE=default;K8S_POD_NAME=soon|CULVERT_LABELS=app:p$((policies + 1))")
done
"$bin/culvert-bench" scale "$bin/culvert" "${arguments[@]}"

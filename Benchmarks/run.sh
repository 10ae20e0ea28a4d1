#!/usr/bin/env bash
# All figures of the README, each beside its peer in one run, from a release build. Needs root.
source "$(dirname "$0")/../install/prepare.sh"
need_root
need_swift
install_packages "${packages[@]}"
with_run_on_tmpfs "$0" "$@"
cd "$root"
for product in culvertd culvert-bench; do
    swift build -c release --static-swift-stdlib --product $product 2>&1 | grep -E 'error|complete' || exit 1
done
# The plugin is static by its own flags; the other option would look for a standard library that Embedded Swift has not.
swift build -c release --product culvert 2>&1 | grep -E 'error|complete' || exit 1
bin=$root/.build/release
P=bench$$ D=/run/culvert-bench-$$
mkdir -p "$D"
chmod 755 "$D"
export LAB_BIN=$bin LAB_CONFIG=$D/culvertd.yaml
echo "encapsulation: {protocol: vxlan}" > "$LAB_CONFIG"
api=
trap '"$root/Tests/Lab/lab.sh" down "$P" "$D" 2> /dev/null; "$root/Tests/Lab/lab.sh" down "${P}k" "$D/k" 2> /dev/null; [ -z "$api" ] || kill "$api"; rm -rf "$D"' EXIT
printf '\nSize of the plugin: %s bytes (goal: below 1,500,000). %s\n' "$(stat -c %s "$bin/culvert")" "$(ldd "$bin/culvert" 2>&1 | xargs)"
"$bin/culvert-bench" version "$bin/culvert"
"$root/Tests/Lab/lab.sh" up "$P" "$D"
cat > "$D/inventory/policy.yaml" <<'Y'
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: shop}
spec:
  selectors: [{podSelector: {matchLabels: {app: shop}}}]
  destinationCIDRs: [0.0.0.0/0]
  egressGateway: {nodeSelector: {matchLabels: {zone: z3}}}
Y
"$root/Tests/Lab/lab.sh" helper "$P" "$D" n1
"$root/Tests/Lab/lab.sh" pod "$P" "$D" n1 a 10 app:shop > /dev/null
"$root/Tests/Lab/lab.sh" plugin "$P" "$D" n1 DEL a
# add TITLE POD: many times, each with its DEL.
add() {
    printf '\n%s\n' "$1"
    nsenter --net="/run/netns/$P-n1" "$bin/culvert-bench" add "$bin/culvert" "$D/n1/cni.sock" "/run/netns/$P-a" 10.244.1.10 "$2"
}
add "ADD of the only pod with a policy, which comes as a surprise: its table and its sets are made with it" CULVERT_LABELS=app:shop
cat > "$D/inventory/soon.yaml" <<'Y'
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: soon, labels: {app: shop}}
spec: {nodeName: n1}
Y
# Until it is read.
until ip -n "$P-n1" route show table all proto 110 | grep -q 'table 47'; do sleep 0.1; done
add "ADD of the only pod with a policy, which is known to be bound to this node" "K8S_POD_NAMESPACE=default;K8S_POD_NAME=soon"
rm "$D/inventory/soon.yaml"
"$root/Tests/Lab/lab.sh" pod "$P" "$D" n1 b 11 app:shop > /dev/null
add "ADD of a pod beside another one with the same policy" CULVERT_LABELS=app:shop
unshare --net "$bin/culvert-bench" routes
"$bin/culvert-bench" mesh
"$bin/culvert-bench" egress
# ADD on nodes of small and large clusters.
"$root/Benchmarks/scale.sh" "$bin" "$D/scale"
# 5,000 nodes in the API: memory, processor time, and how soon a change is in the kernel.
"$root/Tests/Lab/lab.sh" up "${P}k" "$D/k"
mkdir "$D/api"
# The node is a gateway, and has a pod with a policy: what each needs of every other node is kept up to date.
sed 's/zone: z3/zone: z1/' "$D/inventory/policy.yaml" > "$D/k/inventory/policy.yaml"
/usr/bin/python3 "$root/Tests/StandIn/apiserver.py" --listen 127.0.0.1:0 --unix "$D/api/unix" --ready-file "$D/api/url" \
    --objects "$D/k/inventory" --history 20000 > "$D/api/log" 2>&1 &
api=$!
for _ in $(seq 200); do [ -s "$D/api/url" ] && break; sleep 0.1; done
chmod 777 "$D/api/unix"
cat > "$D/k/kubeconfig" <<'K'
apiVersion: v1
kind: Config
current-context: bench
contexts: [{name: bench, context: {cluster: bench}}]
clusters: [{name: bench, cluster: {server: "http://127.0.0.1:6443"}}]
K
chmod 600 "$D/k/kubeconfig"
chown 65534 "$D/k/kubeconfig"
printf 'encapsulation: {protocol: vxlan}\ninventory: {source: kubernetes, kubeconfig: %s}\n' "$D/k/kubeconfig" > "$D/k/culvertd.yaml"
LAB_CONFIG=$D/k/culvertd.yaml LAB_API=$D/api/unix "$root/Tests/Lab/lab.sh" helper "${P}k" "$D/k" n1
"$root/Tests/Lab/lab.sh" pod "${P}k" "$D/k" n1 k 10 app:shop > /dev/null
ip netns exec "${P}k-n1" /usr/bin/python3 "$root/Benchmarks/watch.py" "$(cat "$D/k/n1.pid")" "$D/api/unix" || true
# How long a lost DEL takes: from the link's end until the rule is gone.
"$root/Tests/Lab/lab.sh" plugin "$P" "$D" n1 ADD a > /dev/null
start=$(date +%s%N)
ip -n "$P-n1" link del lxca
while ip -n "$P-n1" rule | grep -q 10.244.1.10; do :; done
printf '\nA lost DEL: %d ms from the end of the link until the rule is gone\n' $((($(date +%s%N) - start) / 1000000))

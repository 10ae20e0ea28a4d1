#!/usr/bin/env bash
# How long nothing arrives when a gateway dies, cause by cause: TRIALS (default 20) under the host's stack and under eBPF host
# routing, natively with vxlan. Then SECONDS (default 600) beside eight spinning processes, in which none may be left. Needs
# root, and what install/test.sh installs and builds.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/install/prepare.sh"
need_root
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build_bpf "$work/host_routing.bpf.o"
swift build --build-tests 2>&1 | grep -E 'error|Build' | tail -n 1
CULVERT_LAB=1 CULVERT_LAB_BPF=$work/host_routing.bpf.o CULVERT_TRIALS=${1:-20} CULVERT_BUSY_SECONDS=${2:-600} \
    .build/debug/culvertPackageTests.xctest --testing-library swift-testing \
    --filter 'aGatewayThatDies|aBusyMachine' > "$work/log" 2>&1 || { grep -a 'recorded an issue' "$work/log"; }
grep -aE '^FailOverTests: (stack|ebpf): ' "$work/log" | sed -nE 's/^FailOverTests: [a-z]+: (.*): n[23] to n[23], gap ([0-9]+) ms, ([0-9]+) of.*/\1;\2;\3/p' |
    sort -t';' -k1,1 -k2,2n | awk -F';' '
        function show() { if (n) printf "%-45s %3d trials: minimum %d, median %d, 99th percentile %d ms; %d wrong\n", name, n, gap[1], gap[int((n + 1) / 2)], gap[int(n * 0.99 + 0.999)], wrong }
        $1 != name { show(); name = $1; n = 0; wrong = 0 }
        { gap[++n] = $2; wrong += $3 }
        END { show() }'
grep -aE 'spinning' "$work/log"

#!/usr/bin/env bash
# Fuzzes what reads strangers' input, SECONDS each (default 20), from the corpus beside it. What it finds new stays in
# .build; a crash fails, and its input is named.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-20}
swift build 2>&1 | grep -E 'error|complete' || true
export SWIFT_BACKTRACE=enable=no ASAN_OPTIONS=detect_leaks=0
for target in FuzzPlugin FuzzRequest FuzzManifests FuzzEcho; do
    mkdir -p ".build/corpus/$target"
    .build/debug/$target -max_total_time="$seconds" -max_len=8192 -timeout=20 -artifact_prefix=".build/$target-" \
        ".build/corpus/$target" "Corpus/$target" > ".build/$target.log" 2>&1 || {
        tail -n 30 ".build/$target.log"
        echo "FAILED: $target; the input is in $(ls -t .build/$target-* | head -n 1)"
        exit 1
    }
    echo "$target: $(grep -aoE 'Done [0-9]+ runs.*' ".build/$target.log"), no crash"
done

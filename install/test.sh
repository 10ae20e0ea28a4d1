#!/usr/bin/env bash
# All tests: planner and formats, kernel modules in namespaces, whole programs on real runtimes, scenarios natively
# with VXLAN and in a VM with IPIP and FOU. Needs root and installs what is missing.
source "$(dirname "$0")/prepare.sh"
need_root
need_swift
install_packages "${packages[@]}"
unpack_packages etcd-server etcd-client
command -v kubectl > /dev/null || install_packages kubernetes-client
install_vm
cd "$root"
say "building"
swift build --build-tests 2>&1 | grep -E 'error|warning: unre|Compiling|Build' | tail -n 5
work=$(mktemp -d "$root/.build/test.XXXXXX")
cleanup() {
    # Whatever a test that crashed left behind; names carry the process id of the test run.
    local name pid
    for pid in $(cat "$work"/pids 2> /dev/null); do
        ip netns list | awk -v p="cv$pid" 'index($1, p) == 1 {print $1}' | while read -r name; do ip netns del "$name"; done
        for name in /run/culvert-cv"$pid"*/*.pid; do [ -e "$name" ] && kill -9 "$(cat "$name")" 2> /dev/null; done
        rm -rf /run/culvert-cv"$pid"*
    done
    rm -rf "$work"
}
trap cleanup EXIT
build_bpf "$work/host_routing.bpf.o"
export CULVERT_LAB_BPF=$work/host_routing.bpf.o CULVERT_BIN=$work/bin
# CULVERT_RELEASE=1: the release build's programs, where there are any. They start faster in the VM.
mkdir "$work/bin"
for program in culvert culvertd culvertctl; do
    from=$root/.build/debug
    [ "${CULVERT_RELEASE:-}" = 1 ] && [ -x "$root/.build/release/$program" ] && from=$root/.build/release
    ln -s "$from/$program" "$work/bin/$program"
done
bundle=$root/.build/debug/culvertPackageTests.xctest
total=0 failed=0

# run NAME FILTER COMMAND...: one layer; a run of no tests is a failure.
run() {
    local name=$1 filter=$2 status=0 count
    shift 2
    say "$name"
    "$@" "$bundle" --testing-library swift-testing --filter "$filter" > "$work/log" 2>&1 & local pid=$!
    echo $pid >> "$work/pids"
    wait $pid || status=$?
    sed 's/\x1b\[[0-9;]*m//g' "$work/log" > "$work/plain"
    grep -E '^(✘|✔ Test |✔ Suite)|recorded an issue|^↳|with .* tests? ' "$work/plain" | grep -v 'Test case passing' || true
    grep -E '^(StepPropertyTests|StepwiseTests|TransitionTests): ' "$work/plain" |
        awk -F: '{n[$1]++; last[$1] = $0; if ($1 == "TransitionTests") {split($NF, w, " "); wrong += w[1]; all += w[3]}}
            END {for (t in n) print (t == "TransitionTests" ? t ": " n[t] " changes, " wrong " of " all " datagrams left with a wrong address" : last[t])}' || true
    count=$(sed -nE 's/.*Test run with ([0-9]+) tests?.*/\1/p' "$work/plain" | tail -n 1)
    if [ "$status" != 0 ] || [ "${count:-0}" = 0 ] || grep -q '➜ .* skipped' "$work/plain"; then
        echo "FAILED: $name (exit $status, ${count:-0} tests)"
        tail -n 40 "$work/plain"
        failed=$((failed + 1))
    fi
    total=$((total + ${count:-0}))
}

run "planner, formats, bad input" PlannerTests env
run "kernel modules in a network namespace" KernelTests env CULVERT_OWN_NETNS=1 unshare --net
say "the stand-in for the API server, judged by kubectl and the Python client"
if bash Tests/StandIn/check.sh > "$work/log" 2>&1; then
    grep -E 'nodes in|patches|checks passed' "$work/log"
else
    grep -v '^ok' "$work/log"
    failed=$((failed + 1))
fi
# A process each: both suites block threads of the pool while they wait for programs, which holds up the other's tasks.
run "API server as inventory" KubernetesTests env
run "etcd as inventory" EtcdTests env
run "whole programs" ProgramTests env CULVERT_LAB=1
run "scenarios, natively with vxlan" EgressScenarioTests env CULVERT_LAB=1
run "twenty pods that never stop sending, natively with vxlan" TransitionTests env CULVERT_LAB=1
# Every combination, 100 MB each way: the kernel's own WireGuard is shown in the VM, which is much slower.
run "two sites, natively with wireguard-go" MeshScenarioTests \
    env CULVERT_LAB=1 CULVERT_LAB_MESH=1 CULVERT_LAB_WHOLE=1 CULVERT_LAB_MB=100 LAB_WIREGUARD=wireguard-go
if [ "${CULVERT_SKIP_VM:-}" != 1 ]; then
    options=$(vm_options)
    case $options in *disable-kvm*) say "the VM is emulated: /dev/kvm does not work here" ;; esac
    for protocol in ipip fou; do
        cat > "$work/vm.sh" <<V
modprobe -a ipip ip_gre fou vxlan wireguard nf_tables veth cls_bpf sch_ingress
export CULVERT_LAB=1 CULVERT_LAB_MESH=1 CULVERT_LAB_RUNTIMES=ctr CULVERT_LAB_PROTOCOL=$protocol CULVERT_LAB_BPF=$CULVERT_LAB_BPF CULVERT_BIN=$CULVERT_BIN
exec "\$@"
V
        # shellcheck disable=SC2086
        in_vm() { timeout 1200 vng $options -r "$(vm_kernel)" --user root -- bash "$work/vm.sh" "$@"; }
        filter=EgressScenarioTests
        # What depends on the protocol; an emulated VM needs minutes for the rest.
        [ $protocol = fou ] && [ "${CULVERT_WHOLE:-}" != 1 ] &&
            filter='aPodsEcho|aPodOnTheGateway|policiesWithOverlapping|theLargestPromised|spoofedTunnel'
        run "scenarios in the VM with $protocol" "$filter" in_vm
        if [ $protocol = ipip ]; then
            # In short, without CULVERT_WHOLE: each command takes a second there.
            run "twenty pods that never stop sending, in the VM" TransitionTests in_vm
            filter=MeshScenarioTests
            [ "${CULVERT_WHOLE:-}" != 1 ] && filter='podsOfTwoLocations|nodesReachEachOther'
            run "two sites in the VM" "$filter" in_vm
            # Many minutes in an emulated VM.
            if [ "${CULVERT_WHOLE:-}" = 1 ]; then run "containerd in the VM" RuntimeTests in_vm; fi
        fi
    done
fi
say "done"
echo "$((total - failed)) passed, $failed failed"
[ "$failed" = 0 ]

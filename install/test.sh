#!/usr/bin/env bash
# All tests: planner and formats, kernel modules in namespaces, whole programs on real runtimes, scenarios natively
# with VXLAN and in a VM with IPIP and FOU. Needs root and installs what is missing.
source "$(dirname "$0")/prepare.sh"
# What is done next, and how many seconds after the start.
say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
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
    [ -z "${release:-}" ] || kill -- "-$release" 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
build_bpf "$work/host_routing.bpf.o"
export CULVERT_LAB_BPF=$work/host_routing.bpf.o CULVERT_BIN=$work/bin
mkdir "$work/bin"
for program in culvert culvertd culvertctl; do ln -s "$root/.build/debug/$program" "$work/bin/$program"; done
# CULVERT_RELEASE=1 (CI): the programs that users run are built meanwhile, with what time the tests leave; the VM then runs
# these, because they start faster. (The plugin is static by its own flags: for the option that makes the others so, Embedded
# Swift has no standard library.)
release=
if [ "${CULVERT_RELEASE:-}" = 1 ]; then
    # A process group of its own, to be ended by; but no session of its own, which the kernel would give half of the processor
    # (sched(7), "The autogroup feature").
    set -m
    chrt --idle 0 bash -ec '
        for program in culvertd culvertctl; do swift build -c release --static-swift-stdlib --product $program; done
        swift build -c release --product culvert' > "$work/release" 2>&1 < /dev/null &
    release=$!
    set +m
fi
# Waits for the release build, and has the tests from here on run its programs.
use_release() {
    [ -n "$release" ] || return 0
    say "the release build"
    if wait "$release"; then
        grep complete "$work/release"
        for program in culvert culvertd culvertctl; do ln -sf "$root/.build/release/$program" "$work/bin/$program"; done
        check "the plugin of the release and its C library" 'agree on' bash Tests/Plugin/libc.sh "$work/bin/culvert"
    else
        grep -E 'error' "$work/release" || tail -n 20 "$work/release"
        failed=$((failed + 1))
    fi
    release=
}
bundle=$root/.build/debug/culvertPackageTests.xctest
total=0 failed=0

# layer NAME FILTER COMMAND...: one layer, and its count and failure in a file.
layer() {
    local name=$1 filter=$2 status=0 log
    log=$(log_of "$name")
    shift 2
    say "$name"
    "$@" "$bundle" --testing-library swift-testing --filter "$filter" > "$log" 2>&1 & local pid=$!
    echo $pid >> "$work/pids"
    wait $pid || status=$?
    judge "$name" "$status"
}
log_of() { printf '%s/%s' "$work" "$(printf '%s' "$1" | tr -c 'a-z0-9' '-')"; }

# judge NAME STATUS: what a layer's log says, and its count and failure in a file; a run of no tests is a failure.
judge() {
    local name=$1 status=$2 count failure=0 log
    log=$(log_of "$name")
    sed 's/\x1b\[[0-9;]*m//g' "$log" | tr -d '\r' > "$log.plain"
    grep -E '^(✘|✔ Test |✔ Suite)|recorded an issue|^↳|with .* tests? ' "$log.plain" | grep -v 'Test case passing' || true
    grep -E '^(FailOverTests|UpgradeTests|MoveFromKiloTests): ' "$log.plain" || true
    grep -E '^(StepPropertyTests|StepwiseTests|TransitionTests): ' "$log.plain" |
        awk -F: '{n[$1]++; last[$1] = $0; if ($1 == "TransitionTests") {split($NF, w, " "); wrong += w[1]; all += w[3]}}
            END {for (t in n) print (t == "TransitionTests" ? t ": " n[t] " changes, " wrong " of " all " datagrams left with a wrong address" : last[t])}' || true
    count=$(sed -nE 's/.*Test run with ([0-9]+) tests?.*/\1/p' "$log.plain" | tail -n 1)
    if [ "$status" != 0 ] || [ "${count:-0}" = 0 ] || grep -q '➜ .* skipped' "$log.plain"; then
        echo "FAILED: $name (exit $status, ${count:-0} tests)"
        grep -A 12 'recorded an issue' "$log.plain" | head -n 60 || true
        echo "... and its last lines:"
        tail -n 20 "$log.plain"
        failure=1
    fi
    echo "${count:-0} $failure" > "$log.count"
}

# Adds up what the layers since the last call have counted.
add_up() {
    local file count failure
    for file in "$work"/*.count; do
        read -r count failure < "$file"
        total=$((total + count)) failed=$((failed + failure))
        rm "$file"
    done
}

run() {
    layer "$@"
    add_up
}

# Runs a layer beside others; `together` waits for all of them, and prints what they said one after the other.
beside() {
    layer "$@" > "$work/beside-${#waiting[@]}" 2>&1 &
    waiting+=($!)
}
together() {
    local index
    for index in "${!waiting[@]}"; do
        wait "${waiting[$index]}" || true
        cat "$work/beside-$index"
    done
    waiting=()
    add_up
}
waiting=()

run "planner, formats, bad input" PlannerTests env
run "kernel modules in a network namespace" KernelTests env CULVERT_OWN_NETNS=1 unshare --net
# check NAME PATTERN COMMAND...: what is no Swift test. Prints the lines of its output that match, or all of it after a failure.
check() {
    local name=$1 pattern=$2 failure=0 log
    log=$work/$(printf '%s' "$name" | tr -c 'a-z0-9' '-')
    shift 2
    say "$name"
    if "$@" > "$log" 2>&1; then
        grep -E "$pattern" "$log"
    else
        grep -v '^ok' "$log"
        echo "FAILED: $name"
        failure=1
    fi
    echo "0 $failure" > "$log.count"
}
check "the plugin and its C library" 'agree on' bash Tests/Plugin/libc.sh "$work/bin/culvert"
check "links of the documentation, and the messages that it quotes" "are right" python3 Tests/docs.py
check "the stand-in for the API server, judged by kubectl and the Python client" 'nodes in|patches|checks passed' \
    bash Tests/StandIn/check.sh > "$work/beside-0" 2>&1 & waiting+=($!)
check "manifests, Helm chart and units" 'checks passed|exposure|objects' \
    env MANIFESTS_VENV="$root/.build/manifests" bash Tests/Manifests/check.sh > "$work/beside-1" 2>&1 & waiting+=($!)
check "the Debian package under a real systemd" 'checks passed|exposure' \
    bash Tests/Systemd/check.sh "$root/.build/debug" > "$work/beside-2" 2>&1 & waiting+=($!)
together
# A process each: both suites block threads of the pool while they wait for programs, which holds up the other's tasks. Both
# wait more than they work.
beside "API server as inventory" KubernetesTests env
beside "etcd as inventory" EtcdTests env
# With CULVERT_BIN_BEFORE from the release before; else this release takes both parts.
beside "upgrade and back under traffic" UpgradeTests env CULVERT_LAB=1
together
run "whole programs" ProgramTests env CULVERT_LAB=1
run "scenarios, natively with vxlan" EgressScenarioTests env CULVERT_LAB=1
# Beside a suite that works less than it waits, and the other way round: Kilo leaves out a gateway that dies after a minute.
beside "connections from outside, natively with vxlan" InboundTests env CULVERT_LAB=1
beside "from Kilo to Culvert and back, natively with wireguard-go" MoveFromKiloTests \
    env CULVERT_LAB=1 CULVERT_LAB_MESH=1 LAB_WIREGUARD=wireguard-go
together
run "pods that never stop sending, natively with vxlan" TransitionTests env CULVERT_LAB=1
# Every combination, 100 MB each way: the kernel's own WireGuard is shown in the VM, which is much slower.
run "two sites, natively with wireguard-go" MeshScenarioTests \
    env CULVERT_LAB=1 CULVERT_LAB_MESH=1 CULVERT_LAB_WHOLE=1 CULVERT_LAB_MB=100 LAB_WIREGUARD=wireguard-go
use_release
# By itself, with nothing built beside it: its bounds are times.
run "gateways that die, natively with vxlan" FailOverTests env CULVERT_LAB=1
# Layers in the VM: one start of it runs all of them, one after the other, because an emulated VM needs a minute for it.
# in_vm NAME PROTOCOL FILTER SECONDS: one more, and how long it may take.
vm_layers=() vm_seconds=300
in_vm() {
    vm_layers+=("$1")
    vm_seconds=$((vm_seconds + $4))
    cat >> "$work/vm.sh" << V
echo "== layer ${#vm_layers[@]} begins"
CULVERT_LAB_PROTOCOL=$2 timeout $4 "$bundle" --testing-library swift-testing --filter '$3' 2>&1
echo "== layer ${#vm_layers[@]} ends \$?"
V
}
run_vm() {
    local options try index status log
    options=$(vm_options)
    case $options in *disable-kvm*) say "the VM is emulated: /dev/kvm does not work here" ;; esac
    log=$work/vm.log
    for try in 1 2; do
        say "the VM starts"
        # shellcheck disable=SC2086
        timeout $vm_seconds vng $options -r "$(vm_kernel)" --user root -- bash "$work/vm.sh" > "$log" 2> "$log.errors" & local pid=$!
        echo $pid >> "$work/pids"
        # Its layers, while they run, with the time at which each begins.
        index=0
        while kill -0 $pid 2> /dev/null; do
            sleep 2
            while grep -qE "^== layer $((index + 1)) begins" "$log" && [ "$index" -lt "${#vm_layers[@]}" ]; do
                say "${vm_layers[$index]}"
                index=$((index + 1))
            done
        done
        wait $pid || true
        # A VM that dies before any test has ended says nothing about the tests; it is started once more.
        if [ "$try" = 1 ] && ! sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -qE 'Test run with|^[✔✘] Test '; then
            echo "THE VM ENDED BEFORE ANY TEST DID; its last words, and then once more:"
            tail -n 20 "$log" "$log.errors"
            continue
        fi
        break
    done
    for index in "${!vm_layers[@]}"; do
        sed -nE "/^== layer $((index + 1)) begins/,/^== layer $((index + 1)) ends/p" "$log" > "$(log_of "${vm_layers[$index]}")"
        status=$(sed -nE "s/^== layer $((index + 1)) ends ([0-9]+).*/\1/p" "$log")
        echo
        echo "== ${vm_layers[$index]}: what it said"
        judge "${vm_layers[$index]}" "${status:-unknown, the VM died}"
        [ -n "$status" ] || tail -n 20 "$log.errors"
    done
    add_up
}

if [ "${CULVERT_SKIP_VM:-}" != 1 ]; then
    cat > "$work/vm.sh" << V
modprobe -a ipip ip_gre fou vxlan wireguard nf_tables veth cls_bpf sch_ingress
export CULVERT_LAB=1 CULVERT_LAB_MESH=1 CULVERT_LAB_RUNTIMES=ctr CULVERT_LAB_BPF=$CULVERT_LAB_BPF CULVERT_BIN=$CULVERT_BIN
export CULVERT_WHOLE=${CULVERT_WHOLE:-}
V
    # What depends on the protocol; an emulated VM needs many minutes for the rest, which runs natively.
    short='aPodsEcho|aPodOnTheGateway|policiesWithOverlapping|theLargestPromised|spoofedTunnel'
    if [ "${CULVERT_WHOLE:-}" = 1 ]; then
        for protocol in ipip fou; do
            in_vm "scenarios in the VM with $protocol" $protocol EgressScenarioTests 1800
            in_vm "gateways that die, in the VM with $protocol" $protocol FailOverTests 3600
        done
        in_vm "pods that never stop sending, in the VM" ipip TransitionTests 7200
        in_vm "two sites in the VM" ipip MeshScenarioTests 1800
        in_vm "from Kilo to Culvert and back, in the VM" ipip MoveFromKiloTests 1800
        in_vm "containerd in the VM" ipip RuntimeTests 1800
    else
        # In short: each command takes a second there.
        in_vm "scenarios in the VM with ipip" ipip "$short|withoutAGatewayNothing|theTunnelSetDown" 1200
        in_vm "pods that never stop sending, in the VM" ipip noDatagramLeaves 1200
        in_vm "gateways that die, in the VM" ipip FailOverTests 1200
        in_vm "two sites in the VM" ipip 'podsOfTwoLocations|nodesReachEachOther' 1200
        in_vm "scenarios in the VM with fou" fou "$short" 1200
    fi
    run_vm
fi
say "done"
echo "$((total - failed)) passed, $failed failed"
[ "$failed" = 0 ]

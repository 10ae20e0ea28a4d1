#!/usr/bin/env bash
# The Debian package and its units under a real systemd, from a machine with containerd alone to one without a trace of Culvert:
# the README's two commands as printed, a pod over the CRI that leaves by another node, a reboot, a power cut, an upgrade, purge.
#   check.sh DIRECTORY_OF_PROGRAMS [PACKAGE]      PACKAGE: one that install/debian.sh made; otherwise it is made here
# ROOTFS=DIR: the machine's file system is that of DIR (made by debootstrap, say), not that of this computer (machine.sh).
# Needs root. The machine is node n1 of the lab (docs/lab.md); n3 is the gateway.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ "${CULVERT_OWN_MOUNTS:-}" != 1 ]; then
    CULVERT_OWN_MOUNTS=1 exec unshare --mount --propagation private bash "$here/check.sh" "$@"
fi
programs=$(cd "${1:?the directory of the programs}" && pwd)
source "$here/machine.sh"
work=$(mktemp -d /tmp/culvert-systemd.XXXXXX)
# The helpers of the lab are not root, and read the inventory.
chmod 0755 "$work"
lab=$work/lab P=cvs$$
# vxlan is what every kernel has.
configuration="encapsulation: {protocol: ${CULVERT_LAB_PROTOCOL:-vxlan}}"
machine_shell= machine_pid= checks=0
lab() { LAB_BIN=$programs LAB_CONFIG=$work/lab.yaml "$root/Tests/Lab/lab.sh" "$1" "$P" "$lab" "${@:2}"; }
cleanup() {
    [ -z "$machine_shell" ] || { machine_stop KILL; } || true
    [ ! -d "$lab" ] || lab down 2> /dev/null || true
    umount -l "$work"/machine/{root,disk,cgroup} 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

say() { printf '== %s (%d s)\n' "$*" "$SECONDS"; }
passed() { checks=$((checks + 1)); echo "ok    $*"; }
failed() {
    echo "FAIL  $*"
    if [ -n "$machine_pid" ]; then
        on_machine systemctl --no-pager status culvertd culvert-install || true
        on_machine journalctl --no-pager -b -u 'culvert*' | grep -v 'thread priority' | tail -n 30 || true
    fi
    exit 1
}
# same WHAT WANTED FOUND
same() { if [ "$2" = "$3" ]; then passed "$1"; else failed "$1: wanted $2, found $3"; fi; }
# within SECONDS WHAT COMMAND...: the command succeeds before long.
within() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > "$work/said" 2>&1; do
        if [ $SECONDS -ge $end ]; then
            cat "$work/said"
            failed "$what"
        fi
        sleep 0.1
    done
    passed "$what"
}

cri() { python3 "$here/cri.py" "/proc/$machine_pid/root/run/containerd/containerd.sock" "$@"; }
# Which addresses the outside host has had datagrams from since the last pod was started.
arrived() {
    nsenter "--net=/run/netns/$P-out" nft -j list set inet watch datagrams | python3 -c '
import json, sys
found = [e["set"] for e in json.load(sys.stdin)["nftables"] if "set" in e][0].get("elem", [])
print(" ".join(sorted({e["elem"]["val"]["concat"][0] for e in found})) or "nobody")'
}
# pod WHAT ADDRESS: a pod is started; its first packet leaves with this address.
pods=0
pod() {
    pods=$((pods + 1))
    nsenter "--net=/run/netns/$P-out" nft flush set inet watch datagrams
    sandbox=$(cri run shop "0-0-$pods") || failed "$1: the pod does not start"
    local from=nobody
    for _ in $(seq 100); do
        from=$(arrived)
        [ "$from" = nobody ] || break
        sleep 0.1
    done
    same "$1: the first packet leaves with $2" "$2" "$from"
}
# What the kernel has on the node, without what has another number after each start.
kernel() {
    nsenter "--net=/run/netns/$P-n1" bash -c '
        ip -d link 2> /dev/null | sed "s/^[0-9]*: //; s/@[^:]*:/:/; s/link.ether [0-9a-f:]*//; s/link-netnsid [0-9]*//; s/link-netns [^ ]*//"
        ip -br addr | sed "s/@if[0-9]*//"; ip rule; ip nexthop; ip route show table all
        nft list ruleset
        sysctl -a 2> /dev/null | grep "^net\.ip" | grep -v "fs_addr_\|stable_secret"'
}
# Files and directories that differ from those of the machine as it was made. Left out are what dpkg itself keeps, logs, what
# systemd and host-local remember, and the list of users: a package leaves its user (docs/uninstall.md).
files() {
    machine_files | grep -vE '^(var/(lib/(dpkg|apt|PackageKit|systemd|containerd)|log|cache|tmp)|var/lib/cni/networks/pods/last_reserved_ip.0|etc/(passwd|group|shadow|gshadow)-?|etc/\.pwd\.lock|root)[/ ]'
}
# Those of the container network alone.
network_files() { files | grep -E '^(etc/cni|usr/lib/cni|opt|var/lib/cni)'; }
# as_before WHEN FILES: the kernel, and what the function FILES lists, are what they were before Culvert.
as_before() {
    kernel > "$work/kernel.after"
    diff "$work/kernel.before" "$work/kernel.after" || failed "$1: the kernel is not as it was"
    passed "$1: the kernel is as it was, $(wc -l < "$work/kernel.after") lines"
    $2 > "$work/files.after"
    diff "$work/$2.before" "$work/files.after" || failed "$1: the files are not as they were"
    passed "$1: the files are as they were, $(wc -l < "$work/files.after") lines"
}
units_run() { on_machine systemctl is-active --quiet culvertd culvert-install; }
# started_again TIMES: culvertd has ended and was started so many times since the machine was.
started_again() { [ "$(on_machine systemctl show -P NRestarts culvertd)" = "$1" ] && on_machine systemctl is-active --quiet culvertd; }
is_ok() { [[ $(on_machine culvertctl status) = OK$'\n'* ]]; }
# By the file that the runtime takes first, and with a program where the runtime looks for it.
is_chained() {
    [ "$(plugins_of "$(on_machine find /etc/cni/net.d -name '*.conflist' | sort | head -n 1)")" = "ptp culvert" ] &&
        on_machine test -x /usr/lib/cni/culvert
}
plugins_of() {
    python3 -c 'import json, sys; print(" ".join(p["type"] for p in json.load(open(sys.argv[1]))["plugins"]))' "$machine/root$1"
}
kernel_is_as_planned() { [ "$(on_machine culvertctl diff)" = "[]" ]; }
# Both units run, the plugin is in the chain, and the helper is content.
everything_runs() {
    within 60 "$1: both units run" units_run
    within 60 "$1: status is OK" is_ok
    within 60 "$1: the plugin is in the chain once, behind ptp" is_chained
    within 60 "$1: the kernel is as planned" kernel_is_as_planned
}

package=${2:-}
if [ -z "$package" ]; then
    say "the package"
    # Little is gained by packing well what is unpacked a moment later.
    package=$(DPKG_DEB_COMPRESSOR_TYPE=none "$root/install/debian.sh" "$programs" "$work/package")
fi

say "a machine with containerd"
echo "$configuration" > "$work/lab.yaml"
mkdir "$lab" && chmod 0755 "$lab"
lab up
cat > "$lab/inventory/shop.yaml" <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: default, labels: {app: shop}}
spec: {nodeName: n1}
---
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: shop-leaves-by-n3}
spec:
  selectors: [{podSelector: {matchLabels: {app: shop}}}]
  destinationCIDRs: [0.0.0.0/0]
  egressGateway: {nodeSelector: {matchLabels: {zone: z3}}}
Y
lab helper n3
machine_make "$work/machine"
! chroot "$machine/root" dpkg -s culvert > /dev/null 2>&1 || { echo "FAIL  the package culvert is installed here already" >&2; exit 1; }
python3 - "$root/cni-conf/10-ptp-culvert.conflist" > "$machine/root/etc/cni/net.d/10-ptp.conflist" <<'Y'
import json, sys
conf = json.load(open(sys.argv[1]))
conf["plugins"].pop()
conf["name"] = "pods"
print(json.dumps(conf, indent=2))
Y
# containerd as Debian configures it, and the image of the pods. Control groups and OOM scores are left out: this computer may
# refuse them, and nothing here depends on them.
mkdir -p "$machine/root/etc/containerd" "$machine/root/etc/systemd/system/multi-user.target.wants"
cat > "$machine/root/etc/containerd/config.toml" <<'T'
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "culvert.test/pod:1"
    disable_cgroup = true
    restrict_oom_score_adj = true
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
T
ln -s /lib/systemd/system/containerd.service "$machine/root/etc/systemd/system/multi-user.target.wants/"
cp "$package" "$machine/root/root/"
gcc -static -O1 -o "$work/pod" "$here/pod.c"
python3 "$here/cri.py" "$work/pod" image "$machine/root/root/pod.tar"
machine_start "/run/netns/$P-n1"
on_machine ctr -n k8s.io images import /root/pod.tar > /dev/null
pod "before Culvert" 10.0.0.11
cri remove "$sandbox"
kernel > "$work/kernel.before"
for part in files network_files; do $part > "$work/$part.before"; done

say "the README's two commands"
sed -nE 's/^((apt-get install|systemctl enable --now) [^#]*[^# ]).*/\1/p' "$root/README.md" > "$work/commands"
same "the README has two commands" 2 "$(wc -l < "$work/commands")"
first=$(head -n 1 "$work/commands") second=$(tail -n 1 "$work/commands")
on_machine bash -c "cd /root && $first" > "$work/said" 2>&1 < /dev/null || { cat "$work/said"; failed "$first"; }
passed "$first"
same "nothing runs before the second command" "inactive inactive" "$(on_machine systemctl is-active culvertd culvert-install | paste -sd' ')"
# What the README says is done in between: the configuration.
echo "$configuration" > "$machine/root/etc/culvert/culvertd.yaml"
cp "$lab"/inventory/*.yaml "$machine/root/etc/culvert/inventory.d/"
on_machine bash -c "$second" > "$work/said" 2>&1 || { cat "$work/said"; failed "$second"; }
passed "$second"
everything_runs "installed"
pod "installed" 10.0.0.13
within 60 "installed: the pod is routed, and the kernel is as planned" kernel_is_as_planned

say "what the units may do"
for unit in culvertd culvert-install; do
    exposure=$(on_machine systemd-analyze security --no-pager "$unit.service" | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
    awk -v exposure="$exposure" 'BEGIN { exit !(exposure != "" && exposure <= 1.5) }' || failed "$unit: exposure ${exposure:-unknown}, more than 1.5"
    passed "$unit as it runs: exposure $exposure"
done
# rights UNIT: user, effective and bounding capabilities (12: NET_ADMIN), no_new_privs, seccomp, group.
rights() {
    local pid; pid=$(on_machine systemctl show -P MainPID "$1")
    on_machine sed -nE 's/^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):\t([0-9a-f]*).*/\2/p' "/proc/$pid/status" | paste -sd' '
}
same "the helper is the user culvert with NET_ADMIN alone" "$(on_machine id -u culvert) 0000000000001000 0000000000001000 1 2" "$(rights culvertd)"
same "the installer is root without any capability" "0 0000000000000000 0000000000000000 1 2" "$(rights culvert-install)"

say "a helper that is killed"
on_machine systemctl kill -s KILL culvertd
within 60 "systemd starts it again" started_again 1
everything_runs "after kill -9"

say "a reboot"
# reboot SIGNAL WHAT: as a kubelet does after it, the pod's sandbox is removed, and a new one made.
reboot() {
    machine_stop "$1" || failed "$2"
    lab reboot n1
    machine_start "/run/netns/$P-n1" || failed "$2"
    everything_runs "$2"
    cri remove "$sandbox"
    pod "$2" 10.0.0.13
    within 60 "$2: the kernel is as planned for the new pod" kernel_is_as_planned
}
reboot 37 "after a reboot"
say "a power cut"
reboot KILL "after a power cut"

say "an upgrade"
before=$(on_machine systemctl show -P MainPID culvertd)
on_machine bash -c "cd /root && dpkg -i ./culvert_*.deb" > "$work/said" 2>&1 < /dev/null || { cat "$work/said"; failed "dpkg -i once more"; }
everything_runs "after an upgrade"
[ "$before" != "$(on_machine systemctl show -P MainPID culvertd)" ] || failed "an upgrade does not start the new helper"
same "the configuration stays" "$configuration" "$(cat "$machine/root/etc/culvert/culvertd.yaml")"
cri remove "$sandbox"
pod "after an upgrade" 10.0.0.13

say "away by hand, as docs/uninstall.md prints it"
cri remove "$sandbox"
sed -n '/^By hand:/,/^## /p' "$root/docs/uninstall.md" | sed -n '/^```/,/^```/p' | grep -v '^```' > "$work/commands"
same "the page has four commands" 4 "$(wc -l < "$work/commands")"
on_machine bash -euc "$(cat "$work/commands")" > "$work/said" 2>&1 || { cat "$work/said"; failed "the commands of docs/uninstall.md"; }
as_before "after uninstall and cleanup" network_files
on_machine bash -c "$second" > "$work/said" 2>&1
everything_runs "installed again"

say "a removal that cannot be: somebody else, such as Cilium, writes Culvert's entry"
sed 's/,"installedBy":"[^"]*"//' "$machine/root/etc/cni/net.d/02-culvert.conflist" > "$machine/root/etc/cni/net.d/01-other.conflist"
if on_machine apt-get remove -y culvert > "$work/said" 2>&1 < /dev/null; then failed "the package was removed in spite of it"; fi
passed "the package is not removed"
same "apt-get's output names the file" 1 "$(grep -c '01-other.conflist in /etc/cni/net.d still has an entry' "$work/said")"
same "the units still run" "active active enabled enabled" \
    "$({ on_machine systemctl is-active culvertd culvert-install; on_machine systemctl is-enabled culvertd culvert-install; } | paste -sd' ')"
rm "$machine/root/etc/cni/net.d/01-other.conflist"

say "away with the package"
within 60 "the installer takes its list up again" is_chained
on_machine apt-get purge -y culvert > "$work/said" 2>&1 < /dev/null || { cat "$work/said"; failed "apt-get purge culvert"; }
as_before "after purge" files
same "nothing is left in /run" "" "$(on_machine find /run -name '*culvert*')"
same "one user was added, and nothing else" "> culvert" "$(diff "${ROOTFS:-}/etc/passwd" "$machine/root/etc/passwd" | tail -n +2 | sed 's/:.*//')"
same "no unit is left" "" "$(on_machine systemctl list-units --all --plain --no-legend 'culvert*')"
pod "without Culvert again" 10.0.0.11
cri remove "$sandbox"
echo "$checks checks passed ($SECONDS s)"

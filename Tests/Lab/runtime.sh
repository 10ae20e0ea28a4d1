#!/usr/bin/env bash
# The first packet through a real runtime: containerd (ctr) or podman on node n1, ptp + culvert in a real conflist.
#
#   runtime.sh ctr PREFIX DIR COUNT      COUNT containers, each sending a UDP datagram as its first act
#   runtime.sh podman PREFIX DIR COUNT
#
# With INSTALL=METHOD (own-list or in-place) the directory has the ptp list alone, and `culvertd install --once` puts the
# plugin there; `culvertd uninstall` takes it away afterwards, and what is left is compared with what was there.
#
# The runtime runs in n1's network namespace and a mount namespace of its own, with its own directories below DIR, so
# that nothing of the machine's own runtimes is touched.
set -euo pipefail
kind=$1 P=$2 D=$3 count=$4
BIN=${LAB_BIN:?}
root=$(cd "$(dirname "$0")/../.." && pwd)
R=$D/runtime
mkdir -p "$R"/{net.d,bin,state,root,run,rootfs/bin}
[ -n "${INSTALL:-}" ] || cp "$BIN/culvert" "$R/bin/"
cp /usr/lib/cni/{ptp,host-local} "$R/bin/"
gcc -static -O1 -o "$R/rootfs/bin/first_packet" "$root/Tests/Lab/first_packet.c"
# The conflist of cni-conf/, with this lab's socket, and labels of containers that Kubernetes does not know.
python3 - "$root/cni-conf/10-ptp-culvert.conflist" "$D/n1/cni.sock" "$R" > "$R/net.d/10-ptp-culvert.conflist" <<'Y'
import json, os, sys
conf = json.load(open(sys.argv[1]))
plugin = conf["plugins"].pop() if os.environ.get("INSTALL") else conf["plugins"][-1]
plugin["socket"] = sys.argv[2]
plugin["args"] = {"cni": {"labels": [{"key": "app", "value": "shop"}]}}
conf["plugins"][0]["ipam"]["dataDir"] = sys.argv[3] + "/ipam"
json.dump(conf, sys.stdout)
Y
if [ -n "${INSTALL:-}" ]; then
    cp -a "$R/net.d" "$R/net.d.before"
    ls "$R/bin" > "$R/bin.before"
    "$BIN/culvertd" install --once --chain-after culvert-try --chain-by "$INSTALL" --conf-dir "$R/net.d" --bin-dir "$R/bin" \
        --run-dir "$D/n1" --state-dir "$R/culvert-state"
    # Labels of containers that Kubernetes does not know, as an administrator would add them.
    sed -i 's/"type":"culvert",/"type":"culvert","args":{"cni":{"labels":{"app":"shop"}}},/' "$R"/net.d/*.conflist
fi
case $kind in
ctr)
    cat > "$R/config.toml" <<T
version = 2
root = "$R/root"
state = "$R/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$R/containerd.sock"
[ttrpc]
address = "$R/containerd.sock.ttrpc"
T
    inner='
containerd --config "$R/config.toml" > "$R/containerd.log" 2>&1 &
daemon=$!
trap "kill $daemon; wait $daemon 2> /dev/null" EXIT
for _ in $(seq 150); do ctr -a "$R/containerd.sock" version > /dev/null 2>&1 && break; sleep 0.1; done
one() {
    ctr -a "$R/containerd.sock" run --rm --rootfs --cni --snapshotter native "$R/rootfs" "$P-c$1" /bin/first_packet || echo "container $1 failed"
}
export -f one
seq "$count" | xargs -P 4 -I{} bash -c "one {}"
'
    ;;
podman)
    cat > "$R/containers.conf" <<T
[network]
network_backend = "cni"
cni_plugin_dirs = ["$R/bin"]
network_config_dir = "$R/net.d"
default_network = "culvert-try"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
T
    inner='
export CONTAINERS_CONF=$R/containers.conf
for i in $(seq "$count"); do
    podman --root "$R/root" --runroot "$R/run" --tmpdir "$R/tmp" --storage-driver vfs run --rm --network culvert-try \
        --ulimit nofile=256:256 --ulimit nproc=256:256 --security-opt seccomp=unconfined --rootfs "$R/rootfs" /bin/first_packet || echo "container $i failed"
done
'
    ;;
esac
export kind P D R count inner
# nsenter rather than `ip netns exec`, which hides the cgroup mounts that runc needs.
nsenter --net="/run/netns/$P-n1" unshare -m --propagation private bash -c '
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni
mount --bind "$R/net.d" /etc/cni/net.d
mount --bind "$R/bin" /opt/cni/bin
mount -t tmpfs tmpfs /var/lib/cni
eval "$inner"'
if [ -n "${INSTALL:-}" ]; then
    "$BIN/culvertd" uninstall --conf-dir "$R/net.d" --bin-dir "$R/bin"
    diff -r "$R/net.d.before" "$R/net.d"
    ls "$R/bin" | diff "$R/bin.before" -
    echo "uninstalled"
fi

#!/usr/bin/env bash
# The DaemonSet's pod on node n1 of the lab, and a pod that it routes, started by containerd's CRI as a kubelet would start
# them: the image that install/image.sh assembles, the manifest of install/kubernetes/base, a real CNI chain (ptp) into which
# the pod's installer puts the plugin.
#
#   daemonset.sh PREFIX DIR UID     UID is that of the pod in DIR/inventory
#
# containerd runs in n1's network namespace and a mount namespace of its own, with its own directories below DIR. The
# helper's log is DIR/n1.log, where those of other nodes are.
set -euo pipefail
export P=$1 D=$2 uid=$3 CRI_CGROUP=$1
BIN=${LAB_BIN:?}
root=$(cd "$(dirname "$0")/../.." && pwd)
export root R=$D/runtime
mkdir -p "$R"/{net.d,bin,state,root,config/inventory.d,token,pod/bin} "$D/n1" /run/culvert /run/containerd /var/lib/cni
cp /usr/lib/cni/{ptp,host-local,loopback} "$R/bin/"
cp "$(command -v busybox)" "$R/pod/bin/"
gcc -static -O1 -o "$R/pod/bin/first_packet" "$root/Tests/Lab/first_packet.c"
python3 - "$root/cni-conf/10-ptp-culvert.conflist" "$R" > "$R/net.d/10-ptp.conflist" <<'Y'
import json, sys
conf = json.load(open(sys.argv[1]))
del conf["plugins"][1:]
conf["plugins"][0]["ipam"]["dataDir"] = sys.argv[2] + "/ipam"
json.dump(conf, sys.stdout)
Y
cp "$D/culvertd.yaml" "$R/config/"
echo 'inventory: {source: file, path: /etc/culvert/inventory.d}' >> "$R/config/culvertd.yaml"
"$root/install/image.sh" "$BIN" "$R/image" --archive "$R/culvert.tar" > "$R/image.log"
"$root/install/oci-archive.sh" "$R/pod" "$R/pod.tar" lab-pod:1 '{"Entrypoint":["/bin/busybox","sleep","1000"]}'
cat > "$R/config.toml" <<T
version = 2
root = "$R/root"
state = "$R/state"
[grpc]
address = "$R/containerd.sock"
[ttrpc]
address = "$R/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/lab-pod:1"
disable_tcp_service = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$R/bin"
conf_dir = "$R/net.d"
T
export inner='
cri() { python3 "$root/Tests/Lab/cri.py" "$R/containerd.sock" "$@"; }
containerd --config "$R/config.toml" > "$R/containerd.log" 2>&1 &
daemon=$!
trap "cri stop > /dev/null; kill $daemon; wait $daemon 2> /dev/null" EXIT
for _ in $(seq 150); do ctr -a "$R/containerd.sock" version > /dev/null 2>&1 && break; sleep 0.1; done
for image in culvert pod; do
    ctr -a "$R/containerd.sock" -n k8s.io images import --snapshotter native "$R/$image.tar" > /dev/null
done
cri daemonset "$root/install/kubernetes/base/daemonset.yaml" n1 "$D" "run=/run/culvert" "state=$R/helper-state" \
    "cni-conf=$R/net.d" "cni-bin=$R/bin" "config=$R/config" "api-access=$R/token" "host-usr=/usr"
cri chained culvert
cri pod web "$uid" lab-pod:1 /bin/first_packet
cri exec culvertd /usr/local/bin/culvertctl status | awk "NR == 1 || /^Attachments:/" | xargs
mkdir "$D/n1/peer"
python3 "$root/Tests/Lab/peer_capabilities.py" "$D/n1/peer/api.sock" & peer=$!
for _ in $(seq 100); do [ -S "$D/n1/peer/api.sock" ] && break; sleep 0.05; done
cri exec culvertd /usr/local/bin/culvertctl ready --run-dir /run/culvert/peer > /dev/null || true
wait $peer
cri stop culvert
'
# nsenter rather than `ip netns exec`, which hides the cgroup mounts that runc needs.
status=0
nsenter --net="/run/netns/$P-n1" unshare -m --propagation private bash -ec '
mount --bind "$D/n1" /run/culvert
mount --bind "$D/inventory" "$R/config/inventory.d"
mount -t tmpfs tmpfs /run/containerd
mount -t tmpfs tmpfs /var/lib/cni
eval "$inner"' || status=$?
rmdir --ignore-fail-on-non-empty /run/culvert
find /sys/fs/cgroup -maxdepth 2 -name "$CRI_CGROUP" -exec rmdir {} +
exit $status

#!/usr/bin/env bash
# Assembles the file system of Culvert's image, without a container engine: the programs, and of the libraries those that
# they are linked against. Nothing else is in it, so no shell either. culvertctl is the helper's program under a second name,
# so that what both need is in the image once.
#   install/image.sh DIRECTORY_OF_PROGRAMS ROOT [--archive FILE] [--try]
# ROOT must not exist. Prints the size, and what it consists of. --archive also packs it, for `ctr images import` or
# `podman load`. --try starts the helper in it under containerd as a DaemonSet would: not root, NET_ADMIN alone by file
# capability, read-only root, the default seccomp profile. --try needs root and containerd, and starts a containerd of its own
# in a temporary directory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { echo "usage: install/image.sh DIRECTORY_OF_PROGRAMS ROOT [--archive FILE] [--try]" >&2; exit 2; }
[ $# -ge 2 ] || usage
programs=$(cd "$1" && pwd)
target=$2
shift 2
archive='' is_tried=''
while [ $# -gt 0 ]; do
    case $1 in
    --archive) [ $# -ge 2 ] || usage; archive=$2; shift 2 ;;
    --try) is_tried=1; shift ;;
    *) usage ;;
    esac
done
[ ! -e "$target" ] || { echo "$target exists already: name a directory that does not" >&2; exit 1; }
for program in culvert culvertd; do
    [ -x "$programs/$program" ] || { echo "$programs has no program $program: build it first, or name another directory" >&2; exit 1; }
done
uid=47110

mkdir -p "$target"/{etc/culvert,run/culvert,var/lib/culvert,var/run,tmp,proc,sys,dev,usr/local/bin,usr/local/lib/culvert,opt/cni/bin,etc/cni/net.d,etc/ssl/certs}
target=$(cd "$target" && pwd)
strip --strip-all -o "$target/usr/local/bin/culvertd" "$programs/culvertd"
cp "$programs/culvert" "$target/usr/local/lib/culvert/culvert"
chmod 0755 "$target/usr/local/bin/culvertd" "$target/usr/local/lib/culvert/culvert"
ln -s culvertd "$target/usr/local/bin/culvertctl"
# The libraries, under the names by which the programs ask for them; symbolic links are followed.
libraries=$(ldd "$programs/culvertd" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p' | sort -u)
for library in $libraries; do
    install -D -m 0755 "$(realpath "$library")" "$target$library"
done
# Which the programs load when they look up names.
for library in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2; do
    found=$(ldconfig -p | sed -n "s/.*$library.*=> //p" | head -n 1)
    [ -z "$found" ] || [ -e "$target$found" ] || { install -D -m 0755 "$(realpath "$found")" "$target$found"; libraries+=" $found"; }
done
cat > "$target/etc/passwd" <<P
root:x:0:0:root:/:/usr/sbin/nologin
culvert:x:$uid:$uid:Culvert's helper:/var/lib/culvert:/usr/sbin/nologin
P
printf 'root:x:0:\nculvert:x:%s:\n' "$uid" > "$target/etc/group"
echo 'hosts: files dns' > "$target/etc/nsswitch.conf"
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$target/etc/ssl/certs/"
# Permitted, not effective: with +ep the program would not start at all where the bounding set lacks the capability, and
# could not say what is missing. It raises the capability itself.
setcap cap_net_admin+p "$target/usr/local/bin/culvertd"
getcap "$target/usr/local/bin/culvertd" | grep -q 'cap_net_admin=p' || { echo "the file system of $target keeps no file capabilities" >&2; exit 1; }

kilobytes() { du -scb "$@" | awk 'END { printf "%d", ($1 + 512) / 1024 }'; }
# Sections of the stripped program whose names match, in kB.
section() { size -A "$target/usr/local/bin/culvertd" | awk -v name="$1" '$1 ~ name { sum += $2 } END { printf "%d", (sum + 512) / 1024 }'; }
echo "culvertd    $(kilobytes "$target/usr/local/bin/culvertd") kB: code $(section '^[.]text$'), tables of the code $(section '^([.]eh_frame|[.]eh_frame_hdr|[.]gcc_except_table|[.]rela[.]dyn|[.]data[.]rel[.]ro)$'), Swift's metadata $(section '^swift5_'), constants $(section '^[.]rodata$')"
echo "culvert     $(kilobytes "$target/usr/local/lib/culvert/culvert") kB"
# shellcheck disable=SC2086
echo "libraries   $(kilobytes $(for library in $libraries; do echo "$target$library"; done)) kB"
echo "everything  $(kilobytes "$target") kB"
if [ -n "$archive" ]; then
    "$here/oci-archive.sh" "$target" "$archive" "culvert:$("$programs/culvertd" --version)" \
        "{\"User\":\"$uid:$uid\",\"Entrypoint\":[\"/usr/local/bin/culvertd\"],\"Cmd\":[\"run\"]}"
    echo "packed into $archive"
fi
[ -n "$is_tried" ] || exit 0

work=$(mktemp -d)
name=culvert-image-$$
daemon=
stop() {
    ctr --address "$work/c.sock" task kill -s KILL "$name" > /dev/null 2>&1 || true
    sleep 0.5
    ctr --address "$work/c.sock" task delete -f "$name" > /dev/null 2>&1 || true
    ctr --address "$work/c.sock" container delete "$name" > /dev/null 2>&1 || true
    [ -z "$daemon" ] || kill "$daemon" 2> /dev/null || true
    wait 2> /dev/null || true
    ip netns delete "$name" 2> /dev/null || true
    umount "$work"/state/io.containerd*/*/*/rootfs 2> /dev/null || true
    rm -rf "$work"
}
trap stop EXIT
printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "%s/c.sock"\n' "$work" "$work" "$work" > "$work/config.toml"
containerd --config "$work/config.toml" > "$work/containerd.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do [ -S "$work/c.sock" ] && break; sleep 0.1; done
ip netns add "$name"
mkdir -p "$work/run/attachments" "$work/run/deleted" "$work/run/published" "$work/lib" "$work/etc/inventory.d"
chown -R "0:$uid" "$work/run" "$work/lib"
chmod -R 2770 "$work/run" "$work/lib"
printf 'inventory: {source: file, path: /etc/culvert/inventory.d}\n' > "$work/etc/culvertd.yaml"
printf 'apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.0.1.0/24}\n' > "$work/etc/inventory.d/n1.yaml"
chmod 0755 "$work" "$work/etc" "$work/etc/inventory.d"
mount() { echo "--mount type=bind,src=$1,dst=$2,options=rbind:$3"; }
# ctr adds to its default set of capabilities; what remains must be NET_ADMIN alone.
drop=$(for c in CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE; do echo "--cap-drop CAP_$c"; done)
# This ctr knows no option for the user. So: the specification as ctr makes it, with the default seccomp profile, then the
# user put in.
# shellcheck disable=SC2046,SC2086
ctr --address "$work/c.sock" container create --rootfs --read-only $drop --cap-add CAP_NET_ADMIN --seccomp \
    --with-ns "network:/var/run/netns/$name" --env NODE_NAME=n1 \
    $(mount "$work/run" /run/culvert rw) $(mount "$work/lib" /var/lib/culvert rw) $(mount "$work/etc" /etc/culvert ro) \
    "$target" "$name" /usr/local/bin/culvertd run
ctr --address "$work/c.sock" container info "$name" | python3 -c '
import json, sys
spec = json.load(sys.stdin)["Spec"]
spec["process"]["user"] = {"uid": int(sys.argv[1]), "gid": int(sys.argv[1])}
spec["root"]["path"] = sys.argv[2]
json.dump(spec, sys.stdout)' "$uid" "$target" > "$work/spec.json"
ctr --address "$work/c.sock" container delete "$name"
ctr --address "$work/c.sock" run --detach --log-uri "file://$work/helper.log" --config "$work/spec.json" "$name"
answer=
for _ in $(seq 100); do
    # Any answer will do: without Cilium there is no overlay, and the helper says so.
    answer=$(ctr --address "$work/c.sock" task exec --exec-id "probe$RANDOM" --user "$uid:$uid" "$name" /usr/local/bin/culvertctl ready --live 2>&1) && break
    sleep 0.2
done
[ "$answer" = ok ] || cat "$work/helper.log"
pid=$(ctr --address "$work/c.sock" task list | awk -v name="$name" '$1 == name { print $2 }')
grep -E '^(Uid|Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' "/proc/$pid/status"
echo "the helper answers a probe inside its image: $answer"
[ "$answer" = ok ]
# NET_ADMIN is bit 12, and nothing else may be there.
[ "$(awk '/^CapEff/ { print $2 }' "/proc/$pid/status")" = 0000000000001000 ]
[ "$(awk '/^CapBnd/ { print $2 }' "/proc/$pid/status")" = 0000000000001000 ]
[ "$(awk '/^Seccomp:/ { print $2 }' "/proc/$pid/status")" = 2 ]
[ "$(awk '/^NoNewPrivs/ { print $2 }' "/proc/$pid/status")" = 1 ]
echo "not root, NET_ADMIN alone, no new privileges, seccomp, read-only root: it runs"

#!/usr/bin/env bash
# Installs what building, the lab and the VM need, and builds. Sourced by demo.sh and test.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
packages=(pkg-config gcc libmnl-dev libnftnl-dev libjansson-dev libyaml-dev musl-dev nftables iproute2 iputils-ping curl socat procps
    util-linux kmod clang-16 libbpf-dev busybox-static file python3 python3-pip python3-yaml python3-venv openssl wireguard-go
    wireguard-tools containerd runc containernetworking-plugins podman systemd help2man libcap2-bin)
vm_packages=(qemu-system-x86 linux-image-6.12-amd64)

say() { printf '\n== %s\n' "$*"; }

need_root() {
    [ "$(id -u)" = 0 ] && return 0
    cat >&2 <<'T'
This needs root, because it makes network namespaces, tunnels and firewall rules in them.
Run it again with sudo. Nothing was changed.
T
    exit 1
}

# Runs the script itself again, in a mount namespace where /run is a tmpfs, as it is on every node with systemd: what the helper
# keeps there, and its peers, costs what it costs there. Everything that the script starts is in it.
with_run_on_tmpfs() {
    if [ -n "${CULVERT_RUN_IS_TMPFS:-}" ]; then return; fi
    exec env CULVERT_RUN_IS_TMPFS=1 unshare --mount sh -c \
        'mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns && exec bash "$@"' sh "$@"
}

need_swift() {
    command -v swift > /dev/null && return 0
    echo "Swift 6.3 or later is needed (https://www.swift.org/install/linux). Nothing was changed." >&2
    exit 1
}

install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    say "installing ${missing[*]}"
    apt-get update -qq || true
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /tmp/culvert-apt.log 2>&1; then
        # The kernel of stable may not have the version; any kernel with ipip does.
        tail -5 /tmp/culvert-apt.log >&2
        return 1
    fi
}

# Programs of packages that would start a service when installed: unpacked below .build, and found in PATH.
unpack_packages() {
    local tools=$root/.build/tools package
    mkdir -p "$tools"
    export PATH=$tools/usr/bin:$PATH
    for package in "$@"; do
        [ -e "$tools/$package" ] && continue
        say "unpacking $package"
        (cd "$tools" && { apt-get download -qq "$package" || { apt-get update -qq && apt-get download -qq "$package"; }; } && dpkg -x "$package"_*.deb . && rm -f "$package"_*.deb && touch "$package")
    done
}

install_vm() {
    install_packages "${vm_packages[@]}"
    if ! command -v vng > /dev/null; then
        say "installing virtme-ng"
        pip install -q virtme-ng 2> /dev/null || pip install -q --break-system-packages virtme-ng
    fi
}

vm_kernel() { ls /boot/vmlinuz-6.12* 2> /dev/null | sort -V | tail -n 1; }

# Options of vng: emulated where /dev/kvm does not work.
vm_options() {
    if [ -w /dev/kvm ] && timeout 20 vng -m 1G -r "$(vm_kernel)" --user root -- true > /dev/null 2>&1; then
        echo "-m 4G --cpus 2"
    else
        echo "--disable-kvm -m 4G --cpus 2"
    fi
}

build_bpf() {
    bpf=$1
    clang-16 -O2 -g -target bpf -I"/usr/include/$(gcc -print-multiarch)" -c "$root/Tests/Lab/host_routing.bpf.c" -o "$bpf"
}

#!/usr/bin/env bash
# The demo: three nodes behind a router that drops IPIP, pods on them, one policy; and what the outside host sees.
# Runs in a throw-away VM where this kernel has no IPIP. Needs root and installs what is missing.
source "$(dirname "$0")/prepare.sh"
need_root
need_swift
if [ "${1:-}" != inside ]; then
    install_packages "${packages[@]}"
    cd "$root"
    say "building (some minutes the first time)"
    swift build 2>&1 | grep -E 'error|Build' | tail -n 3
    work=$(mktemp -d /run/culvert-demo.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    export LAB_BIN=$root/.build/debug
    if modprobe ipip 2> /dev/null || [ -d /sys/module/ipip ]; then
        bash "$0" inside
    else
        install_vm
        options=$(vm_options)
        say "this kernel has no IPIP: the demo runs in a VM with $(basename "$(vm_kernel)")"
        case $options in *disable-kvm*) echo "(emulated, as /dev/kvm does not work here: a minute or two)" ;; esac
        # shellcheck disable=SC2086
        timeout 600 vng $options -r "$(vm_kernel)" --user root -- env LAB_BIN="$LAB_BIN" PATH="$PATH" bash "$root/install/demo.sh" inside
    fi
    exit
fi

modprobe -a ipip ip_gre vxlan nf_tables 2> /dev/null || true
P=demo$$ D=/run/culvert-demo-$$
lab=$root/Tests/Lab/lab.sh
mkdir -p "$D"
chmod 755 "$D"
trap '"$lab" down "$P" "$D" 2> /dev/null; rm -rf "$D"' EXIT
say "three nodes (n1, n2, n3), a router that drops IP protocols 4 and 47 between them, an outside host 203.0.113.10"
"$lab" up "$P" "$D"
cat > "$D/inventory/policy.yaml" <<'Y'
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: shop-leaves-by-n3}
spec:
  selectors: [{podSelector: {matchLabels: {app: shop}}}]
  destinationCIDRs: [0.0.0.0/0]
  egressGateway: {nodeSelector: {matchLabels: {zone: z3}}}
Y
cat "$D/inventory/policy.yaml"
for node in n1 n2 n3; do "$lab" helper "$P" "$D" $node; done
say "two pods on n1: shop has the label app=shop, other has not"
"$lab" pod "$P" "$D" n1 shop 10 app:shop > /dev/null
"$lab" pod "$P" "$D" n1 other 11 app:other > /dev/null
for pod in shop other; do
    say "$pod pings the outside host"
    ip netns exec "$P-$pod" ping -c 2 -W 5 203.0.113.10 | grep -E 'bytes from|transmitted'
done
say "what the outside host saw (n1 is 10.0.0.11, the gateway n3 is 10.0.0.13)"
ip netns exec "$P-out" nft list set inet watch pings | grep -oE '[0-9.]+ \. [0-9.]+ counter packets [0-9]+' | sed 's/ \. / -> /'
say "IPIP and GRE packets that the router dropped (they ride inside Cilium's VXLAN, so: none)"
ip netns exec "$P-r" nft list counters | grep -E 'counter|packets' | paste - - | awk '{print $2, $5}'
say "culvertctl status, on n1"
"$LAB_BIN/culvertctl" status --run-dir "$D/n1"
say "culvertctl policies, on the gateway n3"
"$LAB_BIN/culvertctl" policies --run-dir "$D/n3"
say "kernel against plan on n1 (culvertctl diff)"
"$LAB_BIN/culvertctl" diff --run-dir "$D/n1"

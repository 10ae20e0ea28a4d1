#!/usr/bin/env bash
# Makes a Debian package of the programs, with units, manual pages and completions. culvertctl is the helper's program under a
# second name, as in the image (install/image.sh).
#   install/debian.sh DIRECTORY_OF_PROGRAMS [OUTPUT_DIRECTORY]
# Needs dpkg-deb and help2man (Debian's package of that name; HELP2MAN=PROGRAM takes another), and installs nothing. Most of
# its time goes into compressing: DPKG_DEB_COMPRESSOR_TYPE=none makes a package to try out, in a few seconds.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 1 ]; then echo "usage: install/debian.sh DIRECTORY_OF_PROGRAMS [OUTPUT_DIRECTORY]" >&2; exit 2; fi
programs=$(cd "$1" && pwd)
output=${2:-.}
help2man=${HELP2MAN:-help2man}
for program in culvert culvertd; do
    [ -x "$programs/$program" ] || { echo "$programs has no program $program: build it first, or name another directory" >&2; exit 1; }
done
command -v "$help2man" > /dev/null || [ -x "$help2man" ] || { echo "help2man is missing: apt-get install help2man" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/culvert
version=$("$programs/culvertd" --version)

# Without debug information; the plugin is stripped when it is linked.
install -d "$tree/usr/bin" "$tree/usr/lib/culvert" "$tree/usr/share/doc/culvert/examples"
strip --strip-all -o "$tree/usr/bin/culvertd" "$programs/culvertd"
chmod 0755 "$tree/usr/bin/culvertd"
ln -s culvertd "$tree/usr/bin/culvertctl"
install -m 0755 "$programs/culvert" "$tree/usr/lib/culvert/culvert"

install -d "$tree/usr/lib/systemd/system" "$tree/usr/lib/tmpfiles.d" "$tree/usr/lib/sysusers.d"
for unit in culvertd culvert-install; do
    # In a package programs are below /usr/bin, and what no person starts is below /usr/lib.
    sed 's#/usr/local/bin/#/usr/bin/#; s#/usr/local/lib/culvert/#/usr/lib/culvert/#' "$root/install/systemd/$unit.service" > "$tree/usr/lib/systemd/system/$unit.service"
done
install -m 0644 "$root/install/systemd/culvert.tmpfiles.conf" "$tree/usr/lib/tmpfiles.d/culvert.conf"
install -m 0644 "$root/install/systemd/culvert.sysusers.conf" "$tree/usr/lib/sysusers.d/culvert.conf"

install -d "$tree/usr/share/man/man1" "$tree/usr/share/bash-completion/completions" "$tree/usr/share/zsh/vendor-completions" \
    "$tree/usr/share/fish/vendor_completions.d"
# A page for a program, and one for each of its commands, so that `man culvertctl-status` works as with git.
page() { # NAME PROGRAM COMMAND...
    local name=$1 program=$2 about
    shift 2
    mkdir -p "$work/bin"
    # help2man takes the page's name from the program's, and knows a synopsis by "Usage:".
    cat > "$work/bin/$name" <<PROGRAM
#!/bin/sh
case \$1 in --version) echo "$name $version" ;; *) "$program" $* --help | sed 's/^OVERVIEW: //; s/^USAGE: /Usage: /' ;; esac
PROGRAM
    chmod +x "$work/bin/$name"
    about=$("$work/bin/$name" --help | head -n 1)
    "$help2man" --no-info --name "${about:-part of Culvert}" --section 1 --source "Culvert $version" --version-string "$version" \
        "$work/bin/$name" | gzip -9n > "$tree/usr/share/man/man1/$name.1.gz"
}
commands() { "$1" --help | sed -n '/^SUBCOMMANDS:/,$p' | sed -n 's/^  \([a-z][a-z-]*\)\( .*\)\{0,1\}$/\1/p'; }
for program in culvertd culvertctl; do
    file=$tree/usr/bin/$program
    page "$program" "$file"
    for command in $(commands "$file"); do page "$program-$command" "$file" "$command"; done
    "$file" --generate-completion-script bash > "$tree/usr/share/bash-completion/completions/$program"
    "$file" --generate-completion-script zsh > "$tree/usr/share/zsh/vendor-completions/_$program"
    "$file" --generate-completion-script fish > "$tree/usr/share/fish/vendor_completions.d/$program.fish"
done

# The configuration that the units read, with every default; dpkg leaves alone what the administrator makes of it.
install -d "$tree/etc/culvert/inventory.d"
install -m 0644 "$root/install/culvertd.yaml" "$tree/etc/culvert/"
install -m 0644 "$root/install/culvertd.yaml" "$root"/docs/examples/egress-*.yaml "$tree/usr/share/doc/culvert/examples/"
gzip -9n < "$root/CHANGELOG.md" > "$tree/usr/share/doc/culvert/changelog.gz"
install -m 0644 "$root/LICENSE" "$tree/usr/share/doc/culvert/copyright"

install -d "$tree/DEBIAN"
echo /etc/culvert/culvertd.yaml > "$tree/DEBIAN/conffiles"
# What the helper is linked against, by the packages that have these libraries here.
depends=$(ldd "$programs/culvertd" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u | while read -r library; do
    dpkg-query -S "$library" "$(realpath "$library")" "/usr$library" 2> /dev/null | head -n 1 | sed 's/:.*//' || true
done | sort -u | paste -sd, | sed 's/,/, /g')
cat > "$tree/DEBIAN/control" <<CONTROL
Package: culvert
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: The Culvert authors <culvert@example.org>
Depends: ${depends:+$depends, }systemd
Recommends: nftables, iproute2
Section: net
Priority: optional
Installed-Size: $(du -sk "$tree" | cut -f 1)
Description: egress gateways for pods, and a mesh of sites, inside Cilium's overlay
 A CNI plugin, its helper and a command-line tool. Packets of chosen pods leave
 the cluster by chosen nodes, from a pod's first packet on.
 .
 Nothing runs before "systemctl enable --now culvertd culvert-install".
CONTROL
install -m 0755 "$root"/install/debian/{postinst,prerm,postrm} "$tree/DEBIAN/"
mkdir -p "$output"
dpkg-deb --root-owner-group --build "$tree" "$output" > "$work/log" || { cat "$work/log" >&2; exit 1; }
ls "$output/culvert_${version}_"*.deb

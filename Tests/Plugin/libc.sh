#!/usr/bin/env bash
# The plugin is compiled with the system's headers and linked with musl: do both libraries mean the same by what the plugin passes to
# them (layout.c)? Does its memory hold what is put there (memory.c)? And is it a static program?
#   libc.sh PLUGIN
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
plugin=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
machine=$(uname -m)-linux
fail() {
    echo "$*" >&2
    exit 1
}
gcc -c -o "$work/system.o" "$here/layout.c"
gcc -c -nostdinc -isystem "/usr/include/$machine-musl" -idirafter "$(gcc -print-file-name=include)" -idirafter /usr/include \
    -idirafter "/usr/include/$machine-gnu" -o "$work/musl.o" "$here/layout.c"
for libc in system musl; do
    objcopy -O binary --only-section=.rodata "$work/$libc.o" "$work/$libc"
    [ -s "$work/$libc" ] || fail "layout.c has come to nothing"
done
cmp "$work/system" "$work/musl" || fail "the headers of the system and of musl differ: see Tests/Plugin/layout.c"
gcc -O1 -g -fno-builtin -fsanitize=undefined -fno-sanitize-recover -o "$work/memory" "$here/memory.c"
"$work/memory"
[[ $(file -L "$plugin") = *'statically linked'* ]] || fail "$plugin is not a static program"
if grep -aq glibc "$plugin"; then fail "$plugin has glibc in it"; fi
echo "the plugin: $(($(stat -c %s "$work/musl") / 8)) numbers that both C libraries agree on, memory, and a static program without glibc"

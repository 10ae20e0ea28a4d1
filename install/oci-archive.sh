#!/usr/bin/env bash
# Packs a directory as a container image with one layer, without a container engine: an OCI archive, which `ctr images import`
# and `podman load` take.
#   install/oci-archive.sh ROOT FILE NAME:TAG CONFIGURATION
# CONFIGURATION is the JSON object of how the program is started, such as {"Entrypoint":["/bin/program"]}. File capabilities are
# kept. The same directory makes the same archive. The layer is not compressed; who pushes it to a registry compresses it.
set -euo pipefail
if [ $# -ne 4 ]; then echo "usage: install/oci-archive.sh ROOT FILE NAME:TAG CONFIGURATION" >&2; exit 2; fi
root=$1 file=$2 name=$3 configuration=$4
layout=$(mktemp -d)
trap 'rm -rf "$layout"' EXIT
mkdir -p "$layout/blobs/sha256"

# blob FILE MEDIA_TYPE: moves a file among the blobs, and prints its descriptor without the closing brace.
blob() {
    local digest size
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    size=$(stat -c %s "$1")
    mv "$1" "$layout/blobs/sha256/$digest"
    printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s' "$2" "$digest" "$size"
}
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime "$@"; }

pack --xattrs --xattrs-include=security.capability -C "$root" -cf "$layout/part" .
layer=$(blob "$layout/part" layer.v1.tar)
digest=$(sed 's/.*"digest":"\([^"]*\)".*/\1/' <<< "$layer")
printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
    "$(dpkg --print-architecture)" "$configuration" "$digest" > "$layout/part"
config=$(blob "$layout/part" config.v1+json)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s},"layers":[%s}]}' "$config" "$layer" > "$layout/part"
manifest=$(blob "$layout/part" manifest.v1+json)
# containerd reads the first annotation, the others the second.
printf '{"schemaVersion":2,"manifests":[%s,"annotations":{"io.containerd.image.name":"docker.io/library/%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$name" "$name" > "$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"
pack -C "$layout" -cf "$file" oci-layout index.json blobs

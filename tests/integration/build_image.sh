#!/usr/bin/env bash
# Build the Dockerfile with buildah on a base of this machine's own making, and run the digits in it, on a small
# budget, as the image's user. As root, with Debian's buildah and debootstrap; takes 15 GB of disk in FOLDER.
#   tests/integration/build_image.sh FOLDER
set -euo pipefail

source="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
folder="$1"
mkdir -p "$folder"
buildah() { command buildah --storage-driver=vfs --root="$folder/images" --runroot="$folder/run" "$@"; }
export BUILDAH_ISOLATION=chroot

[ -d "$folder/base" ] || debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/base"
base="$(buildah from scratch)"
buildah add -q "$base" "$folder/base" /
# What this machine's pip needs to find packages, the image's needs too.
for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$file" ] || buildah add -q "$base" "$file" "$file"
done
buildah commit -q --rm "$base" localhost/base

buildah bud --build-arg=BASE_IMAGE=localhost/base --tag=hkdpipe "$source"
made="$(buildah from localhost/hkdpipe)"
buildah run "$made" -- hkdpipe run --preset digits --run-dir runs/digits --set generation.count=1024 \
    --set generation.shard_size=256 --set training.budget=3200 --set training.validation=64 --set evaluation.samples=256
buildah run "$made" -- hkdpipe sample --model runs/digits/export --count 4 --out samples
buildah run "$made" -- sh -c 'id --user; ls runs/digits samples'
buildah rm "$made"

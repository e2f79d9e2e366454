#!/usr/bin/env bash
# Builds the image that is shipped and the one the scenarios run the other parts in, and prints their names; all else goes to stderr.
#
#     integration/containers.sh FOLDER [NAME]     FOLDER holds fake-venus, fake-localsettings and venus-mqtt (a build directory)
#
# The base is Debian bookworm: pulled where a registry can be reached, else made from Debian's packages. It, the layer with the
# bus and the broker, and the one with systemd are kept for the next run: `docker rmi venus-mqtt-{base,parts,systemd}:bookworm`.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
binaries=${1:?the folder with fake-venus, fake-localsettings and venus-mqtt}
name=${2:-venus-mqtt-test:by-hand}
base=venus-mqtt-base:bookworm
parts=venus-mqtt-parts:bookworm
systemd=venus-mqtt-systemd:bookworm

say() { echo "containers: $*" >&2; }

make_base() {
    if timeout 60 docker pull -q debian:bookworm-slim >/dev/null 2>&1; then
        say "base image: debian:bookworm-slim from the registry"
        docker tag debian:bookworm-slim "$base"
        return
    fi
    command -v mmdebstrap >/dev/null || { say "no registry, and no mmdebstrap to make a base image with (apt-get install mmdebstrap)"; exit 1; }
    say "no registry: making a base image of Debian bookworm with mmdebstrap"
    local tar
    tar=$(mktemp --suffix=.tar)
    mmdebstrap --quiet --variant=apt bookworm "$tar" >&2
    docker import "$tar" "$base" >&2
    rm -f "$tar"
}

docker image inspect "$base" >/dev/null 2>&1 || make_base
# layer BASE NAME FILE: one that is made once
layer() {
    docker image inspect "$2" >/dev/null 2>&1 && return
    say "making $2"
    docker build -q --build-arg BASE="$1" -t "$2" -f "$here/containers/$3" "$here/containers" >&2
}
layer "$base" "$parts" Dockerfile.parts
layer "$parts" "$systemd" Dockerfile.systemd

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
# without their symbols: a tenth of the size
for binary in fake-venus fake-localsettings venus-mqtt; do
    [ -x "$binaries/$binary" ] || { say "no $binary in $binaries: cargo build --workspace first"; exit 1; }
    objcopy --strip-debug "$binaries/$binary" "$context/$binary" 2>/dev/null || cp "$binaries/$binary" "$context/$binary"
done
docker build -q --build-arg BASE="$parts" -t "$name-parts" -f "$here/containers/Dockerfile" "$context" >&2
docker build -q --build-arg BASE="$base" --build-arg BINARY=venus-mqtt -t "$name" -f "$here/../Containerfile" "$context" >&2
if ! docker run --rm "$name" --version >&2; then
    say "venus-mqtt does not run in Debian bookworm: it was built against a newer glibc than 2.36"
    exit 1
fi
echo "$name $name-parts"

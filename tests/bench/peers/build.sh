#!/usr/bin/env bash
# The rate-limit service that the bench measures Sluice against, envoyproxy/ratelimit, built by Go from the module in this
# folder. Prints the folder that holds it; with --find only if it is built.
#
# What is built stays outside the checkout, under a name made of everything it was built from, as the control plane of
# tests/kube-assets does. A first build takes under a minute on two cores.
set -euo pipefail

cd "$(dirname "$0")"
inputs=(build.sh go.mod go.sum)
key=$(cat "${inputs[@]}" | sha256sum | cut -c1-16)-$(uname -s)-$(uname -m)
folder=${XDG_CACHE_HOME:-${HOME:?}/.cache}/sluice/bench-peers/$key
if [ -d "$folder" ]; then
    echo "$folder"
    exit
fi

if [ "${1:-}" = --find ]; then
    echo "The peer of the bench is not built yet: make bench-peers" >&2
    exit 1
fi

if ! command -v go > /dev/null; then
    echo "The peer of the bench is a program in Go, and there is no Go to build it from tests/bench/peers/go.mod: install Go 1.25.6 or later." >&2
    exit 1
fi

echo "Building envoyproxy/ratelimit for the bench, once: this takes a minute." >&2
mkdir -p "$(dirname "$folder")"
unfinished=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT

export CGO_ENABLED=0 GOWORK=off
go build -buildvcs=false -trimpath -ldflags "-s -w" -o "$unfinished/ratelimit" github.com/envoyproxy/ratelimit/src/service_cmd

chmod 755 "$unfinished"
mv -T "$unfinished" "$folder" 2> /dev/null || [ -x "$folder/ratelimit" ] # another build was first
echo "$folder"

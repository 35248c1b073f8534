#!/usr/bin/env bash
# The control plane that the operator's tests run: kube-apiserver, kube-controller-manager, kubectl and etcd, built by Go from
# the modules in this folder. Prints the folder that holds them; with --find only if they are built.
#
# What is built stays outside the checkout, under a name made of everything it was built from, so that another clone, and this
# one after `make clean`, finds it there. A first build takes six to ten minutes on two cores, and Go's caches 4 GB.
set -euo pipefail

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    for program in etcd kube-apiserver kubectl; do
        if [ ! -x "$KUBEBUILDER_ASSETS/$program" ]; then
            echo "KUBEBUILDER_ASSETS names $KUBEBUILDER_ASSETS, and there is no $program: setup-envtest can fetch it; or unset the variable, and Go builds it." >&2
            exit 1
        fi
    done
    cd "$KUBEBUILDER_ASSETS" && pwd
    exit
fi

cd "$(dirname "$0")"
inputs=(build.sh go.mod go.sum etcd/go.mod etcd/go.sum)
key=$(cat "${inputs[@]}" | sha256sum | cut -c1-16)-$(uname -s)-$(uname -m)
folder=${XDG_CACHE_HOME:-${HOME:?}/.cache}/sluice/kube-assets/$key
if [ -d "$folder" ]; then
    echo "$folder"
    exit
fi

if [ "${1:-}" = --find ]; then
    echo "The Kubernetes control plane for the tests is not built yet: make kube-assets" >&2
    exit 1
fi

if ! command -v go > /dev/null; then
    echo "The operator's tests need a kube-apiserver, and there is no Go to build one from tests/kube-assets/go.mod: install Go 1.25 or later, or let KUBEBUILDER_ASSETS name a folder with kube-apiserver, etcd and kubectl (setup-envtest fetches them)." >&2
    exit 1
fi

echo "Building a Kubernetes control plane for the tests, once: this takes some minutes." >&2
mkdir -p "$(dirname "$folder")"
unfinished=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT

export CGO_ENABLED=0 GOWORK=off

# What the API server says it is: clients compare it with what they know.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
stamp=k8s.io/component-base/version
flags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=${minor%%.*} -X $stamp.gitTreeState=clean -X $stamp.buildDate=1970-01-01T00:00:00Z"

go build -buildvcs=false -trimpath -ldflags "$flags" -o "$unfinished/" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kubectl}
(cd etcd && go build -buildvcs=false -trimpath -ldflags "-s -w" -o "$unfinished/etcd" go.etcd.io/etcd/server/v3)

chmod 755 "$unfinished"
mv -T "$unfinished" "$folder" 2> /dev/null || [ -x "$folder/etcd" ] # another build was first
echo "$folder"

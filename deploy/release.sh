#!/bin/sh
# Builds the archives of a release into a directory (dist): for each kind of machine one, with the four programs, units, examples and
# documentation, and SHA256SUMS. The same commit with the same Go makes the same bytes, wherever and whenever: no path, name, time or
# umask of the machine is in them. `make release` runs it.
#
#   deploy/release.sh [DIR]       ARCHES='amd64 arm64' VERSION=…
set -eu
umask 022
cd "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/.."
dist=${1:-dist}
go=${GO:-go}
version=${VERSION:-$(git describe --tags --always)}
commit=$(git rev-parse HEAD)
date=$(git log -1 --format=%ct)

# What the archives say they are made of must be what they are made of.
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
  echo "release: there are changes that are not committed" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dist"
rm -f "$dist"/ctfleet-*.tar.gz "$dist/SHA256SUMS"

for arch in ${ARCHES:-amd64 arm64}; do
  name=ctfleet-$version-linux-$arch
  tree=$work/$name
  mkdir -p "$tree/bin"
  git archive --format=tar "$commit" README.md CHANGELOG.md SECURITY.md LICENSE docs deploy | tar -x -C "$tree"
  # What only a checkout can use.
  find "$tree" -name '*_test.go' -delete
  rm -f "$tree/deploy/smoke.sh" "$tree/deploy/release.sh" "$tree/deploy/systemd/smoke.sh"
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 GOFLAGS=-mod=readonly "$go" build -trimpath -buildvcs=false \
    -ldflags "-s -w -buildid= -X github.com/ctfleet/ctfleet/internal/daemon.Version=$version -X github.com/ctfleet/ctfleet/internal/daemon.Commit=$commit" \
    -o "$tree/bin/" ./cmd/...
  tar -c -C "$work" --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$date" --mode='u+rwX,go+rX,go-w' "$name" | gzip -n -6 >"$dist/$name.tar.gz"
done
(cd "$dist" && sha256sum ctfleet-*.tar.gz | tee SHA256SUMS)

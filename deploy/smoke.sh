#!/usr/bin/env bash
# Brings the compose files up on a real engine and counts the flows that the producer's container sees, to the last one.
#
# Root, dockerd and docker-compose are needed; a registry is not, nor does a running engine notice: this one is started here,
# in a network namespace of its own, and that is the "host" that the producer watches. The build image is made of this
# machine's Go and its downloaded modules, the NATS image of the module's server and busybox.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo 'smoke: root is needed'; exit 1; }
for tool in go dockerd docker docker-compose ip nft nsenter python3 busybox; do
  command -v "$tool" >/dev/null || { echo "smoke: $tool is needed (Debian: docker.io docker-compose iproute2 nftables util-linux busybox-static)"; exit 1; }
done

flows=1000
source=198.18.0.7 destination=198.18.0.8

work=$(mktemp -d)
netns=ctfleet-smoke-$$
engine=
export DOCKER_HOST=unix://$work/docker.sock
export DOCKER_BUILDKIT=0 COMPOSE_PROJECT_NAME=ctfleet-smoke
export CTFLEET_HTTP_TOKEN_FILE=$work/http-token
export CTFLEET_IMAGE=ctfleet:smoke NATS_IMAGE=nats:smoke CTFLEET_NAME=fw-smoke

say() { printf -- '--- %s (%d s)\n' "$*" "$SECONDS"; }
centre() { docker-compose "$@"; }
firewall() { docker-compose -p ctfleet-smoke-fw -f deploy/compose.firewall.yml "$@"; }
ask() { centre exec -T aggregator ctfleet "$@"; }
here() { nsenter --net="/run/netns/$netns" "$@"; }

cleanup() {
  local code=$?
  set +e
  if [ -n "$engine" ]; then
    if [ $code -ne 0 ]; then
      { centre ps; centre logs --tail=30; firewall logs --tail=30; tail -n 20 "$work/dockerd.log"; } 2>&1
    fi
    { firewall down -v -t 5; centre down -v -t 5; } >/dev/null 2>&1
    kill "$engine"
    wait "$engine"
  fi
  umount -q "$work"/exec/netns/* "$work/data" 2>/dev/null
  [ -e "/run/netns/$netns" ] && ip netns del "$netns"
  chmod -R u+w "$work/modules" 2>/dev/null # the module cache is read-only
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say 'an engine of our own'
ip netns add "$netns"
here ip link set lo up
echo '{}' >"$work/daemon.json"
# Not `ip netns exec`, which would hide the cgroups under a /sys of its own; and not `here`, whose process would be a shell.
nsenter --net="/run/netns/$netns" dockerd --config-file "$work/daemon.json" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
  -H "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 &
engine=$!
for _ in $(seq 60); do
  docker version >/dev/null 2>&1 && break
  kill -0 "$engine" || { cat "$work/dockerd.log"; exit 1; }
  sleep 0.5
done
docker version -f 'engine {{.Server.Version}}'

say 'the base images'
busybox=$(command -v busybox)
mkdir -p "$work/root/bin" "$work/root/tmp" "$work/root/etc/ssl/certs"
cp "$busybox" "$work/root/bin/"
for tool in sh mkdir cp wget; do ln -s busybox "$work/root/bin/$tool"; done
# What go.mod names, from what has been downloaded already.
cache=$(go env GOMODCACHE)
GOMODCACHE=$work/modules GOPROXY=file://$cache/cache/download GOSUMDB=off GOFLAGS=-modcacherw go mod download
go_root=$(go env GOROOT)
go_name=$(basename "$go_root")
tar -c -C "$work/root" . -C "$work" modules -C "$(dirname "$go_root")" --exclude="$go_name/test" --exclude="$go_name/api" \
    --transform "s,^$go_name/,usr/local/go/," "$go_name" |
  docker import -c 'ENV PATH=/usr/local/go/bin:/bin GOMODCACHE=/modules GOPROXY=off GOSUMDB=off GOCACHE=/tmp/go GOTOOLCHAIN=local' - toolchain:smoke >/dev/null
mkdir -p "$work/nats/usr/local/bin" "$work/nats/bin"
CGO_ENABLED=0 go build -o "$work/nats/usr/local/bin/nats-server" github.com/nats-io/nats-server/v2
cp -a "$work"/root/bin/{busybox,wget} "$work/nats/bin/"
tar -c -C "$work/nats" . | docker import -c 'ENTRYPOINT ["/usr/local/bin/nats-server"]' -c 'ENV PATH=/usr/local/bin:/bin' - "$NATS_IMAGE" >/dev/null

say 'the image'
docker build -q --network none --build-arg BUILD_IMAGE=toolchain:smoke --build-arg VERSION=smoke -t "$CTFLEET_IMAGE" .
docker image inspect -f 'image of {{.Size}} bytes' "$CTFLEET_IMAGE"

say 'the centre'
install -m 640 -g 65532 <(head -c 24 /dev/urandom | base64) "$CTFLEET_HTTP_TOKEN_FILE"
centre up -d --no-build
say 'a firewall'
here nft -f - <<'NFT'
table inet smoke {
  chain track {
    type filter hook prerouting priority 0
    ct state new counter
  }
}
NFT
firewall run --rm producer producer --check --name "$CTFLEET_NAME"
firewall up -d --no-build

python_json() { python3 -c "import json,sys; d=json.load(sys.stdin); $1"; }
until [ "$(ask firewalls list -o json | python_json 'print(*[f["state"] for f in d["firewalls"]])')" = fresh ]; do
  [ "$SECONDS" -lt 600 ] || { echo 'the firewall never appeared at the centre'; exit 1; }
  sleep 0.5
done

say "$flows flows"
here ip address add "$source/32" dev lo
here ip address add "$destination/32" dev lo
here python3 - "$source" "$destination" "$flows" <<'PY'
import socket, sys
source, destination, flows = sys.argv[1], sys.argv[2], int(sys.argv[3])
for i in range(flows):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((source, 20000 + i))
        s.sendto(b"x", (destination, 9))
PY
count() { ask top --by "$1" --metric new --window 60s --once -o json | python_json "print(sum(r['value'] for r in d['rows'] if r['key'] == '$2'))"; }
for _ in $(seq 20); do
  [ "$(count src "$source")" = "$flows" ] && break
  sleep 0.5
done
sleep 1 # nothing may come on top
src=$(count src "$source") dst=$(count dst "$destination")
lost=$(ask firewalls list -o json | python_json 'print(sum(f["lost"] + f["missing"] for f in d["firewalls"]))')
echo "counted $src by source, $dst by destination, lost $lost"
[ "$src" = "$flows" ] && [ "$dst" = "$flows" ] && [ "$lost" = 0 ] || { echo "want $flows, $flows and 0"; exit 1; }

api() { # TOKEN: the status of an answer
  here python3 - "$1" <<'PY'
import sys, urllib.error, urllib.request
request = urllib.request.Request("http://127.0.0.1:8080/api/v1/firewalls", headers={"Authorization": "Bearer " + sys.argv[1]})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as e:
    print(e.code)
PY
}
say 'rights'
rights() { # CONTAINER: uid and effective capabilities
  local pid
  pid=$(docker inspect -f '{{.State.Pid}}' "$1")
  awk '/^Uid:/ { uid = $3 } /^CapEff:/ { cap = $2 } END { print uid, cap }' "/proc/$pid/status"
}
expect() { [ "$2" = "$3" ] || { echo "$1: $2, want $3"; exit 1; }; }
expect 'uid and capabilities of the producer' "$(rights "$(firewall ps -q producer)")" '0 0000000000001000' # NET_ADMIN
for role in aggregator responder; do
  expect "uid and capabilities of the $role" "$(rights "$(centre ps -q $role)")" '65532 0000000000000000'
done

say 'who may use the API'
expect 'status with the token' "$(api "$(cat "$CTFLEET_HTTP_TOKEN_FILE")")" 200
expect 'status with another' "$(api wrong)" 401

say 'a clean stop'
producer=$(firewall ps -q producer) aggregator=$(centre ps -q aggregator) responder=$(centre ps -q responder)
firewall stop
expect 'state of the stopped firewall' "$(ask firewalls list -o json | python_json 'print(*[f["state"] for f in d["firewalls"]])')" stopped
centre stop aggregator responder
for id in $producer $aggregator $responder; do
  expect "exit code of $(docker inspect -f '{{.Name}}' "$id")" "$(docker inspect -f '{{.State.ExitCode}}' "$id")" 0
done
say ok

#!/usr/bin/env bash
# Brings the compose files up on a real engine, as they are, and does with them what an operator does.
#
# Root, dockerd and docker-compose are needed; a registry is not, nor does a running engine notice: this one is started here,
# in a network namespace of its own, and that is the "host" that the agent watches. Images that would be pulled are made here,
# under the same tags: the build image of this machine's Go and its downloaded modules, NATS of the module's server and
# busybox, Prometheus and Alertmanager of Debian's programs. Grafana is none: its stand-in only shows that the files are mounted.
#
# COMPOSE='docker compose' deploy/smoke.sh does the same with Compose v2. The first run compiles the dependencies, which
# takes minutes; they are kept in CTFLEET_SMOKE_CACHE.
set -euo pipefail
cd "$(dirname "$0")/.."

# A step that hangs must not keep CI waiting.
if [ -z "${CTFLEET_SMOKE_LIMITED:-}" ]; then
  exec env CTFLEET_SMOKE_LIMITED=1 timeout -k 60 1200 deploy/smoke.sh "$@"
fi

[ "$(id -u)" = 0 ] || { echo 'smoke: root is needed'; exit 1; }
read -ra compose <<<"${COMPOSE:-docker-compose}"
for tool in go dockerd docker "${compose[0]}" ip nft nsenter python3 busybox prometheus prometheus-alertmanager; do
  command -v "$tool" >/dev/null || { echo "smoke: $tool is needed (Debian: docker.io docker-compose iproute2 nftables util-linux busybox-static prometheus prometheus-alertmanager)"; exit 1; }
done

flows=1000
work=$(mktemp -d)
netns=ctfleet-smoke-$$
cache=${CTFLEET_SMOKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ctfleet-smoke}
engine=
unset "${!CTFLEET_@}" "${!NATS_@}" COMPOSE_FILE COMPOSE_PROFILES
export DOCKER_HOST=unix://$work/docker.sock
export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0 COMPOSE_PROJECT_NAME=ctfleet-smoke
export CTFLEET_VERSION=v0.0.0-smoke CTFLEET_COMMIT=0123456789abcdef0123456789abcdef01234567
export CTFLEET_CONFIG_DIR=$work/config CTFLEET_KEYS=$work/fw-smoke CTFLEET_ATTACK_EVERY=15s

say() { printf -- '--- %s (%d s)\n' "$*" "$SECONDS"; }
fail() { echo "smoke: FAILED: $*" >&2; exit 1; }
centre() { "${compose[@]}" "$@"; }
cluster() { "${compose[@]}" -p ctfleet-smoke-cluster --env-file deploy/cluster.env "$@"; }
firewall() { "${compose[@]}" -p ctfleet-smoke-fw -f deploy/agent/compose.yml "$@"; }
here() { nsenter --net="/run/netns/$netns" "$@"; }
id_of() { centre ps -q "$1"; }
has() { grep "$@" >/dev/null; } # not -q, which stops reading: who still writes would fail
expect() { [ "$2" = "$3" ] || fail "$1: $2, want $3"; }

# await SECONDS WHAT COMMAND...: until it succeeds.
await() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >"$work/await" 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { tail -n 5 "$work/await"; fail "waited in vain: $what"; }
    sleep 0.3
  done
}


cleanup() {
  local code=$?
  trap '' INT TERM
  trap - ERR
  set +e
  if [ -n "$engine" ]; then
    if [ $code -ne 0 ]; then
      export COMPOSE_PROFILES=demo,monitoring
      { centre ps; centre logs --tail=15; firewall logs --tail=20; cluster ps; cluster logs --tail=10 nats nats-2 bootstrap; tail -n 20 "$work/dockerd.log"; } 2>&1
    fi
    docker ps -aq | xargs -r docker rm -fv >/dev/null 2>&1
    kill "$engine"
    wait "$engine"
  fi
  umount -q "$work"/exec/netns/* "$work/data" 2>/dev/null
  [ -e "/run/netns/$netns" ] && ip netns del "$netns"
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT
set -E
trap 'echo "smoke: FAILED in line $LINENO: $BASH_COMMAND" >&2' ERR
trap 'exit 130' INT TERM

say 'an engine of our own'
ip netns add "$netns"
here ip link set lo up
echo '{}' >"$work/daemon.json"
# Not `ip netns exec`, which would hide the cgroups under a /sys of its own; and not `here`, whose process would be a shell.
nsenter --net="/run/netns/$netns" dockerd --config-file "$work/daemon.json" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
  -H "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 &
engine=$!
await 60 'the engine' docker version
docker version -f 'engine {{.Server.Version}}, client {{.Client.Version}}'
centre version | sed -n 1p

say 'stand-ins for the images that would be pulled'
tag() { # VARIABLE: the default of a variable in a shipped file
  grep -ohE "(\\\$\{$1:-|ARG $1=)[^}]+" Dockerfile docker-compose.yml | sed -n 1p | sed -E 's/.*(:-|=)//'
}
# put ROOT PROGRAM PATH: a program, and the libraries that it asks for.
put() {
  mkdir -p "$1$(dirname "$3")"
  cp "$2" "$1$3"
  ldd "$2" 2>/dev/null | grep -oE '/[^ ]+' | while read -r lib; do
    mkdir -p "$1$(dirname "$lib")"
    cp -L "$lib" "$1$lib"
  done
}
busybox=$(command -v busybox)
root=$work/toolchain
mkdir -p "$root"/{bin,tmp,etc/ssl/certs}
cp "$busybox" "$root/bin/"
for tool in sh mkdir cp chmod find touch; do ln -s busybox "$root/bin/$tool"; done
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"; fi
# What go.mod names, from what has been downloaded already; and the dependencies compiled, but nothing of our own.
proxy=file://$(go env GOMODCACHE)/cache/download
GOMODCACHE=$cache/modules GOPROXY=$proxy GOSUMDB=off GOFLAGS=-modcacherw go mod download
export CGO_ENABLED=0
go list -deps ./cmd/... | grep -v '^github.com/ctfleet/' | GOCACHE=$cache/gocache xargs go build -trimpath -buildvcs=false
go_root=$(go env GOROOT)
go_name=$(basename "$go_root")
tar -c -C "$root" . -C "$cache" modules gocache -C "$(dirname "$go_root")" --exclude="$go_name/test" --exclude="$go_name/api" \
    --transform "s,^$go_name/,usr/local/go/," "$go_name" |
  docker import -c 'ENV PATH=/usr/local/go/bin:/bin GOMODCACHE=/modules GOPROXY=off GOSUMDB=off GOCACHE=/gocache GOTOOLCHAIN=local' - "$(tag BUILD_IMAGE)" >/dev/null

mkdir -p "$work/nats/bin"
go build -o "$work/nats/usr/local/bin/nats-server" github.com/nats-io/nats-server/v2
cp "$busybox" "$work/nats/bin/"
ln -s busybox "$work/nats/bin/wget"
tar -c -C "$work/nats" . | docker import -c 'ENTRYPOINT ["/usr/local/bin/nats-server"]' -c 'ENV PATH=/usr/local/bin:/bin' - "$(tag NATS_IMAGE)" >/dev/null
for name in prometheus alertmanager; do
  put "$work/$name" "$(command -v prometheus-$name || command -v $name)" "/bin/$name"
  mkdir -p "$work/$name/$name" "$work/$name/tmp" "$work/$name/usr/share"
  cp -r /usr/share/prometheus "$work/$name/usr/share/" # Debian's Alertmanager looks for its templates there
  chown 65534:65534 "$work/$name/$name"
  tar -c -C "$work/$name" . | docker import -c "ENTRYPOINT [\"/bin/$name\"]" - "$(tag "${name^^}_IMAGE")" >/dev/null
done
mkdir -p "$work/grafana/bin" "$work/grafana/var/lib/grafana" "$work/grafana/tmp"
cp "$busybox" "$work/grafana/bin/"
ln -s busybox "$work/grafana/bin/sh"
chown 472:0 "$work/grafana/var/lib/grafana"
tar -c -C "$work/grafana" . | docker import -c 'ENTRYPOINT ["/bin/sh", "-c", "busybox touch /var/lib/grafana/here && exec busybox sleep 3600"]' - "$(tag GRAFANA_IMAGE)" >/dev/null

say 'up, with nothing prepared'
mkdir "$work/config"
cp deploy/rules.yaml deploy/policy.yaml "$work/config/"
centre up -d
docker image inspect -f 'the centre: image of {{.Size}} bytes' ctfleet:latest
centre run --rm ctfleet firewalls list

say 'a firewall'
centre run --rm auth add-firewall fw-smoke
docker cp "$(centre ps -aq init)":/keys/firewalls/fw-smoke "$CTFLEET_KEYS"
docker cp "$(centre ps -aq init)":/keys/operator "$work/operator"
here nft -f - <<'NFT'
table inet smoke {
  chain track {
    type filter hook prerouting priority 0
    ct state new counter
  }
}
NFT
firewall build -q
size=$(docker image inspect -f '{{.Size}}' ctfleet-producer:latest)
echo "the producer: image of $size bytes"
[ "$size" -lt 25000000 ] || fail "the producer's image is larger than 25 MB"
firewall run --rm producer --config /etc/ctfleet/producer.yaml --check
firewall up -d

say 'the same programs from another build'
ldflags="-s -w -X github.com/ctfleet/ctfleet/internal/daemon.Version=$CTFLEET_VERSION -X github.com/ctfleet/ctfleet/internal/daemon.Commit=$CTFLEET_COMMIT"
mkdir "$work/bin" "$work/image"
go build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$work/bin/" ./cmd/...
docker cp "$(id_of aggregator)":/usr/local/bin/. "$work/image/"
docker cp "$(firewall ps -q producer)":/usr/local/bin/. "$work/image/"
(cd "$work/bin" && sha256sum -- *) >"$work/sums"
(cd "$work/image" && sha256sum --quiet -c ../sums) || fail 'two builds of the same source differ'
for program in producer aggregator responder ctfleet; do
  expect "$program --version" "$("$work/image/$program" --version)" "$CTFLEET_VERSION (commit $CTFLEET_COMMIT)"
done
expect 'the label of the commit' "$(docker image inspect -f '{{index .Config.Labels "org.opencontainers.image.revision"}}' ctfleet-producer:latest)" "$CTFLEET_COMMIT"
expect 'programs in the image of the producer' "$(docker export "$(firewall ps -q producer)" | tar -t | grep -v '/$' | grep -vE '^(dev|proc|sys|etc)/|^\.dockerenv' | tr '\n' ' ')" 'usr/local/bin/producer '

# BuildKit, where a client has it: Docker's own of 20.10, or buildx.
layers() { docker image inspect -f '{{json .RootFS.Layers}}' "$1"; }
buildkit=
for client in docker /usr/bin/docker; do
  if "$client" buildx version >/dev/null 2>&1 || "$client" --version | has 'version 20\.'; then buildkit=$client; fi
done
if [ -n "$buildkit" ]; then
  say 'the same layers from BuildKit'
  DOCKER_BUILDKIT=1 "$buildkit" build -q --target producer --build-arg VERSION="$CTFLEET_VERSION" --build-arg COMMIT="$CTFLEET_COMMIT" -t producer:buildkit . >"$work/buildkit" 2>&1 ||
    { cat "$work/buildkit"; fail 'BuildKit does not build the image'; }
  expect 'layers of the producer' "$(layers producer:buildkit)" "$(layers ctfleet-producer:latest)"
else
  echo 'not tried: no client here speaks BuildKit'
fi

# As an operator from elsewhere: the programs of the image, and a copy of the directory.
as() { # ROLE-DIRECTORY ARGUMENT...
  local dir=$work/$1
  shift
  here env NATS_URL=tls://localhost:4222 NATS_NKEY="$dir/nats.nk" NATS_CA="$dir/ca.pem" NATS_CERT="$dir/cert.pem" NATS_KEY="$dir/key.pem" \
    CTFLEET_SIGN_KEY="$dir/sign.nk" CTFLEET_TRUST="$dir/trust.yaml" timeout 20 "$work/image/ctfleet" "$@"
}
ask() { as operator "$@"; }
python_json() { python3 -c "import json,sys; d=json.load(sys.stdin); $1"; }
state() { ask firewalls list -o json | python_json "print(*[f['state'] for f in d['firewalls'] if f['firewall'] == '$1'])"; }
is() { [ "$(state "$1")" = "$2" ]; }
counted() { ask top --by "$1" --metric new --window 60s --limit 1000 --once -o json | python_json "print(sum(r['value'] for r in d['rows'] if r['key'] == '$2'))"; }
counts() { [ "$(counted "$1" "$2")" = "$3" ]; }

# send SOURCE DESTINATION FLOWS: past the agent, each a flow of its own.
send() {
  here ip address replace "$1/32" dev lo
  here ip address replace "$2/32" dev lo
  here python3 - "$1" "$2" "$3" <<'PY'
import socket, sys
source, destination, flows = sys.argv[1], sys.argv[2], int(sys.argv[3])
for i in range(flows):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((source, 20000 + i))
        s.sendto(b"x", (destination, 9))
PY
}

say "$flows flows"
await 30 'the firewall at the centre' is fw-smoke fresh
source=198.18.0.7 destination=198.18.0.8
[ "$(date +%S)" -lt 57 ] || sleep 4 # in one minute of the history
send "$source" "$destination" "$flows"
minute=$(date -u +'%Y-%m-%dT%H:%M:00Z')
await 10 "$flows flows of $source" counts src "$source" "$flows"
sleep 1 # nothing may come on top
src=$(counted src "$source") dst=$(counted dst "$destination")
lost=$(ask firewalls list -o json | python_json 'print(sum(f["lost"] + f["missing"] for f in d["firewalls"]))')
echo "counted $src by source, $dst by destination, lost $lost"
[ "$src" = "$flows" ] && [ "$dst" = "$flows" ] && [ "$lost" = 0 ] || fail "want $flows, $flows and 0"

say 'the demo, and who watches'
export COMPOSE_PROFILES=demo,monitoring CTFLEET_ALERTMANAGER=http://alertmanager:9093
centre up -d
for fw in fw-a fw-b fw-c; do await 30 "$fw at the centre" is "$fw" fresh; done

say 'the attack, the alert, and what would have been done'
fired() { ask alerts list -o json | has '"key":"198\.18\.66\.'; }
await 40 'the alert about the attacker' fired
decided() { ask audit list -o json | has "\"outcome\":\"$1\""; }
await 10 'the decision that is only recorded' decided simulated
audit=$(ask audit list -o json)
has '"receipt":' <<<"$audit" && fail 'something was deleted in mode observe'
get() { here python3 -c 'import sys,urllib.request as u; r=u.Request(sys.argv[1], headers=dict(h.split(": ",1) for h in sys.argv[2:])); print(u.urlopen(r, timeout=5).read().decode())' "$@"; }
token=$(docker cp "$(id_of aggregator)":/keys/aggregator/http-token - | tar -xO)
said=$(get http://127.0.0.1:8080/api/v1/firewalls 2>&1) && fail 'the API is served without the token'
has '401' <<<"$said" || fail "the API without the token: $said"
get http://127.0.0.1:8080/api/v1/firewalls "Authorization: Bearer $token" | has fw-smoke || fail 'the API does not show the firewall'
told() { get http://127.0.0.1:9093/api/v2/alerts | has new-flows-by-source; }
await 30 'Alertmanager to be told' told
scraped() { get 'http://127.0.0.1:9090/api/v1/query?query=sum(up)' | has '"5"'; } # aggregator, responder, three producers
await 45 'Prometheus to scrape all five' scraped
get http://127.0.0.1:9090/api/v1/rules | has CtfleetTableAbove95 || fail 'Prometheus has no rules'
for file in /etc/grafana/provisioning/datasources/ctfleet.yml /etc/grafana/provisioning/dashboards/ctfleet.yml /etc/grafana/dashboards/ctfleet.json; do
  docker exec "$(id_of grafana)" /bin/busybox cat "$file" >/dev/null || fail "grafana does not find $file"
done

say 'rights'
rights() { # CONTAINER: uid, effective capabilities, whether it may gain others
  awk '/^Uid:/ { uid = $3 } /^CapEff:/ { cap = $2 } /^NoNewPrivs:/ { no = $2 } END { print uid, cap, no }' "/proc/$(docker inspect -f '{{.State.Pid}}' "$1")/status"
}
expect 'uid and capabilities of the agent' "$(rights "$(firewall ps -q producer)")" '0 0000000000001000 1' # NET_ADMIN
expect 'uid and capabilities of a producer of the demo' "$(rights "$(id_of producer-a)")" '0 0000000000001000 1'
expect 'uid and capabilities of a firewall of the demo' "$(rights "$(id_of fw-a)")" '0 0000000000003000 1' # and NET_RAW
uid=65510
for service in nats aggregator responder; do
  expect "uid and capabilities of $service" "$(rights "$(id_of "$service")")" "$uid 0000000000000000 1"
  uid=$((uid + 1))
done
for service in prometheus alertmanager; do expect "uid and capabilities of $service" "$(rights "$(id_of "$service")")" '65534 0000000000000000 1'; done
for container in $(docker ps -q); do
  docker inspect -f '{{.Name}} {{.HostConfig.ReadonlyRootfs}} {{if .HostConfig.Memory}}{{if .HostConfig.NanoCpus}}{{if .HostConfig.PidsLimit}}limited{{end}}{{end}}{{end}}' "$container"
done | grep -v ' true limited$' && fail 'these have a root to write to, or no limits'
# A service's key is its own: not even the aggregator, of the same image and with the same volume, reads the responder's.
read_it=$(docker exec "$(id_of aggregator)" ctfleet rules check /keys/responder/nats.nk 2>&1) && fail 'the aggregator reads the key of the responder'
grep -q 'permission denied' <<<"$read_it" || fail "the aggregator reads the key of the responder: $read_it"

say 'from observe to enforce'
sed -i 's/^mode: observe/mode: enforce/' "$work/config/policy.yaml"
centre kill -s HUP responder
receipts() { ask audit list -o json | python_json "sys.exit({'fw-a', 'fw-b'} - {e['receipt']['firewall'] for e in d['entries'] if e.get('receipt') and e['receipt']['deleted'] > 0} != set())"; }
await 45 'receipts of the flush from fw-a and fw-b' receipts
ask allowlist add 198.51.100.0/24 --comment smoke >/dev/null

say 'the history'
remembered() { ask top --by src --metric new --at "$minute" -o json | has "\"$source\""; }
await 90 "$minute in the history" remembered # when it is over

say 'every service restarted, with new certificates'
centre run --rm auth renew --host 192.0.2.10
for service in nats aggregator responder; do
  centre restart -t 45 "$service" >/dev/null 2>&1
  [ "$service" = responder ] || await 30 "the firewall, with $service restarted" is fw-smoke fresh
done
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(id_of "$1")")" = healthy ]; }
await 30 'the responder to be ready' healthy responder
firewall restart >/dev/null 2>&1
await 30 'the firewall, with its agent restarted' is fw-smoke fresh
send 198.18.0.9 198.18.0.10 500
await 15 'flows after the restarts' counts src 198.18.0.9 500

say 'down, and up again'
stopped=$(id_of aggregator)
centre stop -t 45 aggregator responder >/dev/null 2>&1
expect 'exit code of the aggregator' "$(docker inspect -f '{{.State.ExitCode}}' "$stopped")" 0
centre down
unset COMPOSE_PROFILES
centre up -d
await 30 'the firewall at the centre again' is fw-smoke fresh
receipts || fail 'the receipts are gone from the audit'
ask allowlist list | has 198.51.100.0/24 || fail 'the entry is gone from the allowlist'
remembered || fail "the history of $minute is gone"

say 'a firewall that is revoked'
centre run --rm auth revoke-firewall fw-smoke
refused() { firewall logs --tail=20 2>&1 | has -i 'authorization violation'; }
await 20 'the revoked firewall to be refused' refused
silent() { ask firewalls list -o json | python_json "sys.exit(any(f['firewall'] == 'fw-smoke' and f['state'] == 'fresh' for f in d['firewalls']))"; }
await 10 'a revoked firewall to report no more' silent
producer=$(firewall ps -q producer)
firewall stop >/dev/null 2>&1
expect 'exit code of the agent' "$(docker inspect -f '{{.State.ExitCode}}' "$producer")" 0
centre down -v >/dev/null 2>&1

say 'three servers'
cluster up -d
cluster run --rm ctfleet firewalls list
docker kill "$(cluster ps -q nats)" >/dev/null
await 20 'an answer with two of three servers' cluster run --rm ctfleet allowlist add 198.51.100.0/24 --comment cluster
cluster down -v >/dev/null 2>&1
say ok

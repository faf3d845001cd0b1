#!/usr/bin/env bash
# Boots a systemd in namespaces of its own, on an overlay of this machine's root, installs what is deployed, and expects the units to
# do what docs/howto/systemd.md says. Root, on a machine with systemd, nftables and iproute2; nothing of it stays.
#
#   deploy/systemd/smoke.sh [DIR]       DIR: where the programs are (bin)
set -euo pipefail
cd "$(dirname "$0")/../.."

# --- 3. Inside: the booted system runs this as a service.
inside() {
  set -x
  local dir=/etc/ctfleet u p n b o
  ip link set lo up
  /lib/systemd/systemd-sysctl /etc/sysctl.d/50-ctfleet.conf
  [ "$(cat /proc/sys/net/netfilter/nf_conntrack_events /proc/sys/net/netfilter/nf_conntrack_acct | tr '\n' ' ')" = '1 1 ' ]
  nft -f /etc/nftables.d/ctfleet.nft
  systemd-sysusers /usr/local/lib/sysusers.d/ctfleet.conf
  ctfleet auth init $dir --store /var/lib/ctfleet-nats --owner "nats=$(id -u ctfleet-nats):$(id -g ctfleet-nats)"
  ctfleet auth add-firewall fw1 --dir $dir
  cp $dir/firewalls/fw1/* $dir/
  chmod 644 $dir/trust.yaml $dir/producer.yaml
  systemctl start ctfleet-nats
  b=$dir/bootstrap
  ctfleet bootstrap --wait 20s --nats-url tls://localhost:4222 --nats-nkey $b/nats.nk --nats-ca $b/ca.pem --nats-cert $b/cert.pem --nats-key $b/key.pem
  systemctl start ctfleet-aggregator ctfleet-responder ctfleet-producer # each waits until its program says that it is ready
  o=$dir/operator
  export NATS_URL=tls://localhost:4222 NATS_NKEY=$o/nats.nk NATS_CA=$o/ca.pem NATS_CERT=$o/cert.pem NATS_KEY=$o/key.pem
  fresh() { for _ in $(seq 100); do ctfleet firewalls list -o raw | grep -qP "^fw1\t.*\tfresh\t" && return; sleep 0.1; done; ctfleet firewalls list; return 1; }
  fresh
  [ "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/api/v1/firewalls)" = 401 ]
  curl -sf -H "Authorization: Bearer $(cat $dir/aggregator/http-token)" http://127.0.0.1:8080/api/v1/firewalls | grep -q '"firewall":"fw1"'
  [ -s /var/lib/private/ctfleet-aggregator/history.db ]

  for u in nats aggregator responder producer; do
    p=$(systemctl show -P MainPID ctfleet-$u)
    grep -q '^NoNewPrivs:.1$' /proc/$p/status
    grep -qP '^Uid:\t[1-9]' /proc/$p/status
    grep -q "^CapEff:.$([ $u = producer ] && echo 0000000000001000 || echo 0000000000000000)$" /proc/$p/status # CAP_NET_ADMIN
    if nsenter -t "$p" -m /bin/true; then exit 1; fi # nothing else may be executed in there
    systemctl reload ctfleet-$u
    sleep 0.3
    [ "$(systemctl show -P MainPID ctfleet-$u)" = "$p" ]
  done
  fresh

  # One that hangs is ended by the watchdog and comes back.
  p=$(systemctl show -P MainPID ctfleet-producer)
  kill -STOP "$p"
  for _ in $(seq 60); do
    n=$(systemctl show -P MainPID ctfleet-producer)
    [ "$n" != "$p" ] && [ "$n" != 0 ] && break
    sleep 0.5
  done
  [ "$n" != "$p" ]
  [ "$(systemctl show -P NRestarts ctfleet-producer)" = 1 ]
  fresh

  systemctl stop ctfleet-producer ctfleet-aggregator ctfleet-responder ctfleet-nats
  for u in producer aggregator responder nats; do
    [ "$(systemctl show -P Result ctfleet-$u)" = success ]
  done
  touch /run/passed
}

# --- 2. In between: mounts for a root that is this machine's with changes in memory, and systemd as its first process.
between() {
  local work=$1 new=$1/root d
  mount -t tmpfs tmpfs "$work"
  mkdir "$work"/{up,tmp,root}
  mount -t overlay overlay -o "lowerdir=/,upperdir=$work/up,workdir=$work/tmp" "$new"
  mount -t proc proc "$new/proc"
  mount -t sysfs sysfs "$new/sys"
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
  else
    mount -t tmpfs tmpfs "$new/sys/fs/cgroup"
    mkdir "$new"/sys/fs/cgroup/{systemd,unified}
    mount -t cgroup -o none,name=systemd cgroup "$new/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup/unified"
  fi
  mount -t tmpfs tmpfs "$new/run"
  mount -t tmpfs tmpfs "$new/tmp"
  mount -t tmpfs -o mode=755 tmpfs "$new/dev"
  for d in null zero full random urandom tty; do
    touch "$new/dev/$d"
    mount --bind "/dev/$d" "$new/dev/$d"
  done
  mkdir "$new"/dev/{pts,shm}
  ln -s /proc/self/fd "$new/dev/fd"
  ln -s pts/ptmx "$new/dev/ptmx"
  rm -rf "$new/etc/machine-id" "$new/etc/ctfleet" "$new/etc/systemd/system"
  echo 0123456789abcdef0123456789abcdef >"$new/etc/machine-id"
  cp -r "$FILES/." "$new/"
  cd "$new"
  mkdir -p oldroot
  pivot_root . oldroot
  umount -l /oldroot
  cd /
  mount --make-rshared /
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=lxc /lib/systemd/systemd --system --unit=smoke.target --log-target=null --show-status=0
}

case ${1:-} in
  inside) inside; exit ;;
  between) between "$2"; exit ;;
esac

# --- 1. Outside.
bin=$(realpath "${1:-bin}")
work=$(mktemp -d)
export FILES=$work/files
groups=()
pid=
finish() {
  # Its namespace of processes ends with it.
  if [ -n "$pid" ]; then
    kill -KILL "$pid" 2>/dev/null || true # unshare blocks SIGTERM
    wait "$pid" 2>/dev/null || true
  fi
  for g in "${groups[@]}"; do
    echo $$ >"$(dirname "$g")/cgroup.procs" 2>/dev/null || true
    for _ in $(seq 20); do
      find "$g" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
  done
  rm -rf "$work"
}
trap finish EXIT

mkdir -p "$FILES/usr/local/lib/ctfleet" "$work/mnt"
BIN=$bin DESTDIR=$FILES deploy/install.sh install >/dev/null
CGO_ENABLED=0 "${GO:-go}" build -o "$FILES/usr/local/bin/nats-server" github.com/nats-io/nats-server/v2
cp deploy/systemd/smoke.sh "$FILES/usr/local/lib/ctfleet/"
mkdir -p "$FILES"/etc/systemd/system/ctfleet-producer.service.d
printf '[Service]\nWatchdogSec=4\n' >"$FILES/etc/systemd/system/ctfleet-producer.service.d/soon.conf"
printf '[Unit]\nDefaultDependencies=no\nWants=smoke.service\n' >"$FILES/etc/systemd/system/smoke.target"
cat >"$FILES/etc/systemd/system/smoke.service" <<'UNIT'
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
StandardOutput=file:/run/said
StandardError=file:/run/said
ExecStart=/bin/bash /usr/local/lib/ctfleet/smoke.sh inside
ExecStopPost=/bin/sh -c 'journalctl --no-pager -n 200 >/run/journal; touch /run/over'
ExecStartPost=/bin/touch /run/over
UNIT

# A group of control groups for it alone.
for d in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
  if [ -e "$d/cgroup.procs" ]; then
    mkdir "$d/ctfleet-smoke-$$"
    groups+=("$d/ctfleet-smoke-$$")
  fi
done
(
  for g in "${groups[@]}"; do echo $BASHPID >"$g/cgroup.procs"; done
  exec unshare -C -m -p -n -u -i -f --kill-child --propagation private bash "$PWD/deploy/systemd/smoke.sh" between "$work/mnt"
) </dev/null &
pid=$!

root=
for _ in $(seq 900); do
  [ -n "$root" ] || root=$(pgrep -P $pid || true)
  if [ -n "$root" ] && [ -e "/proc/$root/root/run/over" ]; then break; fi
  kill -0 $pid
  sleep 0.1
done
if [ -z "$root" ] || [ ! -e "/proc/$root/root/run/passed" ]; then
  cat "/proc/$root/root/run/said" "/proc/$root/root/run/journal" 2>/dev/null | tail -150
  echo "systemd: FAILED" >&2
  exit 1
fi
grep -E '^fw1' "/proc/$root/root/run/said" || true
echo "systemd: units start, are told to reload, are ended by the watchdog and come back, and stop: all four"

#!/bin/sh
# Puts programs, units and configuration where they belong, and takes them away again. `make install` runs it after building; in
# an archive of a release it is all there is to run, as root:
#
#   deploy/install.sh install [firewall|centre]       without a word: both
#   deploy/install.sh uninstall
#
# DESTDIR is put before every path, for packages and tests. PREFIX is /usr/local unless said otherwise; configuration is in /etc.
# What is in /etc already is never overwritten, and uninstall leaves there what was changed. Nothing is started, enabled or loaded.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
bin=${BIN:-$here/../bin}
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
what=${1:-}
part=${2:-all}
case $part in all | firewall | centre) ;; *) echo "install.sh: $part is none of firewall and centre" >&2; exit 2 ;; esac

programs() {
  case $part in
    firewall) echo producer ctfleet ;;
    centre) echo aggregator responder ctfleet ;;
    *) echo producer aggregator responder ctfleet ;;
  esac
}

units() {
  case $part in
    firewall) echo producer ;;
    centre) echo aggregator responder nats ;;
    *) echo producer aggregator responder nats ;;
  esac
}

# Each line: a file here, and where it goes. What is in /etc is yours.
config() {
  if [ "$part" != centre ]; then
    echo etc/producer.yaml /etc/ctfleet/producer.yaml
    echo sysctl.d/50-ctfleet.conf /etc/sysctl.d/50-ctfleet.conf
    echo modules-load.d/ctfleet.conf /etc/modules-load.d/ctfleet.conf
    echo nftables/ctfleet.nft /etc/nftables.d/ctfleet.nft
  fi
  if [ "$part" != firewall ]; then
    echo etc/aggregator.yaml /etc/ctfleet/aggregator.yaml
    echo etc/responder.yaml /etc/ctfleet/responder.yaml
    echo rules.yaml /etc/ctfleet/rules.yaml
    echo policy.yaml /etc/ctfleet/policy.yaml
  fi
}

# The units name their program, and nothing else of what is installed.
unit() { sed "s#/usr/local/bin/#$prefix/bin/#g" "$here/systemd/ctfleet-$1.service"; }

case $what in
  install)
    for p in $(programs); do
      install -D -m 755 "$bin/$p" "$root$prefix/bin/$p"
    done
    mkdir -p "$root$prefix/lib/systemd/system"
    for u in $(units); do
      unit "$u" >"$root$prefix/lib/systemd/system/ctfleet-$u.service"
      chmod 644 "$root$prefix/lib/systemd/system/ctfleet-$u.service"
    done
    if [ "$part" != firewall ]; then
      install -D -m 644 "$here/systemd/sysusers.conf" "$root$prefix/lib/sysusers.d/ctfleet.conf"
    fi
    install -D -m 644 "$here/systemd/no-tls.conf" "$root$prefix/share/doc/ctfleet/no-tls.conf"
    config | while read -r from to; do
      if [ -e "$root$to" ]; then
        echo "kept: $root$to"
      else
        install -D -m 644 "$here/$from" "$root$to"
      fi
    done
    echo "installed. Next: systemctl daemon-reload, and docs/howto/systemd.md"
    ;;
  uninstall)
    for p in $(programs); do rm -f "$root$prefix/bin/$p"; done
    for u in $(units); do rm -f "$root$prefix/lib/systemd/system/ctfleet-$u.service"; done
    rm -f "$root$prefix/lib/sysusers.d/ctfleet.conf" "$root$prefix/share/doc/ctfleet/no-tls.conf"
    config | while read -r from to; do
      if cmp -s "$here/$from" "$root$to"; then
        rm -f "$root$to"
      elif [ -e "$root$to" ]; then
        echo "left: $root$to, which was changed"
      fi
    done
    for d in "$prefix/share/doc/ctfleet" /etc/ctfleet /etc/nftables.d; do
      rmdir "$root$d" 2>/dev/null || true
    done
    ;;
  *)
    echo "usage: $0 install|uninstall [firewall|centre]" >&2
    exit 2
    ;;
esac

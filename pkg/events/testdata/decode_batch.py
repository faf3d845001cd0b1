#!/usr/bin/env python3
"""Print a batch of ct.v1.events or ct.v1.snapshots as JSON lines.

Written from docs/reference/wire.md alone, to prove that it is enough. The first line is
the header, each further line an event. Needs msgpack (Debian: python3-msgpack).

    nats sub --count 1 --raw ct.v1.events.fw-a | head -c -1 | ./decode_batch.py -

(nats ends each message with a newline, which is no part of it.)
"""

import ipaddress
import json
import struct
import sys

import msgpack

VERSION = 1
MAX_EVENTS = 4096
MAX_BYTES = 256 * 1024

HEADER = ("v", "sent", "clean", "seq", "total", "lost", "fw", "realm", "boot",
          "epoch", "phase", "base", "n", "after")
TYPES = {1: "NEW", 2: "DESTROY", 3: "EXISTING"}
FIXED = {"type": 1, "time": 4, "proto": 1, "family": 1, "sport": 2, "dport": 2, "id": 4, "status": 2}


class Refused(Exception):
    pass


def no_repeats(pairs):
    out = {}
    for key, value in pairs:
        if key in out:
            raise Refused(f"field {key!r} appears twice")
        out[key] = value
    return out


def numbers(column, fmt):
    """A column of little-endian numbers."""
    return [v for (v,) in struct.iter_unpack("<" + fmt, column)]


def address(data):
    return str(ipaddress.ip_address(data))


def sparse(batch, name, size):
    """Yields (event index, entry) of a column that names only some events."""
    column, at, last = batch.get(name, b""), 0, -1
    while at < len(column):
        if len(column) - at < 2:
            raise Refused(f"column {name!r} ends within an entry")
        (i,) = struct.unpack_from("<H", column, at)
        if not last < i < batch["n"]:
            raise Refused(f"column {name!r}: index {i}")
        entry = column[at + 2:at + size(i)]
        if len(entry) != size(i) - 2:
            raise Refused(f"column {name!r} ends within an entry")
        yield i, entry
        last, at = i, at + size(i)


def decode(data):
    """Returns (header, events) or raises."""
    if len(data) > MAX_BYTES:
        raise Refused(f"{len(data)} bytes")
    batch = msgpack.unpackb(data, raw=False, object_pairs_hook=no_repeats)
    if not isinstance(batch, dict):
        raise Refused("not a map")
    if batch.get("v") != VERSION:
        raise Refused(f"version {batch.get('v')}")
    for name in HEADER + tuple(FIXED) + ("addr",):
        if name not in batch:
            raise Refused(f"field {name!r} is missing")
    n = batch["n"]
    if not 0 <= n <= MAX_EVENTS:
        raise Refused(f"{n} events")
    for name, width in FIXED.items():
        if len(batch[name]) != n * width:
            raise Refused(f"column {name!r} has {len(batch[name])} bytes")
    family = batch["family"]
    if any(f not in (4, 6) for f in family):
        raise Refused("unknown family")
    width = [4 if f == 4 else 16 for f in family]
    if len(batch["addr"]) != 2 * sum(width):
        raise Refused(f"column 'addr' has {len(batch['addr'])} bytes")

    times = numbers(batch["time"], "I")
    sports, dports = numbers(batch["sport"], "H"), numbers(batch["dport"], "H")
    ids, status = numbers(batch["id"], "I"), numbers(batch["status"], "H")
    events, at = [], 0
    for i in range(n):
        kind = batch["type"][i]
        if kind & 0x3F not in TYPES:
            raise Refused(f"event {i}: type {kind:#x}")
        w = width[i]
        events.append({
            "type": TYPES[kind & 0x3F],
            "unheld": bool(kind & 0x80), "unheld_before": bool(kind & 0x40),
            "time": batch["base"] + times[i] * 1000,
            "proto": batch["proto"][i],
            "src": address(batch["addr"][at:at + w]), "dst": address(batch["addr"][at + w:at + 2 * w]),
            "sport": sports[i], "dport": dports[i], "id": ids[i], "status": status[i],
            "zone": 0, "nat": None, "counters": None,
        })
        at += 2 * w
    for i, entry in sparse(batch, "nat", lambda i: 2 + 2 * width[i] + 4):
        w = width[i]
        sport, dport = struct.unpack_from("<HH", entry, 2 * w)
        events[i]["nat"] = {"src": address(entry[:w]), "dst": address(entry[w:2 * w]), "sport": sport, "dport": dport}
    for i, entry in sparse(batch, "zone", lambda i: 2 + 2):
        (events[i]["zone"],) = struct.unpack("<H", entry)
    for i, entry in sparse(batch, "counters", lambda i: 2 + 32):
        events[i]["counters"] = list(struct.unpack("<4Q", entry))

    header = {name: batch[name] for name in HEADER}
    header["boot"] = batch["boot"].hex()
    return header, events


def main():
    name = sys.argv[1] if len(sys.argv) == 2 else "-"
    with (sys.stdin.buffer if name == "-" else open(name, "rb")) as f:
        data = f.read()
    try:
        header, events = decode(data)
    except (Refused, ValueError, msgpack.UnpackException) as e:
        sys.exit(f"{name}: {e}")
    for row in [header, *events]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()

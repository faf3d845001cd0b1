//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const seedTable = 1_000_000

// seedScript is the way that ctfleet grew from: the tool's XML in two dictionaries.
const seedScript = `
import collections, json, resource, sys
import xml.etree.ElementTree as ET
src, dst = collections.Counter(), collections.Counter()
for flow in ET.parse(sys.stdin.buffer).getroot().iter("flow"):
    layer3 = flow.find("meta[@direction='original']/layer3")
    src[layer3.find("src").text] += 1
    dst[layer3.find("dst").text] += 1
print(json.dumps({"flows": sum(src.values()), "src": len(src), "dst": len(dst), "kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
`

// benchSeed compares who holds the most connections, asked once of a table of a million: by the tool
// and a script, and by a dump, batches and a counter.
func benchSeed(ctx context.Context) (rows []figure, err error) {
	restore, err := largeTable(2 * seedTable)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: firewall, Sysctls: longTimeouts}}})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	fw := l.Firewall(firewall)
	if err := fill(ctx, fw, seedTable); err != nil {
		return nil, err
	}
	ours, sources, err := seedOurs(ctx, fw)
	if err != nil {
		return nil, err
	}
	theirs, said, err := seedTheirs(ctx, fw)
	if err != nil {
		return nil, err
	}
	if said.Flows != seedTable || said.Src != sources {
		return nil, fmt.Errorf("the script counted %d flows from %d sources, we %d from %d", said.Flows, said.Src, seedTable, sources)
	}
	return []figure{{
		what: fmt.Sprintf("who holds the most, asked once of %d entries: dump, batches and counter against `conntrack -L -o xml` and Python (%s)", seedTable, megabytes(said.KB<<10)),
		ours: fmt.Sprintf("%.2f s", ours.Seconds()), others: fmt.Sprintf("%.1f s", theirs.Seconds()), ratio: fmt.Sprintf("%.0f × faster", theirs.Seconds()/ours.Seconds()),
	}}, nil
}

// seedOurs dumps the table as a producer does and counts it as an aggregator does.
func seedOurs(ctx context.Context, fw *lab.Firewall) (took time.Duration, sources int, err error) {
	conn, err := conntrack.Dial(fw.NS)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	start := time.Now()
	c, err := count.New(newRules(10 * time.Second))
	if err != nil {
		return 0, 0, err
	}
	var (
		w events.BatchWriter
		d events.Decoder
		b events.Batch
		h = events.Header{Firewall: firewall, Realm: events.RealmDefault, Epoch: 1, Phase: events.SnapshotPart | events.SnapshotBegin}
	)
	apply := func() error {
		h.Seq++
		data, err := w.Encode(&h)
		if err != nil {
			return err
		}
		h.Phase &^= events.SnapshotBegin
		if err := d.Decode(data, &b); err != nil {
			return err
		}
		_, err = c.ApplySnapshot(firewall, &b, start.UnixNano())
		return err
	}
	err = conn.Dump(ctx, func(rows []events.Event) error {
		for i := range rows {
			if err := w.Append(&rows[i]); err != nil {
				return err
			}
			if w.Len() >= 2048 {
				if err := apply(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		h.Phase |= events.SnapshotEnd
		err = apply()
	}
	place := count.Place{Realm: events.RealmDefault}
	top := c.Top(count.Set{Metric: count.Active}, place, 0, 20)
	took = time.Since(start)
	if a, _ := c.Account(firewall); err == nil && (a.Active != seedTable || len(top) == 0) {
		err = fmt.Errorf("%d flows were counted, want %d", a.Active, seedTable)
	}
	return took, len(c.Top(count.Set{Metric: count.Active}, place, 0, seedTable)), err
}

type seedSaid struct {
	Flows int   `json:"flows"`
	Src   int   `json:"src"`
	KB    int64 `json:"kb"`
}

func seedTheirs(ctx context.Context, fw *lab.Firewall) (took time.Duration, said seedSaid, err error) {
	list := exec.CommandContext(ctx, "conntrack", "-L", "-o", "xml")
	script := exec.CommandContext(ctx, "python3", "-c", seedScript)
	var out, complaints bytes.Buffer
	script.Stdout, script.Stderr = &out, &complaints
	if script.Stdin, err = list.StdoutPipe(); err != nil {
		return 0, said, err
	}
	start := time.Now()
	if err := errors.Join(fw.NS.Do(list.Start), script.Start()); err != nil {
		return 0, said, err
	}
	err = errors.Join(script.Wait(), list.Wait())
	took = time.Since(start)
	if err != nil {
		return 0, said, fmt.Errorf("%w: %s", err, complaints.String())
	}
	return took, said, json.Unmarshal(out.Bytes(), &said)
}

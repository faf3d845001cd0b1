package main

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// printEvent prints an event as a person or a script reads it.
func printEvent(w io.Writer, e *observe.Event, format string) error {
	if format == "json" {
		return printJSON(w, e.Show())
	}
	_, err := fmt.Fprintln(w, eventLine(e))
	return err
}

// eventLine is an event for a person. Names of firewalls and realms hold no characters that a
// terminal would mind.
func eventLine(e *observe.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-10s  %-8s  %-6s  %s > %s", e.At.Local().Format("15:04:05.000"), e.Firewall, e.Type, rule.Protocol(e.Proto),
		side(e, e.Orig.Src, e.Orig.SrcPort), side(e, e.Orig.Dst, e.Orig.DstPort))
	if (e.Proto == 1 || e.Proto == 58) && e.Orig.SrcPort|e.Orig.DstPort != 0 { // 0: not known
		fmt.Fprintf(&b, " type %d code %d id %d", e.Orig.DstPort>>8, e.Orig.DstPort&0xff, e.Orig.SrcPort)
	}
	if e.NAT {
		fmt.Fprintf(&b, ", by NAT %s > %s", side(e, e.Reply.Dst, e.Reply.DstPort), side(e, e.Reply.Src, e.Reply.SrcPort))
	}
	if e.Realm != events.RealmDefault {
		b.WriteString(", realm " + e.Realm)
	}
	if e.Zone != 0 {
		fmt.Fprintf(&b, ", zone %d", e.Zone)
	}
	if e.Type == events.Destroy && !e.Replied() {
		b.WriteString(", unanswered")
	}
	if e.HasCounters {
		fmt.Fprintf(&b, ", %d packets %d bytes, back %d packets %d bytes", e.OrigPackets, e.OrigBytes, e.ReplyPackets, e.ReplyBytes)
	}
	return b.String()
}

func side(e *observe.Event, a events.Addr, port uint16) string {
	ip := a.Netip(e.IPv6)
	if !observe.HasPorts(e.Proto) {
		return ip.String()
	}
	return netip.AddrPortFrom(ip, port).String()
}

// lossWatch tells the operator what he does not see.
type lossWatch struct {
	boots  map[string]*heardBoot
	caught bool // there was a moment when nothing waited
	said   time.Time
}

// heardBoot is what was heard of one firewall's run.
type heardBoot struct {
	boot events.Boot
	seq  uint64
	next uint64 // the total that the next batch should have
	lost uint64
}

func newLossWatch() *lossWatch { return &lossWatch{boots: map[string]*heardBoot{}} }

// take notes a live batch. It returns false for one that came before.
func (w *lossWatch) take(b *events.Batch) bool {
	h := w.boots[b.Firewall]
	if h == nil || h.boot != b.Boot {
		w.boots[b.Firewall] = &heardBoot{b.Boot, b.Seq, b.Total + uint64(b.Count), b.Lost}
		return true
	}
	if b.Seq <= h.seq {
		return false
	}
	if b.Total > h.next {
		complain("%s: %d events are missing", b.Firewall, b.Total-h.next)
	}
	if b.Lost > h.lost {
		complain("%s: %d events were lost before they reached the bus", b.Firewall, b.Lost-h.lost)
	}
	h.seq, h.next, h.lost = b.Seq, b.Total+uint64(b.Count), max(h.lost, b.Lost)
	return true
}

const (
	lagBatches = 1000            // that wait are worth a word
	lagEvery   = 5 * time.Second // between two of them
)

// lag says when more comes than is printed.
func (w *lossWatch) lag(waiting uint64, now time.Time) {
	switch {
	case waiting == 0:
		w.caught = true
	case w.caught && waiting >= lagBatches && now.Sub(w.said) >= lagEvery:
		w.said = now
		complain("%s batches wait to be printed: what you see is late. A filter, or > FILE, helps", strconv.FormatUint(waiting, 10))
	}
}

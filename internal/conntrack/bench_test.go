//go:build linux

package conntrack

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	timo "github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// listener is one way to receive events.
type listener struct {
	name string
	// listen starts to receive; what it receives it counts in n once read is
	// closed. stop ends it.
	listen func(b *testing.B, fw *lab.Firewall, read <-chan struct{}, n *atomic.Int64) (stop func())
}

// passive queues events and leaves them: what the flood itself costs, building
// the events included.
var passive = listener{"nobody", func(b *testing.B, fw *lab.Firewall, _ <-chan struct{}, _ *atomic.Int64) func() {
	r := open(b, fw.NS, 0)
	return func() { _ = r.Close() }
}}

var ours = listener{"ctfleet", func(b *testing.B, fw *lab.Firewall, read <-chan struct{}, n *atomic.Int64) func() {
	r := open(b, fw.NS, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-read
		for {
			// Counting by address stands for what a producer does with an event.
			got, err := r.Receive(time.Second, func(evs []events.Event) {
				for i := range evs {
					sink += evs[i].Orig.Src.Lo
				}
			})
			if err != nil {
				return
			}
			n.Add(int64(got))
		}
	}()
	return func() {
		_ = r.Close()
		<-done
	}
}}

var sink uint64

var theirs = listener{"ti-mo", func(b *testing.B, fw *lab.Firewall, read <-chan struct{}, n *atomic.Int64) func() {
	var c *timo.Conn
	err := fw.NS.Do(func() (err error) {
		c, err = timo.Dial(nil)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := c.SetReadBuffer(DefaultBuffer); err != nil {
		b.Fatal(err)
	}
	// It reads from here on, until an event is in the way that nobody takes.
	ch := make(chan timo.Event)
	failed, err := c.Listen(ch, 1, []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTDestroy})
	if err != nil {
		b.Fatal(err)
	}
	closed, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		<-read
		for {
			select {
			case <-ch:
				n.Add(1)
			case err := <-failed: // by Close; a listener that failed before is found out by what it did not receive
				_ = err
			case <-closed:
				return
			}
		}
	}()
	return func() {
		_ = c.Close() // waits for its workers, which wait for their channels to be read
		close(closed)
		<-done
	}
}}

// processCPU is the time that all threads of this process have spent, in the
// kernel or not.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const perRound = 50_000 // events, in one second where it is live; half of what the buffer holds

// round measures CPU time. Live: of a flood with a listener that reads while it
// comes. Otherwise of reading a flood that has all been queued before.
func (l *listener) round(b *testing.B, fw *lab.Firewall, live bool) time.Duration {
	b.Helper()
	var n atomic.Int64
	read := make(chan struct{})
	stop := l.listen(b, fw, read, &n)
	runtime.GC()
	before := processCPU(b)
	f := udp(client4, perRound)
	if live {
		close(read)
		f.Rate = perRound
	}
	flood(b, fw, f)
	if !live {
		before = processCPU(b)
		close(read)
	}
	if l != &passive {
		for deadline := time.Now().Add(patience); n.Load() < perRound; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				b.Fatalf("%s received %d of %d events", l.name, n.Load(), perRound)
			}
		}
	}
	spent := processCPU(b) - before
	stop()
	if _, err := dial(b, fw.NS).Flush(b.Context(), Match{Prefixes: []netip.Prefix{client4}, By: events.BySrc}, FlushOptions{}); err != nil {
		b.Fatal(err)
	}
	return spent
}

// BenchmarkReceive compares the CPU time per event with that of ti-mo's Listen,
// which only receives and decodes, on the same flood in the same run. "live" is
// what a listener adds to a flood of 50,000 new flows per second, wake-ups
// included; "drained" is reading from a full queue. Use -benchtime=3x or so.
func BenchmarkReceive(b *testing.B) {
	fw := firewall(b, lab.FirewallSpec{})
	report := func(b *testing.B, we, they time.Duration) {
		events := float64(b.N * perRound)
		b.ReportMetric(float64(we)/events, "ctfleet-ns/event")
		b.ReportMetric(float64(they)/events, "ti-mo-ns/event")
		b.ReportMetric(float64(they)/float64(we), "times-less")
	}
	b.Run("live", func(b *testing.B) {
		var we, they time.Duration
		for range b.N {
			flood := passive.round(b, fw, true)
			we += ours.round(b, fw, true) - flood
			they += theirs.round(b, fw, true) - flood
		}
		report(b, we, they)
	})
	b.Run("drained", func(b *testing.B) {
		var we, they time.Duration
		for range b.N {
			we += ours.round(b, fw, false)
			they += theirs.round(b, fw, false)
		}
		report(b, we, they)
	})
}

// BenchmarkFlush deletes the flows of one address from a table of others.
func BenchmarkFlush(b *testing.B) {
	const others, own = 50_000, 3_000
	fw := firewall(b, lab.FirewallSpec{})
	c := dial(b, fw.NS)
	flood(b, fw, udp(other4, others))
	for _, way := range []struct {
		name  string
		match Match
	}{
		{"selected by the kernel", bySrc(client4)},
		{"full dump", bySrc(client4, client6)},
	} {
		b.Run(way.name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				flood(b, fw, udp(client4, own))
				b.StartTimer()
				if res := flush(b, c, way.match, FlushOptions{}); res.Deleted != own {
					b.Fatalf("%+v, want %d deleted", res, own)
				}
			}
		})
	}
}

// BenchmarkDump streams a table of 50,000 entries.
func BenchmarkDump(b *testing.B) {
	const n = 50_000
	fw := firewall(b, lab.FirewallSpec{})
	c := dial(b, fw.NS)
	flood(b, fw, udp(client4, n))
	b.ReportAllocs()
	for b.Loop() {
		seen := 0
		err := c.Dump(b.Context(), func(rows []events.Event) error { seen += len(rows); return nil })
		if err != nil || seen != n {
			b.Fatalf("%d entries (%v), want %d", seen, err, n)
		}
	}
}

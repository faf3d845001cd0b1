package synth

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestFleet: a real server gets what was made, from every firewall, with nothing
// missing, and health beside it.
func TestFleet(t *testing.T) {
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), Open: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := bus.Connect(bus.Config{Server: server, Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Bootstrap(t.Context(), bus.DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	fleet, err := NewFleet(FleetConfig{Firewalls: 5, Rate: 3000, Sources: 100, Open: 50, Linger: 10 * time.Millisecond, Bus: bus.Config{Flags: bus.Flags{NATSURL: server.URL()}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := fleet.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(time.Second)
	fleet.Attack(3, events.Addr{Lo: 7}, 40)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s := fleet.Totals(); s.Made > 20_000 && s.Made == s.Published {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %+v", s)
		}
	}
	cancel()
	done.Wait()
	var d events.Decoder
	var b events.Batch
	got, attack, next := uint64(0), 0, map[string]uint64{}
	if err := conn.Read(t.Context(), bus.StreamEvents, bus.FollowFrom{All: true}, func(m bus.Msg) {
		if err := d.Decode(m.Data, &b); err != nil {
			t.Fatal(err)
		}
		if b.Total != next[b.Firewall] {
			t.Errorf("%s: batch %d begins at event %d, %d came before", b.Firewall, b.Seq, b.Total, next[b.Firewall])
		}
		next[b.Firewall] += uint64(b.Count)
		got += uint64(b.Count)
		for _, e := range b.AppendBriefs(nil) {
			if e.Src.Lo == 7 {
				attack++
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	// What was on its way when the fleet stopped may have arrived or not.
	if s := fleet.Totals(); got < s.Published || got > s.Made || s.Lost != 0 || attack != 40 || len(next) != 5 {
		t.Errorf("%d events of %d firewalls arrived, %d of the attack; %+v", got, len(next), attack, s)
	}
	if last, err := conn.Last(t.Context(), bus.StreamLast, events.SubjectHealth+".*"); err != nil || len(last) != 5 {
		t.Errorf("%d firewalls have reported: %v", len(last), err)
	}
}

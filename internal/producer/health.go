package producer

import (
	"context"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const healthInterval = time.Second

// healthLoop publishes the state every second and watches for drift.
func (p *Producer) healthLoop(ctx context.Context) error {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	var drift driftWatch
	for {
		p.reporting.Beat()
		h := p.sendHealth(false)
		if p.input == nil && drift.judge(h, time.Now()) {
			p.requestResync("the kernel holds fewer flows than were counted")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *Producer) sendHealth(stopping bool) *events.Health {
	h := p.health(stopping)
	if p.conn.Connected() == nil {
		if err := p.conn.Send(events.HealthSubject(p.opt.Name), h); err != nil {
			p.log.Warn("cannot publish health", "error", err)
		}
	}
	return h
}

func (p *Producer) health(stopping bool) *events.Health {
	h := &events.Health{
		Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot.String(), Labels: p.opt.Label,
		Version: daemon.ProgramVersion(), Config: *p.config.Load(), Sent: conntrack.Monotonic(), Started: p.started.UnixMilli(),
		Source: p.opt.source(), Stopping: stopping, AllowFlush: p.opt.AllowFlush, AllowBlock: p.opt.AllowBlock, Stream: p.Stream(),
	}
	if list := p.problems.Load(); list != nil {
		h.Problems = *list
	}
	if p.input != nil {
		return h // whatever table this host has is none of ours
	}
	st, err := p.table.read(p.ns)
	if err == nil {
		p.sysctls.Store(&st.Sysctls)
	}
	if sys := p.sysctls.Load(); sys != nil { // when the read failed, as they were
		h.TCPLoose = sys.TCPLoose != nil && *sys.TCPLoose != 0
		h.Stream.Unannounced = sys.Events != nil && *sys.Events == 2
	}
	if err != nil {
		p.log.Warn("cannot read the table's state", "error", err)
		return h
	}
	h.Table = events.TableHealth{Count: st.Count, Limit: st.Limit, Buckets: st.Buckets}
	if p.opt.TableLimit > 0 {
		h.Table.Limit = p.opt.TableLimit
	}
	if h.Table.Limit > 0 {
		h.Table.Percent = 100 * float64(h.Table.Count) / float64(h.Table.Limit)
	}
	h.Kernel = events.KernelHealth{
		Drop: st.Stats.Drop, EarlyDrop: st.Stats.EarlyDrop, InsertFailed: st.Stats.InsertFailed, Invalid: st.Stats.Invalid,
		SearchRestart: st.Stats.SearchRestart, ClashResolve: st.Stats.ClashResolve, ChainTooLong: st.Stats.ChainTooLong,
	}
	return h
}

// tableState reads the table's state through one connection, which it keeps: to
// open one each second would be most of what an idle producer costs.
type tableState struct {
	mu   sync.Mutex
	conn *conntrack.Conn // nil: to be opened
}

func (t *tableState) read(ns *host.Namespace) (st conntrack.State, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil {
		if t.conn, err = conntrack.Dial(ns); err != nil {
			return st, err
		}
	}
	if st, err = t.conn.State(); err != nil {
		t.closeConn()
	}
	return st, err
}

func (t *tableState) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeConn()
}

func (t *tableState) closeConn() {
	if t.conn != nil {
		t.conn.Close()
		t.conn = nil
	}
}

// Stream accounts for every event so far.
func (p *Producer) Stream() events.StreamHealth {
	a := &p.account
	ring, limit, oldest := p.ring.Usage()
	granted, used := 0, 0
	if p.reader != nil {
		granted, _ = p.reader.Buffer()
		used, _, _ = p.reader.Pressure() // 0 when it is closed
	}
	p.mu.Lock()
	epoch, held := p.epoch, p.live.Len()
	p.mu.Unlock()
	return events.StreamHealth{
		Events: a.Read.Load(), Published: a.Published.Load(),
		LostSocket: a.LostSocket.Load(), LostRing: a.LostRing.Load(), LostBus: a.LostBus.Load(), Undecodable: a.Undecodable.Load(),
		RingBytes: uint64(ring), RingLimit: uint64(limit), LagMS: uint64(oldest.Milliseconds()),
		Buffer: uint64(granted), BufferUsed: uint64(used), LingerMS: uint64(time.Duration(p.linger.Load()).Milliseconds()),
		Epoch: epoch, Live: uint64(held), Resyncing: p.resync.running.Load(), Resyncs: p.resync.done.Load(),
	}
}

// driftWatch notices that the kernel holds fewer flows than we do: some ended
// without an event. The opposite is no drift, since the kernel's count includes
// expired entries.
type driftWatch struct {
	over int       // consecutive seconds
	last time.Time // of the last dump that it caused
}

// driftSeconds is how long the difference must last: events are on their way
// while the count is read.
const driftSeconds = 3

func (d *driftWatch) judge(h *events.Health, now time.Time) bool {
	slack := max(100, h.Table.Count/100)
	if h.Stream.Resyncing || h.Stream.Resyncs == 0 || h.Stream.Live <= h.Table.Count+slack {
		d.over = 0
		return false
	}
	d.over++
	if d.over < driftSeconds || now.Sub(d.last) < driftPause {
		return false
	}
	d.over, d.last = 0, now
	return true
}

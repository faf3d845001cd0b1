package aggregator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/history"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func (o *Options) history() history.Options {
	return history.Options{File: o.History, Age: o.HistoryAge, Bytes: o.HistoryBytes}
}

// CheckHistory returns why the history could not be kept, if one is wanted.
func (o *Options) CheckHistory() error {
	if o.History == "" {
		return nil
	}
	h := o.history()
	return h.Check()
}

func (a *Aggregator) closePast() error {
	if a.past == nil {
		return nil
	}
	return a.past.Close()
}

const (
	// minuteLead is how long before its end a minute is read: a window of 60 s is
	// cut in slots of 3 s, and at the full minute it has begun to lose the first.
	// What is counted after that is missing from the minute.
	minuteLead = 300 * time.Millisecond
	// minuteLate is how late it may be read, by the stream's clock: later it would
	// be another minute's.
	minuteLate = 5 * time.Second
	// surveyLines is how many lines are looked at while counting waits, about
	// 0.3 ms, and surveyPause how long it goes on then.
	surveyLines = 4096
	surveyPause = 100 * time.Microsecond
)

// minuteLoop reads the counts once a minute and hands them to the history.
func (a *Aggregator) minuteLoop(ctx context.Context) error {
	var done int64
	for daemon.Sleep(ctx, tickInterval) {
		a.mu.Lock()
		now, live := a.counter.Now(), a.live
		a.mu.Unlock()
		if !live {
			continue
		}
		var due bool
		if done, due = dueMinute(now, done); !due {
			continue
		}
		if m := a.minute(ctx, done); m != nil {
			a.past.Put(m)
		}
	}
	return nil
}

// dueMinute returns the minute that was over last, and whether it is to be read:
// not if it is done, was over before we began (done is 0), or so long ago that its
// counts are no longer there. Times are Unix ns of the stream's clock.
func dueMinute(now, done int64) (last int64, due bool) {
	const minute = int64(time.Minute)
	last = (now+int64(minuteLead))/minute*minute - minute
	if last <= done {
		return done, false
	}
	return last, done != 0 && now-last-minute <= int64(minuteLate)
}

// minute reads the counts of the minute that ends now; nil when ctx ends meanwhile.
// The counter is held for one step at a time.
func (a *Aggregator) minute(ctx context.Context, at int64) *history.Minute {
	m := &history.Minute{At: at / int64(time.Second)}
	a.mu.Lock()
	m.Partial = a.counter.Partial(time.Minute)
	m.Fill = a.fills(time.Now())
	src := a.counter.Survey(count.BySrc, time.Minute, history.RowsNew, history.RowsActive)
	dst := a.counter.Survey(count.ByDst, time.Minute, history.RowsNew, history.RowsActive)
	a.mu.Unlock()
	for running := []*count.Survey{src, dst}; len(running) > 0; {
		running = slices.DeleteFunc(running, func(s *count.Survey) bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return !s.Step(surveyLines)
		})
		if !daemon.Sleep(ctx, surveyPause) {
			return nil
		}
	}
	m.BySrc, m.ByDst = talkers(src), talkers(dst)
	return m
}

// talkers are what a survey found, as the history takes it.
func talkers(s *count.Survey) (out []history.Talkers) {
	for _, p := range s.Places() {
		t := history.Talkers{Place: history.Place(p.Place), ActiveKnown: p.ActiveKnown, Rows: make([]history.Row, len(p.Rows))}
		for i, r := range p.Rows {
			t.Rows[i] = history.Row{Address: r.Key.Addr(), New: r.Opened, Active: r.Active}
		}
		out = append(out, t)
	}
	return out
}

// fills is how full each table is, with the most since it was last asked.
func (a *Aggregator) fills(now time.Time) (out []history.Fill) {
	for name, f := range a.fleet {
		acc, _ := a.counter.Account(name)
		t := &f.health.Table
		out = append(out, history.Fill{
			Place:   history.Place{Realm: f.health.Realm, Firewall: name},
			Entries: t.Count, Peak: max(f.peak, t.Count), Limit: t.Limit, Percent: t.Percent,
			Lost: uint64(f.values[metricLost]), State: f.state(now), Active: acc.Active, ActiveKnown: acc.ActiveKnown,
		})
		f.peak = 0
	}
	return out
}

// copyRecords is how many messages are written together when so many wait.
const copyRecords = 256

// copyStream copies a stream into the history, from where the last run ended. What
// cannot be written is tried again: the stream keeps it.
func (a *Aggregator) copyStream(ctx context.Context, stream string, read func(bus.Msg, *history.Record) error) error {
	var from bus.FollowFrom
	found := a.retry(ctx, "read where the history ends", func(ctx context.Context) error {
		p, err := a.past.Position(ctx, stream)
		from = bus.FollowFrom{After: p.Seq, Time: p.Time}
		return err
	})
	if !found {
		return nil
	}
	if from.After == 0 {
		from.Time = time.Now().Add(-a.opt.HistoryAge)
	}
	waiting := make(chan history.Record, copyRecords)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.conn.Follow(ctx, stream, from, func(m bus.Msg) {
			r := history.Record{Stream: stream, Position: history.Position{Seq: m.Seq, Time: m.Time}}
			if err := read(m, &r); err != nil {
				a.refuse("history", m.Subject, err) // its position is kept all the same
			}
			select {
			case waiting <- r:
			case <-ctx.Done():
			}
		})
	})
	g.Go(func() error {
		a.writeRecords(ctx, waiting)
		return nil
	})
	return g.Wait()
}

// writeRecords writes what waits into the history, together what waits together, until
// ctx ends.
func (a *Aggregator) writeRecords(ctx context.Context, waiting <-chan history.Record) {
	var records []history.Record
	write := func(ctx context.Context) error { return a.past.Record(ctx, records) }
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-waiting:
			records = append(records[:0], r)
		}
		for more := true; more && len(records) < copyRecords; {
			select {
			case r := <-waiting:
				records = append(records, r)
			default:
				more = false
			}
		}
		if !a.retry(ctx, "write to the history", write) {
			return
		}
	}
}

func readAlert(m bus.Msg, r *history.Record) error {
	var al events.Alert
	if err := events.Unmarshal(m.Data, &al); err != nil {
		return err
	}
	r.Alert = &al
	return nil
}

// readAudit decodes an entry of the audit.
func readAudit(m bus.Msg, r *history.Record) error {
	e, err := audit.Read(&m, everybody)
	if err != nil {
		return err
	}
	r.Actor, r.Verb, r.Decision, r.Act, r.Receipt = e.Actor, e.Verb, e.Decision, e.Act, e.Receipt
	return nil
}

// readFor is how long an answer from the history may take.
const readFor = 3 * time.Second

// topAt answers from the history who had the most.
func (a *Aggregator) topAt(q *events.TopQuery) (*events.TopReply, error) {
	if a.past == nil {
		return nil, errors.New("at: this aggregator keeps no history (aggregator --history FILE)")
	}
	if q.Prefix != "" || q.Allowlisted != "" {
		return nil, errors.New("at: prefix and allowlisted are of now: the history keeps the largest of all")
	}
	const window = 60
	if q.WindowS != 0 && q.WindowS != window {
		return nil, fmt.Errorf("window %ds is not kept in the history, which keeps minutes: %ds", q.WindowS, window)
	}
	ctx, cancel := context.WithTimeout(context.Background(), readFor)
	defer cancel()
	question := history.Question{
		By: cmp.Or(q.By, events.BySrc), Metric: cmp.Or(q.Metric, events.MetricNew), At: time.UnixMilli(q.At),
		Realm: q.Realm, Firewall: q.Firewall, Limit: cmp.Or(q.Limit, defaultRows),
	}
	past, err := a.past.Top(ctx, question)
	if err != nil {
		return nil, err
	}
	r := &events.TopReply{
		Head: events.Head{V: events.MessageVersion},
		By:   question.By, Metric: question.Metric, WindowS: window, Scope: cmp.Or(q.Firewall, events.RealmScope(past.Realm)),
		Rows: []events.TopRow{}, At: past.Minute.UnixMilli(), Stale: past.Stale,
	}
	if q.Metric == events.MetricActive {
		r.WindowS, r.Unknown = 0, past.Unknown
	} else {
		r.Partial = past.Partial
	}
	for _, row := range past.Rows {
		r.Rows = append(r.Rows, events.TopRow{Key: row.Address.String(), Value: row.Value, Firewalls: row.Firewalls})
	}
	return r, nil
}

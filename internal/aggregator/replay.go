package aggregator

import (
	"fmt"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Replay judges a recording: what an aggregator would have made of it that had begun
// when the recording does. Its clock is the recording's, so that it is as fast as it
// can be, and the outcome always the same. Alerts have the ids and times that the
// aggregator gave them, unless it had counted what is not in the recording.
//
// Nothing is known of tables, which firewalls report apart: rules of tables are not
// judged, nor the built-in alarms.
type Replay struct {
	core
	publish func(rule.Kind, *events.Alert)
	batches int
	began   int64 // time of the first message; ns on the stream's clock, as are the others
	latest  int64
	ticked  int64
}

// NewReplay returns a replay that hands alerts to publish, as they would have been
// published.
func NewReplay(file rule.File, maxKeys int, publish func(rule.Kind, *events.Alert)) (*Replay, error) {
	c, err := newCore(file.Rules, file.MaxFiring, maxKeys)
	if err != nil {
		return nil, err
	}
	return &Replay{core: c, publish: publish}, nil
}

// Take counts and judges the next message. An error concerns this message alone.
func (r *Replay) Take(m *recording.Message) error {
	at := m.Time.UnixNano()
	if r.batches++; r.batches == 1 {
		r.began, r.latest, r.ticked = at, at, at
	}
	r.latest = max(r.latest, at)
	r.pass(at)
	err := r.admit(m.Subject, m.Data, m.Time, strings.HasPrefix(m.Subject, events.SubjectSnapshots+"."))
	r.judge(r.count())
	if err != nil {
		return fmt.Errorf("refused a message on %q: %w", m.Subject, err)
	}
	return nil
}

// pass lets time pass as the aggregator's ticks do.
func (r *Replay) pass(to int64) {
	for to-r.ticked >= int64(tickInterval) {
		r.ticked += int64(tickInterval)
		if st := r.engine.Stats(); st.Pending+st.Firing+st.Held == 0 {
			r.ticked = to // nothing that time could change
		}
		r.judge(r.counter.Advance(r.ticked))
		r.tell(r.engine.Tick(r.counter.Now(), func(n int, s rule.Subject) (float64, bool) {
			if of := &r.engine.Rules()[n]; of.Track != rule.Table {
				return r.counted(of, s)
			}
			return 0, false
		}))
	}
}

func (r *Replay) judge(crossed []count.Crossing) {
	for i := range crossed {
		r.tell(r.observe(&crossed[i]))
	}
}

func (r *Replay) tell(transitions []rule.Transition) {
	for i := range transitions {
		r.publish(transitions[i].Kind, r.describe(&transitions[i]))
	}
}

// ReplaySummary is what a replay has seen.
type ReplaySummary struct {
	Batches   int             // messages, also those that were refused
	Events    uint64          // counted, those of dumps apart
	Span      time.Duration   // from the first message to the last
	Firing    int             // alerts that fire at the end
	Firewalls []count.Account // by name
}

// Summary tells of what was taken so far.
func (r *Replay) Summary() ReplaySummary {
	s := ReplaySummary{Batches: r.batches, Span: time.Duration(r.latest - r.began), Firing: r.engine.Stats().Firing, Firewalls: r.counter.Firewalls()}
	for i := range s.Firewalls {
		s.Events += s.Firewalls[i].Events
	}
	return s
}

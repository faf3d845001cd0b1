package aggregator

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// core counts batches, says what crossed a rule's threshold, and describes the alert:
// all of an aggregator that knows no bus and reads no clock. A [Replay] has nothing
// else.
type core struct {
	windows []time.Duration
	levels  []int // the rule of each of the counter's levels
	counter *count.Counter
	engine  *rule.Engine
	decoder events.Decoder
	batch   events.Batch
}

func newCore(rules []rule.Rule, maxFiring, maxKeys int) (c core, err error) {
	if c.engine, err = rule.NewEngine(rules, maxFiring); err != nil {
		return c, err
	}
	cfg := count.Config{Windows: slices.Clone(always), MaxKeys: maxKeys}
	for i := range rules {
		r := &rules[i]
		if r.Track == rule.Table {
			continue
		}
		level := levelOf(r)
		if level.Window > 0 {
			cfg.Windows = append(cfg.Windows, level.Window)
		}
		cfg.Levels = append(cfg.Levels, level)
		c.levels = append(c.levels, i)
	}
	slices.Sort(cfg.Windows)
	cfg.Windows = slices.Compact(cfg.Windows)
	c.windows = cfg.Windows
	c.counter, err = count.New(cfg)
	return c, err
}

// admit takes a batch of events, or of a snapshot, that stood on a subject at a time
// of the stream.
func (c *core) admit(subject string, data []byte, at time.Time, snapshot bool) error {
	root := events.SubjectEvents
	if snapshot {
		root = events.SubjectSnapshots
	}
	name, err := events.SubjectFirewall(subject, root)
	if err != nil {
		return err
	}
	if err := c.decoder.Decode(data, &c.batch); err != nil {
		c.counter.Refuse(name)
		return err
	}
	if c.batch.Firewall != name {
		// The server enforces who may publish on a subject; a payload may claim
		// anything.
		c.counter.Refuse(name)
		return fmt.Errorf("it says it is from %s", c.batch.Firewall)
	}
	if snapshot {
		return c.counter.AdmitSnapshot(name, &c.batch, at.UnixNano())
	}
	return c.counter.Admit(name, &c.batch, at.UnixNano())
}

// spreadEvents is from how many events on a second processor is worth waking: they take about 100 µs.
const spreadEvents = 1024

// count counts what was admitted, on as many processors as there are lanes when
// that is much. The outcome is the same.
func (c *core) count() []count.Crossing {
	var others sync.WaitGroup
	for lane := 1; lane < c.counter.Lanes(); lane++ {
		if c.counter.Queued() < spreadEvents {
			c.counter.Run(lane)
			continue
		}
		others.Go(func() { c.counter.Run(lane) })
	}
	c.counter.Run(0)
	others.Wait()
	return c.counter.Commit()
}

// observe tells the engine what has crossed a level. Its time is that of the batch
// that did it, on the stream's clock: the id of an alert is made of it, and two
// aggregators shall make the same.
func (c *core) observe(x *count.Crossing) []rule.Transition {
	subject := rule.Subject{Realm: x.Place.Realm, Firewall: x.Place.Firewall, Key: x.Key}
	return c.engine.Observe(c.levels[x.Level], subject, float64(x.Value), x.At)
}

// counted is the present value of a rule of addresses.
func (c *core) counted(r *rule.Rule, s rule.Subject) (float64, bool) {
	l := levelOf(r)
	v, known := c.counter.Value(l.Set, l.Scope, count.Place{Realm: s.Realm, Firewall: s.Firewall}, s.Key, r.Window())
	return float64(v), known
}

// describe makes an alert of a transition, with what the counts say at this moment.
func (c *core) describe(t *rule.Transition) *events.Alert {
	r, s := t.Rule, t.Subject
	al := &events.Alert{
		Head: events.Head{V: events.MessageVersion},
		ID:   t.ID, Rule: r.Name, State: events.Firing, Severity: r.Severity, Scope: s.Scope(), Realm: s.Realm, Key: keyText(s.Key),
		Track: r.Track, Metric: r.Metric, Value: t.Value, Count: r.Count, Seconds: r.Seconds, Peak: t.Peak,
		Started: t.Started / 1e6, Updated: t.Updated / 1e6,
	}
	if t.Kind == rule.Resolved {
		al.State = events.Resolved
	}
	place := count.Place{Realm: s.Realm, Firewall: s.Firewall}
	if r.Track == rule.Table {
		al.Lossy = c.counter.Lossy(place, riseSeconds*time.Second)
		if s.Firewall != "" {
			al.Firewalls = map[string]float64{s.Firewall: t.Value}
		}
		if r.Metric == rule.TablePercent {
			c.describeTable(al, place)
		}
	} else {
		l := levelOf(r)
		al.Lossy = c.counter.Lossy(place, max(r.Window(), time.Second))
		al.Firewalls = map[string]float64{}
		for fw, n := range c.counter.Shares(l.Set, s.Realm, s.Key, r.Window()) {
			if s.Firewall == "" || s.Firewall == fw {
				al.Firewalls[fw] = float64(n)
				acc, _ := c.counter.Account(fw)
				al.Approximate = al.Approximate || r.Metric == rule.Active && (acc.Approximate || acc.Short)
			}
		}
		al.Partial = al.State == events.Firing && c.counter.PartialSet(l.Set, l.Window)
		if al.State == events.Firing {
			c.describeSlots(al, &l, place, s.Key)
		}
		al.Peers, al.Ports, al.SampleSize = c.counter.Sample(l.Set.Track, place, s.Key, 5)
		window := r.Window()
		if window == 0 {
			window = always[0]
		}
		al.Unreplied = c.counter.UnrepliedShare(l.Set.Track, place, s.Key, window)
	}
	al.Text = text(al)
	return al
}

// describeSlots says when what was counted came.
func (c *core) describeSlots(al *events.Alert, l *count.Level, place count.Place, key netip.Prefix) {
	slots, end := c.counter.Slots(l.Set, l.Scope, place, key, l.Window)
	if slots != nil {
		al.Slots, al.SlotMS, al.SlotsEnd = slots, (l.Window / count.NumSlots).Milliseconds(), end/1e6
	}
}

// describeTable names the largest sources of a filling table: as many as somebody
// who relieves it goes through.
func (c *core) describeTable(al *events.Alert, place count.Place) {
	for _, row := range c.counter.Top(count.Set{Track: count.BySrc, Metric: count.Active}, place, 0, 20) {
		al.Peers = append(al.Peers, events.Share{Value: keyText(row.Key), Count: row.Value})
	}
}

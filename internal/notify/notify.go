package notify

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Config says whom to tell. An empty URL is nobody.
type Config struct {
	Alertmanager string        // its URL, such as http://127.0.0.1:9093
	Webhook      string        // a URL that takes POST
	Every        time.Duration // between repetitions; 0: DefaultEvery
	Log          *slog.Logger
	Registry     *prometheus.Registry // may be nil
}

const (
	// DefaultEvery is how often what fires is told again.
	DefaultEvery = time.Minute
	// MaxWaiting is how many alerts are kept at most. There cannot be more that fire,
	// but for the summary; resolved ones wait only until they are told.
	MaxWaiting = 10_000

	// gather is how long an alert waits for others before they are told together.
	gather = 100 * time.Millisecond
	// patience is how long the other side may take.
	patience = 10 * time.Second
	// again and atMost are the first and the longest pause before one that could not
	// be told is tried again.
	again  = time.Second
	atMost = 30 * time.Second
)

// Results of an attempt to tell, a label of ctfleet_notify_total.
const (
	resultOK     = "ok"
	resultFailed = "failed"
)

// Notifier keeps what is to be told to each target. Put may be called by any
// goroutine.
type Notifier struct {
	targets []*target
	dropped prometheus.Counter
}

// target is one that is told.
type target struct {
	name   string // alertmanager or webhook
	url    string
	body   func(alerts []events.Alert, now time.Time, every time.Duration) ([]byte, error)
	every  time.Duration
	muted  func(*events.Alert) bool
	client http.Client
	log    *slog.Logger
	sent   *prometheus.CounterVec

	mu      sync.Mutex
	firing  map[string]events.Alert // by id
	changed map[string]events.Alert // what was not told yet
	heard   map[string]bool         // that these fire was told, and not yet that they do no more
	wake    chan struct{}
}

// Check returns why nobody could be told: a URL that is none.
func Check(alertmanager, webhook string) error {
	_, err := urlOf("alertmanager", alertmanager)
	if err == nil {
		_, err = urlOf("webhook", webhook)
	}
	return err
}

// urlOf reads the URL of a target; nil where there is none.
func urlOf(target, text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("--%s: not an http or https URL", target) // which may hold a password
	}
	return u, nil
}

// New returns a notifier. A URL that is none is an error.
func New(cfg Config) (*Notifier, error) {
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	n := &Notifier{dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_notify_dropped_total", Help: "Alerts that nobody was told of, since too many waited."})}
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_notify_total", Help: "Attempts to tell of alerts, by target and result."}, []string{"target", "result"})
	for _, t := range []struct {
		name, url, path string
		body            func([]events.Alert, time.Time, time.Duration) ([]byte, error)
	}{{"alertmanager", cfg.Alertmanager, "/api/v2/alerts", alertmanagerBody}, {"webhook", cfg.Webhook, "", webhookBody}} {
		u, err := urlOf(t.name, t.url)
		if err != nil {
			return nil, err
		}
		if u == nil {
			continue
		}
		if t.path != "" {
			u = u.JoinPath(t.path)
		}
		for _, result := range []string{resultOK, resultFailed} {
			sent.WithLabelValues(t.name, result) // from 0 on: who watches for a rise does not see the first otherwise
		}
		n.targets = append(n.targets, &target{
			name: t.name, url: u.String(), body: t.body, every: cfg.Every, muted: func(*events.Alert) bool { return false }, log: cfg.Log.With("target", t.name), sent: sent,
			client: http.Client{Timeout: patience}, firing: map[string]events.Alert{}, changed: map[string]events.Alert{}, heard: map[string]bool{}, wake: make(chan struct{}, 1),
		})
	}
	if cfg.Registry != nil {
		cfg.Registry.MustRegister(n.dropped, sent)
	}
	return n, nil
}

// Idle reports whether there is nobody to tell.
func (n *Notifier) Idle() bool { return len(n.targets) == 0 }

// Mute has a function say of which alerts nobody is told for now; before Run. What fires
// is told when it is muted no more, and that it is over if it was told that it fires.
// What begins and ends meanwhile is never told.
func (n *Notifier) Mute(muted func(*events.Alert) bool) {
	for _, t := range n.targets {
		t.muted = muted
	}
}

// Wake tells at once what is muted no more.
func (n *Notifier) Wake() {
	for _, t := range n.targets {
		t.rouse()
	}
}

// Put takes an alert as it is published: firing, or resolved.
func (n *Notifier) Put(a *events.Alert) {
	for _, t := range n.targets {
		if !t.put(a) {
			n.dropped.Inc()
		}
	}
}

func (t *target) put(a *events.Alert) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, known := t.firing[a.ID]
	if a.State == events.Firing {
		if len(t.firing) >= MaxWaiting && !known {
			return false
		}
		t.firing[a.ID] = *a
		if known {
			return true // an update: the next repetition has it
		}
	} else {
		delete(t.firing, a.ID)
		if known && !t.heard[a.ID] && t.muted(a) {
			delete(t.changed, a.ID)
			return true
		}
	}
	if len(t.changed) >= 2*MaxWaiting {
		delete(t.heard, a.ID) // or it would be remembered for ever
		return false
	}
	t.changed[a.ID] = *a
	t.rouse()
	return true
}

func (t *target) rouse() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run tells until ctx ends. What changed a moment before is told still.
func (n *Notifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, t := range n.targets {
		wg.Go(func() { t.run(ctx) })
	}
	wg.Wait()
	return nil
}

func (t *target) run(ctx context.Context) {
	tick := time.NewTicker(t.every)
	defer tick.Stop()
	for first := true; ; first = false {
		repeat := first // the heartbeat begins at once
		if !first {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				repeat = true
			case <-t.wake:
				daemon.Sleep(ctx, gather)
			}
		}
		t.tell(ctx, repeat)
	}
}

// tell tells what has changed, or all that fires, until the other side takes it.
func (t *target) tell(ctx context.Context, all bool) {
	pause := again
	for {
		changed, alerts := t.collect(all)
		if len(alerts) == 0 && !all {
			return
		}
		now := time.Now()
		body, err := t.body(alerts, now, t.every)
		if err == nil {
			// Also when we are about to stop: it is bounded, and the last chance.
			err = t.post(context.WithoutCancel(ctx), body)
		}
		if err == nil {
			t.sent.WithLabelValues(t.name, resultOK).Inc()
			t.told(changed, alerts)
			return
		}
		t.sent.WithLabelValues(t.name, resultFailed).Inc()
		t.log.Warn("cannot tell of alerts, retrying", "alerts", len(alerts), "in", pause, "error", err)
		if !daemon.Sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, atMost)
	}
}

// collect returns what has changed by id, and what is to be told.
func (t *target) collect(all bool) (changed map[string]events.Alert, alerts []events.Alert) {
	t.mu.Lock()
	defer t.mu.Unlock()
	muted := func(_ string, a events.Alert) bool { return t.muted(&a) }
	changed = maps.Clone(t.changed)
	maps.DeleteFunc(changed, muted)
	told := maps.Clone(changed)
	for id, a := range t.firing {
		if _, waits := told[id]; waits || all && !t.muted(&a) {
			told[id] = a // as it is now: it may have waited for long
			// From here on it is told: if it ends while it is muted, that is told too.
			t.heard[id] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(told)) {
		alerts = append(alerts, told[id])
	}
	return changed, alerts
}

// told forgets what was told, unless it has changed again meanwhile.
func (t *target) told(changed map[string]events.Alert, alerts []events.Alert) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range alerts {
		if a := &alerts[i]; a.State != events.Firing {
			delete(t.heard, a.ID)
		}
	}
	for id, a := range changed {
		if now := t.changed[id]; now.State == a.State && now.Updated == a.Updated {
			delete(t.changed, id)
		}
	}
}

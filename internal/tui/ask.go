package tui

import (
	"context"
	"time"

	tea "charm.land/bubbletea/v2"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// patience is how long an answer is waited for.
const patience = 4 * time.Second

// addressEvery is how often an address is asked about at most: the centre reads an
// hour of two streams for it.
const addressEvery = 3 * time.Second

// every is the time between two rounds.
func (m *model) every() time.Duration {
	if m.subject != nil {
		return max(m.cfg.Every, addressEvery)
	}
	return m.cfg.Every
}

// answer is what one round of questions brought.
type answer struct {
	round   int
	at      time.Time
	err     error // the first one
	head    bool  // fleet and alerts are answers, whatever became of the rest
	query   events.TopQuery
	fleet   events.FirewallsReply
	alerts  events.AlertsReply
	top     *events.TopReply     // nil: not asked for, since the page is an address's
	address *events.AddressReply // nil: not asked for
}

// ask begins a round of questions. One that still runs is given up: what it asks is
// no longer of interest.
func (m *model) ask() tea.Cmd {
	m.giveUp()
	ctx, cancel := context.WithTimeout(m.ctx, patience)
	m.giveUp = cancel
	m.round++
	m.waiting, m.due = true, m.now.Add(m.every())
	a := &answer{round: m.round, query: m.query}
	subject, ask := m.subject, m.cfg.Ask
	return func() tea.Msg {
		defer cancel()
		// One that fails takes no other with it.
		var head, g errgroup.Group
		head.Go(func() error { return ask(ctx, events.QueryFirewalls, &events.FirewallsQuery{}, &a.fleet) })
		head.Go(func() error { return ask(ctx, events.QueryAlerts, &events.AlertsQuery{}, &a.alerts) })
		if subject == nil {
			a.top = &events.TopReply{}
			g.Go(func() error { return ask(ctx, events.QueryTop, &a.query, a.top) })
		} else {
			a.address = &events.AddressReply{}
			g.Go(func() error { return ask(ctx, events.QueryAddress, subject, a.address) })
		}
		a.err = head.Wait()
		a.head = a.err == nil
		if err := g.Wait(); a.err == nil {
			a.err = err
		}
		a.at = time.Now()
		return a
	}
}

// take makes an answer the picture.
func (m *model) take(a *answer) {
	if a.round != m.round {
		return // to what was asked before
	}
	m.giveUp()
	m.waiting = false
	m.now = later(m.now, a.at)
	if a.head {
		m.fleet, m.alerts = a.fleet.Firewalls, a.alerts.Alerts
		m.noteLoss()
	}
	if a.err != nil {
		if m.err == nil {
			m.failed = m.now
		}
		m.err = a.err
		return
	}
	m.err = nil
	m.answered = a.at
	if a.address != nil {
		m.address = a.address
		return
	}
	m.top, m.shown = a.top, a.query
	if len(a.top.Windows) > 0 {
		m.windows = a.top.Windows
	}
	m.arrange()
}

// loss is what a firewall had lost by an answer, and when it became more.
type loss struct {
	lost, grown uint64
	at          time.Time
}

// noteLoss compares the accounts of loss, which only grow, with those before.
func (m *model) noteLoss() {
	for i := range m.fleet {
		f := &m.fleet[i]
		sum := f.Lost + f.Missing
		before, known := m.losses[f.Firewall]
		switch {
		case !known || sum < before.lost: // another run of its producer, or of the centre
			before = loss{lost: sum}
		case sum > before.lost:
			before = loss{sum, sum - before.lost, m.answered}
		}
		m.losses[f.Firewall] = before
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

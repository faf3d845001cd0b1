package policy

import (
	"errors"
	"fmt"

	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// maxContributors is how many sources of one flood are acted upon, and
	// leastShare which part of it each must have: a tenth of the sampled events.
	// A flood from everywhere has no such source.
	maxContributors = 5
	leastShare      = 0.1
)

// targets says whose entries an alert is about, as copies of d.
func targets(a *events.Alert, p Policy, d Decision) ([]Decision, error) {
	if (p.Action == ActionRelieve) != (a.Metric == events.MetricTablePercent) {
		if p.Action == ActionRelieve {
			return nil, fmt.Errorf("%q is for alerts about a table's fill, this one is about %s", p.Action, a.Metric)
		}
		return nil, fmt.Errorf("an alert about a table names no address: the action for it is %q", ActionRelieve)
	}
	switch {
	case p.Action == ActionRelieve:
		return relief(a, p, d)
	case a.Track == "by_dst" && p.Unanswered == UnansweredRefuse:
		return contributors(a, d)
	case a.Track != "by_src" && a.Track != "by_dst":
		return nil, errors.New("the alert names no address")
	}
	address, err := events.ParsePrefix(a.Key)
	if err != nil {
		return nil, fmt.Errorf("the alert's key is no address: %w", err)
	}
	d.Address = address
	if a.Track == "by_dst" {
		d.By = events.ByDst // with unanswered: delete, only what nobody answered goes
	}
	return []Decision{d}, nil
}

// contributors are the sources of most of what goes to a destination: the victim
// itself is not acted upon.
func contributors(a *events.Alert, d Decision) ([]Decision, error) {
	victim, err := events.ParsePrefix(a.Key)
	if err != nil {
		return nil, fmt.Errorf("the alert's key is no address: %w", err)
	}
	if a.SampleSize == 0 {
		return nil, errors.New("the alert does not say of how many flows its sources are a sample, and the victim is not flushed")
	}
	var out []Decision
	for _, peer := range a.Peers {
		source, err := events.ParsePrefix(peer.Value)
		if err != nil || source == victim || float64(peer.Count) < leastShare*float64(a.SampleSize) || len(out) == maxContributors {
			continue
		}
		d := d
		d.Address = source
		d.Reason = fmt.Sprintf("%s; %s made %d of %d sampled flows", a.Text, peer.Value, peer.Count, a.SampleSize)
		if d.Action == ActionFlush {
			d.Towards = victim
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, errors.New("no source makes a tenth of it, and the victim is not flushed")
	}
	return out, nil
}

// relief are the largest sources of a table that is too full, the largest first.
func relief(a *events.Alert, p Policy, d Decision) ([]Decision, error) {
	if d.Mode == Approve {
		return nil, fmt.Errorf("%q goes step by step and cannot wait for a person: its mode must be %q or %q", p.Action, Observe, Enforce)
	}
	var out []Decision
	for _, peer := range a.Peers {
		d := d
		var err error
		if d.Address, err = events.ParsePrefix(peer.Value); err != nil {
			continue
		}
		d.Unanswered, d.UntilPercent = true, p.UntilPercent
		d.Reason = fmt.Sprintf("%s; %s holds %d flows", a.Text, events.FormatPrefix(d.Address), peer.Count)
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, errors.New("the alert names no source that holds flows")
	}
	return out, nil
}

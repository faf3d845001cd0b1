package producer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// openBlocks returns what blocks, nil where that is not allowed: no socket of
// nftables is opened then.
func (o *Options) openBlocks(ns *host.Namespace) (*block.Blocker, error) {
	if !o.AllowBlock {
		return nil, nil
	}
	sets, err := o.blockSets()
	if err != nil {
		return nil, err
	}
	b, err := block.New(block.Config{Namespace: ns, Sets: sets})
	if err != nil {
		return nil, fmt.Errorf("--allow-block: %w", err)
	}
	return b, nil
}

// block carries out a block, if the guard allows it: first the claim, then the
// block, then, where it is asked for, the flush of what is there. In the other order,
// what was flushed would be back before it is blocked.
func (p *Producer) block(req bus.Request, c *events.Command) (*events.Receipt, conntrack.Match) {
	r, verdict, m := p.judge(req, c)
	// Either side: an entry that a server's answers make has the server as its
	// source.
	m.By = events.ByEither
	if r.Error != "" {
		return r, m
	}
	// No prefix contains anybody who is spared, so that the sources say who else has
	// part in an entry: what such a one has opened to the blocked address stays.
	// Where he is the destination it goes. He may be this host, with the services
	// that it forwards.
	opt := conntrack.FlushOptions{DryRun: c.DryRun, Most: c.Most}
	if c.Flush {
		opt.Keep = p.guard.Keep(verdict, events.BySrc)
	}
	p.onTable(r, func(ctx context.Context, conn *conntrack.Conn) error {
		if ok, err := p.claim(ctx, conn, r, verdict, c, m); !ok {
			return err
		}
		if !c.DryRun {
			until, err := p.addBlocks(m.Prefixes, time.Duration(c.BlockS)*time.Second)
			if err != nil {
				return err
			}
			p.metrics.blocks.Add(float64(len(m.Prefixes)))
			r.BlockedUntil = &until
			if !c.Flush {
				return nil
			}
		}
		_, err := p.scan(ctx, conn, r, m, opt)
		return err
	})
	return r, m
}

// claim reports whether what the command says holds in this table, if it has to. It
// looks at what the address opened: many answered flows towards a server do not make
// it one who should be blocked.
func (p *Producer) claim(ctx context.Context, conn *conntrack.Conn, r *events.Receipt, v guard.Verdict, c *events.Command, m conntrack.Match) (ok bool, err error) {
	var claim conntrack.Claim
	if claim.Least, claim.Answered = p.guard.Claim(v, c); claim == (conntrack.Claim{}) {
		return true, nil
	}
	m.By = events.BySrc
	res, err := p.scan(ctx, conn, r, m, conntrack.FlushOptions{DryRun: true, Claim: claim, Keep: p.guard.Keep(v, events.BySrc)})
	if err != nil || res.Holds {
		return err == nil, err
	}
	if !c.DryRun {
		p.guard.GiveBack(v)
	}
	if len(r.Refused) == 0 { // there is nothing here that could have been refused
		r.Refused = append(r.Refused, events.Refusal{Reason: conntrack.RefusedFew})
		return false, fmt.Errorf("this table holds no entry that %s opened", events.FormatPrefix(m.Prefixes[0]))
	}
	return false, nil
}

// addBlocks blocks all of the prefixes, or none of those that were not blocked
// before. It returns when the first of them ends, Unix ms, 0 for never.
func (p *Producer) addBlocks(prefixes []netip.Prefix, d time.Duration) (until int64, err error) {
	var before []block.Entry
	if len(prefixes) > 1 { // one cannot be blocked in part
		if before, err = p.blocks.List(); err != nil {
			return 0, err
		}
	}
	left := block.Forever
	for i, prefix := range prefixes {
		e, err := p.blocks.Add(prefix, d)
		if err != nil {
			return 0, errors.Join(err, p.takeBack(prefixes[:i], before))
		}
		left = min(left, e.Left)
	}
	return endOf(left), nil
}

// endOf is when a block ends that has so much left, Unix ms of our wall clock, 0 for
// never.
func endOf(left time.Duration) int64 {
	if left == block.Forever {
		return 0
	}
	return time.Now().Add(left).UnixMilli()
}

// takeBack ends the blocks of prefixes that were not blocked before. What is
// prolonged stays so.
func (p *Producer) takeBack(prefixes []netip.Prefix, before []block.Entry) error {
	var errs []error
	for _, prefix := range prefixes {
		if slices.ContainsFunc(before, func(e block.Entry) bool { return e.Prefix == prefix }) {
			continue
		}
		if _, err := p.blocks.Delete(prefix); err != nil {
			errs = append(errs, fmt.Errorf("take back: %w", err))
		}
		if len(p.opt.BlockSet) == 0 {
			continue
		}
		// An operator's interval set holds each address once: what was there before
		// has gone with it.
		for _, e := range before {
			if e.Prefix.Overlaps(prefix) && e.Left >= block.MinFor {
				if _, err := p.blocks.Add(e.Prefix, min(e.Left, block.MaxFor)); err != nil {
					errs = append(errs, fmt.Errorf("take back: %w", err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// unblock ends blocks, if the guard allows it. Where there is none that is success.
// It matches no entries that could be counted again later.
func (p *Producer) unblock(req bus.Request, c *events.Command) (*events.Receipt, conntrack.Match) {
	r, _, m := p.judge(req, c)
	if r.Error != "" {
		return r, conntrack.Match{}
	}
	var err error
	if c.DryRun {
		r.Unblocked, err = p.countBlocks(m.Prefixes)
	} else {
		err = p.endBlocks(r, m.Prefixes)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r, conntrack.Match{}
}

// countBlocks counts the prefixes of which endBlocks would end a block.
func (p *Producer) countBlocks(prefixes []netip.Prefix) (n uint64, err error) {
	var errs []error
	for _, prefix := range prefixes {
		found, err := p.blocks.Has(prefix)
		if found {
			n++
		}
		errs = append(errs, err)
	}
	return n, errors.Join(errs...)
}

func (p *Producer) endBlocks(r *events.Receipt, prefixes []netip.Prefix) error {
	var errs []error
	for _, prefix := range prefixes {
		found, err := p.blocks.Delete(prefix)
		if found {
			r.Unblocked++
		}
		errs = append(errs, err)
	}
	list, err := p.blocks.List()
	if left := stillBlocked(list, prefixes); left > 0 {
		end := endOf(left)
		r.BlockedUntil = &end
	}
	return errors.Join(append(errs, err)...)
}

// stillBlocked is for how long all of the prefixes stay blocked, by wider ones.
func stillBlocked(list []block.Entry, prefixes []netip.Prefix) time.Duration {
	all := block.Forever
	for _, prefix := range prefixes {
		var left time.Duration
		for _, e := range list {
			if e.Prefix.Bits() <= prefix.Bits() && e.Prefix.Contains(prefix.Addr()) {
				left = max(left, e.Left)
			}
		}
		all = min(all, left)
	}
	return all
}

// status is the answer to a status command: the health of this moment, and what is
// blocked.
func (p *Producer) status() *events.Health {
	h := p.health(false)
	if p.blocks == nil {
		return h
	}
	list, err := p.blocks.List()
	if err != nil {
		h.Problems = append(slices.Clone(h.Problems), fmt.Sprintf("What is blocked cannot be told: %v.", err))
		return h
	}
	h.Blocked, h.BlockedMore = blocked(list)
	return h
}

// blocked is a list of blocks as a message has it: where there are too many, those
// that end last.
func blocked(list []block.Entry) (out []events.Blocked, more uint64) {
	if len(list) > events.MaxBlocked {
		slices.SortFunc(list, func(a, b block.Entry) int {
			return cmp.Or(cmp.Compare(b.Left, a.Left), a.Prefix.Compare(b.Prefix))
		})
		more = uint64(len(list) - events.MaxBlocked)
		list = list[:events.MaxBlocked]
		slices.SortFunc(list, func(a, b block.Entry) int { return a.Prefix.Compare(b.Prefix) })
	}
	for _, e := range list {
		left := -1.0 // no end
		if e.Left != block.Forever {
			left = float64(e.Left.Milliseconds()) / 1000
		}
		out = append(out, events.Blocked{Prefix: events.FormatPrefix(e.Prefix), LeftS: left})
	}
	return out, more
}

// clearBlocks ends all blocks, if the operator wants that of a producer that stops.
func (p *Producer) clearBlocks() error {
	if p.blocks == nil || !p.opt.ClearBlocks {
		return nil
	}
	return p.blocks.Clear()
}

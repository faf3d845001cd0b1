package producer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// readRecording publishes one firewall's batches of a recording as if they happened
// now, as far apart as they were. It returns when the recording has ended and the bus
// has all of it.
func (p *Producer) readRecording(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, failed := scan(ctx, p.input, 16, func() (func(*recording.Message) error, error) {
		r, err := recording.NewReader(p.input)
		return func(m *recording.Message) error {
			err := r.Next(m)
			m.Data = slices.Clone(m.Data)
			return err
		}, err
	})
	f := &replayFeed{feed: p.newFeed(ctx), name: p.opt.InputFirewall, heard: map[string]*heard{}}
	return f.ended(ctx, f.run(ctx, messages), failed, f.end)
}

// replayFeed is what readRecording knows of its input.
type replayFeed struct {
	feed
	name    string            // whose batches are fed; "": of the first one
	heard   map[string]*heard // by subject
	decoder events.Decoder
	batch   events.Batch
	rows    []events.Event
	// The recorded epoch that the events are of, its run, and whether it was begun here
	// as well.
	epoch uint32
	boot  events.Boot
	begun bool
	// Of the first batch: its time in the stream, and ours.
	stream, mono int64
}

// heard is what was read of one subject.
type heard struct {
	boot            events.Boot
	seq, next, lost uint64
}

func (f *replayFeed) run(ctx context.Context, messages <-chan recording.Message) error {
	for m := range messages {
		if err := errors.Join(f.take(ctx, &m), f.failed); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// take publishes a message when its time has come.
func (f *replayFeed) take(ctx context.Context, m *recording.Message) error {
	root := events.SubjectEvents
	if strings.HasPrefix(m.Subject, events.SubjectSnapshots+".") {
		root = events.SubjectSnapshots
	}
	name, err := events.SubjectFirewall(m.Subject, root)
	if err == nil {
		err = f.decoder.Decode(m.Data, &f.batch)
	}
	if err != nil {
		f.p.account.Undecodable.Add(1)
		f.p.throttle.Warn(f.p.log, "skipped a message that cannot be read", "subject", m.Subject, "error", err)
		return nil
	}
	switch {
	case f.name == "":
		f.name = name
	case f.name != name && f.p.opt.InputFirewall == "":
		return fmt.Errorf("the recording is of several firewalls, %s and %s among them: --input-firewall says which", f.name, name)
	}
	if f.name != name || !f.first(m.Subject, root == events.SubjectEvents) {
		return nil
	}
	at := m.Time.UnixNano()
	if f.mono == 0 {
		f.stream, f.mono = at, conntrack.Monotonic()
	}
	now := f.mono + at - f.stream
	if !f.until(ctx, now) {
		return nil
	}
	// When they happened: as long before they were sent as it was then.
	f.rows = f.rows[:0]
	var e events.Event
	for r := f.batch.Events(); r.Next(&e); {
		e.Time += now - f.batch.Sent
		f.rows = append(f.rows, e)
	}
	if err := f.turn(ctx); err != nil {
		return err
	}
	if root == events.SubjectSnapshots {
		return f.dump(ctx)
	}
	f.happened(f.rows...)
	f.flush() // a batch stays one: events of another may be older
	return nil
}

// first reports whether the batch at hand did not come before, and counts what is
// missing in front of it. Where it was lost the recording does not say.
func (f *replayFeed) first(subject string, live bool) bool {
	b := &f.batch
	h := f.heard[subject]
	if h == nil || h.boot != b.Boot {
		h = &heard{boot: b.Boot, next: b.Total, lost: b.Lost}
		f.heard[subject] = h
	} else if b.Seq <= h.seq {
		return false
	}
	if live {
		f.p.account.LostSocket.Add(b.Total - min(b.Total, h.next) + b.Lost - min(b.Lost, h.lost))
	}
	h.seq, h.next, h.lost = b.Seq, b.Total+uint64(b.Count), max(h.lost, b.Lost)
	return true
}

// turn begins an epoch where one begins in the recording: with its first batch,
// whether that is of the dump or of events meanwhile, which the dump leaves out. Of
// the one that the recording begins within, the beginning of the dump may be to come.
func (f *replayFeed) turn(ctx context.Context) error {
	b := &f.batch
	starts := b.Phase&events.SnapshotBegin != 0
	switch {
	case f.boot != b.Boot:
		f.boot, f.epoch, f.begun = b.Boot, b.Epoch, false
		if err := f.giveUp(ctx); err != nil {
			return err
		}
	case b.Epoch > f.epoch:
		f.epoch, f.begun, starts = b.Epoch, false, true
	}
	if starts && !f.begun && b.Epoch == f.epoch {
		f.begin()
		f.begun = true
	}
	return nil
}

// dump takes a batch of a snapshot. One whose beginning is not in the recording is of
// no use.
func (f *replayFeed) dump(ctx context.Context) error {
	phase := f.batch.Phase
	if f.listing == nil || f.batch.Epoch != f.epoch {
		return nil
	}
	if phase&events.SnapshotAbort != 0 {
		return f.giveUp(ctx)
	}
	for i := range f.rows {
		if err := f.row(ctx, &f.rows[i]); err != nil {
			return err
		}
	}
	if phase&events.SnapshotEnd != 0 {
		return f.complete(ctx)
	}
	return nil
}

// end: a recording may end within a dump.
func (f *replayFeed) end() error {
	if f.mono == 0 && f.p.opt.InputFirewall != "" {
		return fmt.Errorf("the recording has no batch of %s", f.p.opt.InputFirewall)
	}
	return f.giveUp(context.Background())
}

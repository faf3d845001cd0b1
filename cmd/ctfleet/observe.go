package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type observeCmd struct {
	bus.Flags
	observe.Filter
	Firewall []string      `placeholder:"NAME" help:"Only what this firewall sends; may be repeated."`
	Last     int           `short:"n" placeholder:"N" help:"Print the last N events that the bus keeps, then end."`
	Since    time.Duration `placeholder:"DURATION" help:"Print what happened within this time, then end."`
	Follow   bool          `short:"f" help:"Go on with what comes, after --last or --since."`
	Output   string        `short:"o" enum:"human,json,raw" default:"human" help:"human, json (one object per event), or raw: a recording for ctfleet replay, of whole batches."`
}

// maxLast bounds what is kept while the last events are looked for.
const maxLast = 100_000

// validate reports flags that do not go together.
func (c *observeCmd) validate() error {
	for _, name := range c.Firewall {
		if err := events.CheckFirewall(name); err != nil {
			return err
		}
	}
	switch {
	case c.Last < 0 || c.Last > maxLast:
		return fmt.Errorf("--last: %d is not within 1 to %d", c.Last, maxLast)
	case c.Since < 0:
		return fmt.Errorf("--since: must not be negative, is %s", c.Since)
	case c.Last > 0 && c.Since > 0:
		return fmt.Errorf("--last and --since: one of them")
	case c.Follow && c.Last == 0 && c.Since == 0:
		return fmt.Errorf("--follow is nothing without --last or --since: without them only what comes is printed")
	case c.Output != "raw":
		if err := c.Compile(); err != nil {
			return fmt.Errorf("--%w", err)
		}
		return nil
	case c.Last > 0:
		return fmt.Errorf("-o raw records batches: say --since how far back, --last counts events")
	case !c.Empty():
		return fmt.Errorf("-o raw records whole batches: only --firewall can narrow it")
	case interactive(os.Stdout):
		return fmt.Errorf("-o raw writes bytes that are nothing for a terminal: > FILE")
	}
	return nil
}

func (c *observeCmd) Run(ctx context.Context) error {
	if err := c.validate(); err != nil {
		return &exitError{2, err}
	}
	conn, err := (&client{Flags: c.Flags}).connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	streams := []string{bus.StreamEvents}
	if c.Output == "raw" || slices.Contains(c.Type, "existing") {
		streams = append(streams, bus.StreamSnapshots)
	}
	o := &observer{cmd: c, conn: conn, streams: streams, watch: newLossWatch(), seen: map[string]mark{}}
	var now time.Time // the server's
	for _, s := range streams {
		st, err := conn.State(ctx, s) // silence must mean that nothing happens
		if err != nil {
			return quiet(ctx, err)
		}
		now = st.Now
	}
	if err := o.open(); err != nil {
		return err
	}
	switch {
	case c.Last > 0:
		err = o.last(ctx, now)
	case c.Since > 0:
		err = o.past(ctx, now.Add(-c.Since), o.show)
	}
	if err == nil && (c.Follow || c.Last == 0 && c.Since == 0) {
		err = o.live(ctx)
	}
	if err = quiet(ctx, err); err == nil {
		err = o.close()
	}
	return err
}

// quiet is err, unless it is the operator's own wish to stop.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// observer reads streams and shows what it finds.
type observer struct {
	cmd     *observeCmd
	conn    *bus.Conn
	streams []string
	watch   *lossWatch
	seen    map[string]mark // by stream: what the past ended with

	out     *bufio.Writer
	record  *recording.Writer
	batches int
	decoder events.Decoder
	batch   events.Batch
	err     error // of the output
}

// mark is a message of a stream.
type mark struct {
	seq uint64
	at  time.Time
}

func (o *observer) open() (err error) {
	o.out = bufio.NewWriterSize(os.Stdout, 64<<10)
	if o.cmd.Output == "raw" {
		o.record, err = recording.NewWriter(os.Stdout)
	}
	return err
}

func (o *observer) close() error {
	if o.record != nil && o.err == nil {
		o.err = o.record.Flush()
		complain("recorded %d batches", o.batches)
	}
	return cmp.Or(o.err, o.out.Flush())
}

// sent is a message with the stream that it comes from.
type sent struct {
	bus.Msg
	stream string
}

// wanted takes only what the firewalls asked for sent. Their names stand in the
// subject.
func (o *observer) wanted(m *sent) bool {
	root := events.SubjectEvents
	if m.stream == bus.StreamSnapshots {
		root = events.SubjectSnapshots
	}
	name, err := events.SubjectFirewall(m.Subject, root)
	return err == nil && (len(o.cmd.Firewall) == 0 || slices.Contains(o.cmd.Firewall, name))
}

// filter has the server send less, where one firewall is asked for.
func (o *observer) filter(stream string) string {
	switch {
	case len(o.cmd.Firewall) != 1:
		return ""
	case stream == bus.StreamSnapshots:
		return events.SnapshotsSubject(o.cmd.Firewall[0])
	}
	return events.EventsSubject(o.cmd.Firewall[0])
}

// past calls fn for all that the streams hold since begin, the zero time for all that
// they keep, in the order of their time.
func (o *observer) past(ctx context.Context, begin time.Time, fn func(*sent)) error {
	g, ctx := errgroup.WithContext(ctx)
	heads := make([]chan *sent, len(o.streams))
	for i, stream := range o.streams {
		heads[i] = make(chan *sent, 64)
		g.Go(func() error {
			defer close(heads[i])
			return o.conn.Read(ctx, stream, bus.FollowFrom{Time: begin, All: begin.IsZero(), Filter: o.filter(stream)}, func(m bus.Msg) {
				select {
				case heads[i] <- &sent{m, stream}:
				case <-ctx.Done():
				}
			})
		})
	}
	next := make([]*sent, len(heads))
	for i := range heads {
		next[i] = <-heads[i]
	}
	for {
		first := -1
		for i, m := range next {
			if m != nil && (first < 0 || m.Time.Before(next[first].Time)) {
				first = i
			}
		}
		if first < 0 {
			break
		}
		m := next[first]
		o.seen[m.stream] = mark{m.Seq, m.Time}
		if o.wanted(m) && o.err == nil {
			fn(m)
		}
		next[first] = <-heads[first]
	}
	for _, stream := range o.streams {
		if _, ok := o.seen[stream]; !ok {
			o.seen[stream] = mark{0, begin}
		}
	}
	return cmp.Or(g.Wait(), o.err)
}

// live shows what comes, until ctx ends.
func (o *observer) live(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	arrived := make(chan *sent, 256)
	for _, stream := range o.streams {
		last := o.seen[stream]
		g.Go(func() error {
			return o.conn.Follow(ctx, stream, bus.FollowFrom{After: last.seq, Time: last.at, Filter: o.filter(stream)}, func(m bus.Msg) {
				select {
				case arrived <- &sent{m, stream}:
				case <-ctx.Done():
				}
			})
		})
	}
	g.Go(func() error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return o.err
			case <-tick.C:
				if o.record != nil && o.err == nil {
					o.err = o.record.Flush()
				}
			case m := <-arrived:
				if m.stream == bus.StreamEvents {
					o.watch.lag(m.Pending+uint64(len(arrived)), time.Now())
				}
				if o.wanted(m) {
					o.show(m)
				}
			}
			if o.err != nil {
				return o.err
			}
		}
	})
	return g.Wait()
}

// show prints or records a batch.
func (o *observer) show(m *sent) {
	if o.record != nil {
		// Also what we cannot read: a recording is what was there.
		o.err = o.record.Write(recording.Message{Time: m.Time, Subject: m.Subject, Data: m.Data})
		o.batches++
	}
	o.each(m, func(e *observe.Event) {
		if o.record == nil && o.err == nil {
			o.err = printEvent(o.out, e, o.cmd.Output)
		}
	})
	if o.record == nil && o.err == nil {
		o.err = o.out.Flush()
	}
}

// each calls fn for each event of a batch that is asked for.
func (o *observer) each(m *sent, fn func(*observe.Event)) {
	if err := o.decoder.Decode(m.Data, &o.batch); err != nil {
		complain("refused a message on %q: %v", m.Subject, err)
		return
	}
	if m.stream == bus.StreamEvents && !o.watch.take(&o.batch) {
		return // it came before
	}
	if o.record != nil {
		return
	}
	e := observe.Event{Firewall: o.batch.Firewall, Realm: o.batch.Realm}
	for r := o.batch.Events(); r.Next(&e.Event); {
		if o.cmd.Match(&e.Event) {
			e.At = observe.When(&o.batch, &e.Event, m.Time)
			fn(&e)
		}
	}
}

// spans are how far back the last events are looked for, one after the other.
var spans = []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute, 0}

// last shows the last events. The stream is read from ever farther back, until there
// are enough of them.
func (o *observer) last(ctx context.Context, now time.Time) error {
	var ring []observe.Event
	var n int
	for _, span := range spans {
		ring, n, o.watch = ring[:0], 0, newLossWatch()
		begin := time.Time{}
		if span > 0 {
			begin = now.Add(-span)
		}
		err := o.past(ctx, begin, func(m *sent) {
			o.each(m, func(e *observe.Event) {
				if len(ring) < o.cmd.Last {
					ring = append(ring, *e)
				} else {
					ring[n%o.cmd.Last] = *e
				}
				n++
			})
		})
		if err != nil {
			return err
		}
		if n >= o.cmd.Last {
			break
		}
	}
	for i := range ring {
		at := i
		if n > len(ring) {
			at = (n + i) % len(ring)
		}
		if err := printEvent(o.out, &ring[at], o.cmd.Output); err != nil {
			return err
		}
	}
	return o.out.Flush()
}

package demo

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// packed is a recording (see internal/recording) of this very show in the lab, with a
// responder that only simulated, so that the tables in it are as if there was none:
// three firewalls, ordinary traffic, and after four seconds the attack through two of
// them. Made as root with
//
//	go test ./internal/demo -run TestRecord -record
//
//go:embed recording.gz
var packed []byte

// recorded is the stage where the lab cannot be built. The recording is played to the
// bus again and again, as fast as it happened, by the producers that replay files.
type recorded struct {
	file  string
	begun chan struct{} // a token for each time that it begins

	mu        sync.Mutex
	producers []*producer.Producer // of the pass that is being played
}

func newRecorded() (stage, error) {
	f, err := os.CreateTemp("", "ctfleet-demo-*.ctrec")
	if err != nil {
		return nil, fmt.Errorf("unpack the recording: %w", err)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		_, err = io.Copy(f, unpacked)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("unpack the recording: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return &recorded{file: f.Name(), begun: make(chan struct{}, 1)}, nil
}

func (*recorded) enforces() bool { return false }

func (r *recorded) watch(ctx context.Context, g *errgroup.Group, deps producer.Dependencies) error {
	ps, err := r.open(deps)
	if err != nil {
		return err
	}
	g.Go(func() error {
		for {
			pass, passing := errgroup.WithContext(ctx)
			for _, p := range ps {
				pass.Go(func() error { return p.Run(passing) })
			}
			if err := pass.Wait(); err != nil || ctx.Err() != nil {
				return err
			}
			var err error
			if ps, err = r.open(deps); err != nil {
				return err
			}
		}
	})
	return nil
}

// open begins a pass.
func (r *recorded) open(deps producer.Dependencies) ([]*producer.Producer, error) {
	var ps []*producer.Producer
	for _, name := range names {
		p, err := producer.New(producer.Options{
			Name: name, Realm: events.RealmDefault, Source: "replay", Input: r.file, InputFirewall: name,
			BufferBytes: 1 << 20, Linger: 10 * time.Millisecond, RingBytes: 16 << 20, Trust: "none",
		}, deps)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	r.mu.Lock()
	r.producers = ps
	r.mu.Unlock()
	select {
	case r.begun <- struct{}{}:
	default: // nobody has heard of the last time yet
	}
	return ps, nil
}

func (r *recorded) ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var missing error
	for _, p := range r.producers {
		missing = errors.Join(missing, p.Ready())
	}
	return missing
}

func (r *recorded) play(ctx context.Context, s *show, _ time.Time) error {
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-r.begun:
		}
		s.say(fmt.Sprintf("ordinary traffic as it was recorded, then an attack through %s (pass %d)", strings.Join(attacked, " and "), n))
	}
}

// judge: nothing was sent, so nobody knows what became of it; and nothing was flushed.
func (*recorded) judge(s *show) {
	for _, name := range attacked {
		if !s.simulated(name) {
			s.fail("no flush of %s was simulated", name)
		}
	}
	for i := range s.res.Simulated {
		d := &s.res.Simulated[i]
		s.flushed(strings.Join(d.Firewalls, " and "), d.Address)
	}
	if len(s.res.Receipts) > 0 {
		s.fail("%d receipts, and there was nothing to flush", len(s.res.Receipts))
	}
}

func (r *recorded) close() {
	_ = os.Remove(r.file) // in the temporary directory: what is left there is not ours to report
}

package producer

import (
	"testing"
	"time"
)

// TestLinger: how long a batch stays open, and how long the kernel is waited for.
func TestLinger(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		asked        time.Duration
		busy, behind bool
		open         bool
		since        time.Duration // the batch has been open
		linger, wait time.Duration
	}{
		{asked: 10 * ms, linger: 10 * ms, wait: time.Second}, // idle: whatever comes is sent at once
		{asked: 10 * ms, open: true, since: 4 * ms, linger: 10 * ms, wait: 6 * ms},
		{asked: 10 * ms, open: true, since: 12 * ms, linger: 10 * ms},
		{asked: 10 * ms, busy: true, linger: 25 * ms, wait: 25 * ms},
		{asked: 10 * ms, busy: true, open: true, since: 5 * ms, linger: 25 * ms, wait: 20 * ms},
		{asked: 100 * ms, busy: true, linger: 100 * ms, wait: 100 * ms}, // a pace beyond ours
		{asked: 100 * ms, behind: true, linger: time.Second, wait: time.Second},
		{asked: 10 * ms, busy: true, behind: true, open: true, since: 400 * ms, linger: time.Second, wait: 600 * ms},
		{asked: 2 * time.Second, busy: true, behind: true, linger: 2 * time.Second, wait: 2 * time.Second},
	} {
		linger := lingerOf(c.asked, c.busy, c.behind)
		wait := waitOf(linger, c.since, c.busy, c.open)
		if linger != c.linger || wait != c.wait {
			t.Errorf("%+v: linger %s, wait %s", c, linger, wait)
		}
	}
}

package history

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkMinute writes a minute of 100 firewalls, each with 100 addresses by
// source and 100 by destination, into a file that has grown to so many minutes. Put
// is what the caller waits for.
func BenchmarkMinute(b *testing.B) {
	for _, before := range []int{0, 120} {
		b.Run(fmt.Sprintf("after %d", before), func(b *testing.B) {
			s := open(b, file(b), nil)
			defer s.Close()
			at := int64(noon)
			write := func(m *Minute) {
				if err := s.writeMinute(b.Context(), m); err != nil {
					b.Fatal(err)
				}
				at += 60
			}
			for range before {
				write(fleetMinute(at, 100, 100))
			}
			began := s.Stats().Bytes
			var put time.Duration
			n := 0
			for b.Loop() {
				b.StopTimer()
				m := fleetMinute(at, 100, 100)
				start := time.Now()
				s.Put(m)
				put = max(put, time.Since(start))
				s.queue.take()
				b.StartTimer()
				write(m)
				n++
			}
			b.ReportMetric(float64(put.Microseconds()), "µs/longest-put")
			b.ReportMetric(float64(s.Stats().Bytes-began)/float64(n)/20_100, "B/row")
		})
	}
}

// BenchmarkTop asks who was on top in a file of 60 such minutes.
func BenchmarkTop(b *testing.B) {
	s := open(b, file(b), nil)
	defer s.Close()
	for n := range int64(60) {
		if err := s.writeMinute(b.Context(), fleetMinute(noon+60*n, 100, 100)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.Top(b.Context(), Question{By: "src", Metric: "new", At: time.Unix(noon+1800, 0), Firewall: "fw-042", Limit: 20}); err != nil {
			b.Fatal(err)
		}
	}
}

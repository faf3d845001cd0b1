package history

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// noon is a minute to count from, Unix s.
const noon = 1_795_608_000

func open(t testing.TB, file string, change func(*Options)) *Store {
	t.Helper()
	opt := Options{File: file, Age: 7 * 24 * time.Hour, Bytes: 1 << 30}
	if change != nil {
		change(&opt)
	}
	s, err := Open(t.Context(), opt, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start opens a history and writes to it until the test ends, or stop is called.
func start(t testing.TB, file string, change func(*Options)) (s *Store, stop func()) {
	t.Helper()
	s = open(t, file, change)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func file(t testing.TB) string { return filepath.Join(t.TempDir(), "history.db") }

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// waitFor waits until no more than so many minutes wait.
func waitFor(t testing.TB, s *Store, minutes int) {
	t.Helper()
	until(t, "the disk", func() bool {
		s.queue.mu.Lock()
		defer s.queue.mu.Unlock()
		return len(s.queue.minutes) <= minutes
	})
}

// query returns the rows of a query as words.
func query(t testing.TB, s *Store, text string, args ...any) (out [][]string) {
	t.Helper()
	rows, err := s.read.Query(text, args...)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	defer rows.Close()
	cols, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		cells := make([]any, len(cols))
		to := make([]any, len(cols))
		for i := range cells {
			to[i] = &cells[i]
		}
		if err := rows.Scan(to...); err != nil {
			t.Fatal(err)
		}
		words := make([]string, len(cols))
		for i, c := range cells {
			switch c := c.(type) {
			case nil:
				words[i] = "NULL"
			case float64: // as the sqlite3 program writes it
				if words[i] = strconv.FormatFloat(c, 'f', -1, 64); !strings.Contains(words[i], ".") {
					words[i] += ".0"
				}
			default:
				words[i] = fmt.Sprint(c)
			}
		}
		out = append(out, words)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// one is the only cell of a query.
func one(t testing.TB, s *Store, text string, args ...any) string {
	t.Helper()
	rows := query(t, s, text, args...)
	if len(rows) != 1 || len(rows[0]) != 1 {
		t.Fatalf("%s: %v", text, rows)
	}
	return rows[0][0]
}

// intact fails the test unless the file is as SQLite wants it.
func intact(t testing.TB, s *Store) {
	t.Helper()
	if got := one(t, s, "PRAGMA integrity_check"); got != "ok" {
		t.Fatalf("integrity_check: %s", got)
	}
}

// fleetMinute is a minute of so many firewalls, each with so many addresses by
// source and by destination, of which some differ from minute to minute.
func fleetMinute(at int64, firewalls, rows int) *Minute {
	m := &Minute{At: at}
	list := func(kind byte) (out []Talkers) {
		for fw := range firewalls {
			t := Talkers{Place: Place{"default", fmt.Sprintf("fw-%03d", fw)}, ActiveKnown: true}
			for i := range rows {
				var a [4]byte
				binary.BigEndian.PutUint32(a[:], uint32(fw*rows*2+i))
				if i%4 == 0 { // one in four is another each minute
					binary.BigEndian.PutUint32(a[:], uint32(at/60+int64(i))*2654435761)
				}
				a[0] = kind
				t.Rows = append(t.Rows, Row{Address: netip.AddrFrom4(a), New: uint64(3 + i), Active: uint64(i)})
			}
			out = append(out, t)
		}
		return out
	}
	m.BySrc, m.ByDst = list(10), list(198)
	for fw := range firewalls {
		m.Fill = append(m.Fill, Fill{Place: Place{"default", fmt.Sprintf("fw-%03d", fw)}, Entries: 1000, Peak: 1200, Limit: 262144, Percent: 0.4, State: "fresh", ActiveKnown: true, Active: 990})
	}
	return m
}

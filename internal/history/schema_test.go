package history

import (
	"database/sql"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// makeByHand writes a database by hand.
func makeByHand(t *testing.T, file, text string) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(text); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestVersion1Migrates opens a file that version 1 wrote: what is in it is still
// there, and what is new works on it.
func TestVersion1Migrates(t *testing.T) {
	t.Parallel()
	name := file(t)
	text, err := os.ReadFile("testdata/version1.sql")
	if err != nil {
		t.Fatal(err)
	}
	makeByHand(t, name, string(text))
	opt := Options{File: name, Age: time.Hour, Bytes: 1 << 30}
	if err := opt.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
	s, stop := start(t, name, nil)
	if got := one(t, s, "PRAGMA user_version"); got != "2" {
		t.Errorf("it is version %s now", got)
	}
	got, err := s.Top(t.Context(), Question{By: "src", Metric: "new", At: time.Unix(noon+30, 0), Limit: 10})
	if err != nil || len(got.Rows) != 2 || got.Rows[0].Address.String() != "2001:db8::7" || got.Rows[0].Value != 900 {
		t.Errorf("%+v, %v", got, err)
	}
	if rows := query(t, s, "SELECT utc, firewall, address, new FROM top_by_src WHERE firewall = 'fw-a'"); len(rows) != 1 || strings.Join(rows[0], " ") != "2026-11-25 12:00:00 fw-a 198.18.0.7 200" {
		t.Errorf("%v", rows)
	}
	s.Put(fleetMinute(noon+60, 1, 3))
	until(t, "a minute in the old file", func() bool { return s.Stats().Rows > 0 })
	intact(t, s)
	stop()
	// And again, as it is now.
	s, _ = start(t, name, nil)
	if got := one(t, s, "SELECT count(*) FROM minutes"); got != "2" {
		t.Errorf("%s minutes", got)
	}
}

// TestForeignFiles are refused, and left as they are.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	f := func(text, want string) {
		t.Helper()
		name := file(t)
		if strings.HasPrefix(text, "no database") {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		} else {
			makeByHand(t, name, text)
		}
		before, _ := os.ReadFile(name)
		opt := Options{File: name, Age: time.Hour, Bytes: 1 << 30}
		_, err := Open(t.Context(), opt, nil)
		for what, err := range map[string]error{"Open": err, "Check": opt.Check()} {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
		}
		if newer := strings.Contains(want, "newer"); errors.Is(err, ErrNewer) != newer {
			t.Errorf("%v: newer %v", err, newer)
		}
		if after, _ := os.ReadFile(name); string(after) != string(before) {
			t.Errorf("%s: the file was changed", want)
		}
	}
	f("CREATE TABLE songs (name TEXT)", "no history of ctfleet")
	f("PRAGMA user_version = 1; CREATE TABLE songs (name TEXT)", "no history of ctfleet")
	f("PRAGMA application_id = 1668572776; PRAGMA user_version = 99; CREATE TABLE t (a)", "newer ctfleet: its schema is version 99, this one knows those up to 2")
	f("no database at all, but text that somebody would miss if it were gone; "+strings.Repeat("x", 5000), "not a database")
}

// TestOptions names what cannot be.
func TestOptions(t *testing.T) {
	t.Parallel()
	f := func(opt Options, want string) {
		t.Helper()
		if err := opt.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", opt, err, want)
		}
		if _, err := Open(t.Context(), opt, nil); err == nil {
			t.Errorf("%+v was opened", opt)
		}
	}
	f(Options{File: file(t), Age: time.Second, Bytes: 1 << 30}, "--history-age")
	f(Options{File: file(t), Age: time.Hour, Bytes: 1}, "--history-bytes")
	f(Options{File: "/nowhere/at/all/h.db", Age: time.Hour, Bytes: 1 << 30}, "no such file or directory")
	f(Options{File: t.TempDir(), Age: time.Hour, Bytes: 1 << 30}, "it is no file")
	good := Options{File: file(t), Age: time.Hour, Bytes: 1 << 30}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(good.File); err == nil {
		t.Error("a check made the file")
	}
}

// TestQuestionsUseAnIndex asks SQLite how it would look for what is asked most.
func TestQuestionsUseAnIndex(t *testing.T) {
	t.Parallel()
	s, _ := start(t, file(t), nil)
	f := func(text, want string) {
		t.Helper()
		var plan []string
		for _, row := range query(t, s, "EXPLAIN QUERY PLAN "+text) {
			plan = append(plan, row[len(row)-1])
		}
		if got := strings.Join(plan, "; "); !strings.Contains(got, want) || strings.Contains(got, "SCAN") {
			t.Errorf("%s\n%s, want %q", text, got, want)
		}
	}
	for _, by := range []string{"src", "dst"} {
		index := "flowcount_by_" + by + "_address (family=? AND hi=? AND lo>? AND lo<?)"
		f("SELECT * FROM flowcount_by_"+by+" WHERE family = 4 AND hi = 0 AND lo BETWEEN 3323068416 AND 3323068671", index)
		f("SELECT * FROM top_by_"+by+" WHERE family = 4 AND hi = 0 AND lo BETWEEN 3323068416 AND 3323068671", index)
		f("SELECT * FROM flowcount_by_"+by+" WHERE family = 6 AND hi BETWEEN -1 AND 1", "flowcount_by_"+by+"_address (family=? AND hi>? AND hi<?)")
		f("SELECT * FROM flowcount_by_"+by+" WHERE family = 4 AND hi = 0 AND lo = 7 AND minute BETWEEN 1 AND 2", "_address (family=? AND hi=? AND lo=? AND minute>? AND minute<?)")
		f("SELECT * FROM flowcount_by_"+by+" WHERE minute = 60 AND place = 1 ORDER BY new DESC LIMIT 10", "PRIMARY KEY (minute=? AND place=?)")
		f("SELECT * FROM top_by_"+by+" WHERE minute = 60 AND realm = 'default' AND firewall = '' ORDER BY new DESC LIMIT 10", "PRIMARY KEY (minute=? AND place=?)")
	}
	f("SELECT * FROM alerts WHERE family = 4 AND hi = 0 AND lo BETWEEN 1 AND 2", "alerts_address (family=? AND hi=? AND lo>? AND lo<?)")
	f("SELECT * FROM audit WHERE family = 4 AND hi = 0 AND lo = 1", "audit_address (family=? AND hi=? AND lo=?)")
	f("SELECT * FROM table_fill WHERE minute BETWEEN 1 AND 2", "PRIMARY KEY (minute>? AND minute<?)")
}

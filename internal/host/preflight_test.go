package host

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestPreflight compares what each fact makes an operator read with
// testdata/preflight.txt.
func TestPreflight(t *testing.T) {
	zero, one, two := 0, 1, 2
	no, yes := false, true
	good := func(change func(*Facts)) Facts {
		f := Facts{NetAdmin: true, Tracking: &yes, Events: &one, Acct: &one, TCPLoose: &zero, BufferGranted: 64 << 20, BufferWanted: 64 << 20}
		if change != nil {
			change(&f)
		}
		return f
	}
	var b strings.Builder
	f := func(name string, facts Facts, fatal, notes int) {
		t.Helper()
		b.WriteString("== " + name + "\n")
		for i, finding := range Preflight(facts) {
			mark := "note "
			if finding.Fatal {
				mark = "FATAL"
				fatal--
				if i > 0 {
					t.Errorf("%s: a fatal finding comes after a note", name)
				}
			} else {
				notes--
			}
			if finding.What == "" || finding.Remedy == "" || finding.String() != finding.What+" "+finding.Remedy {
				t.Errorf("%s: %+v", name, finding)
			}
			b.WriteString(mark + " " + finding.What + "\n      " + finding.Remedy + "\n")
		}
		if fatal != 0 || notes != 0 {
			t.Errorf("%s: %d fatal findings and %d notes are missing", name, fatal, notes)
		}
	}
	f("all is well", good(nil), 0, 0)
	f("nothing is known", Facts{}, 0, 0)
	f("no permission", good(func(f *Facts) { f.NetAdmin, f.TableError = false, errors.New("operation not permitted") }), 1, 0)
	f("a kernel without conntrack", good(func(f *Facts) { f.TableError = errors.New("protocol not supported") }), 1, 0)
	f("another system", Facts{TableError: ErrNotLinux}, 1, 0)
	f("no events", good(func(f *Facts) { f.Events = &zero; f.Tracking = &no }), 1, 1)
	f("nothing tracks", good(func(f *Facts) { f.Tracking = &no }), 0, 1)
	f("automatic events", good(func(f *Facts) { f.Events = &two }), 0, 1)
	f("no counters", good(func(f *Facts) { f.Acct = &zero }), 0, 1)
	f("a capped buffer", good(func(f *Facts) { f.BufferGranted = 212992 }), 0, 1)
	f("loose, and flushing unsigned", good(func(f *Facts) { f.TCPLoose, f.AllowFlush, f.Unsigned = &one, true, true }), 0, 2)
	f("flushing for nobody", good(func(f *Facts) { f.AllowFlush = true }), 0, 1)
	f("flushing for those who sign", good(func(f *Facts) { f.AllowFlush, f.Trusted = true, 1 }), 0, 0)
	f("sessions unknown", good(func(f *Facts) {
		f.AllowFlush, f.Trusted, f.PeersError = true, 1, errors.New("no such file or directory")
	}), 0, 1)
	f("blocking, and flushing", good(func(f *Facts) { f.AllowFlush, f.AllowBlock, f.Trusted = true, true, 1 }), 0, 0)
	f("blocking only, unsigned, sessions unknown", good(func(f *Facts) {
		f.AllowBlock, f.Unsigned, f.PeersError = true, true, errors.New("no such file or directory")
	}), 0, 3)
	f("blocking and flushing for nobody, loose", good(func(f *Facts) { f.AllowFlush, f.AllowBlock, f.TCPLoose = true, true, &one }), 0, 2)
	f("a set that is missing", good(func(f *Facts) {
		f.AllowBlock, f.AllowFlush, f.Trusted = true, true, 1
		f.BlockError = errors.New("--allow-block: open block sets: set inet/filter/blocked4: there is no such set: `nft 'add set inet filter blocked4 { type ipv4_addr; flags timeout; }'`")
	}), 1, 0)
	f("sessions unknown, only watching", good(func(f *Facts) { f.PeersError = errors.New("no such file or directory") }), 0, 0)
	f("loose, only watching", good(func(f *Facts) { f.TCPLoose, f.Unsigned = &one, true }), 0, 0)

	const golden = "testdata/preflight.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant (%s; -update writes it anew)\n%s", b.String(), golden, want)
	}
}

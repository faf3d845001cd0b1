package deploy

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

// TestSysctls sets what the drop-in says in a namespace of its own, and reads it back. What
// is only proposed there, or is not of a namespace, exists.
func TestSysctls(t *testing.T) {
	t.Parallel()
	labtest.Require(t)
	text, err := os.ReadFile("sysctl.d/50-ctfleet.conf")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := host.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lines := regexp.MustCompile(`(?m)^(#?)([a-z0-9_.]+) *= *(\d+)$`).FindAllStringSubmatch(string(text), -1)
	set := 0
	for _, m := range lines {
		path := "/proc/sys/" + strings.ReplaceAll(m[2], ".", "/")
		err := ns.Do(func() error {
			if _, err := os.Stat(path); err != nil || m[1] == "#" {
				return err
			}
			set++
			if err := os.WriteFile(path, []byte(m[3]), 0); err != nil {
				return err
			}
			is, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(is)) != m[3] {
				err = fmt.Errorf("%s was set to %s and is %s", m[2], m[3], is)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", m[2], err)
		}
	}
	if set != 2 || len(lines) != 5 {
		t.Errorf("%d keys were set and %d proposed: want 2 and 3", set, len(lines)-set)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && !regexp.MustCompile(`^[a-z0-9_.]+ = \d+$`).MatchString(line) {
			t.Errorf("this is neither a comment nor KEY = NUMBER: %s", line)
		}
	}
}

// heard counts the events of a firewall's table by their kind.
type heard struct{ created, updated, ended int }

// TestEventsSnippet: the snippet turns tracking on by itself, and of all events only those
// that begin and end a flow are made.
func TestEventsSnippet(t *testing.T) {
	t.Parallel()
	nft, err := exec.LookPath("nft")
	if err != nil {
		labtest.Lacks(t, "the nft program is not here: apt-get install nftables")
	}
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}})
	fw := l.Firewall("fw-a")
	run := func(args ...string) {
		t.Helper()
		var out []byte
		// The program is in the namespace of the thread that starts it.
		err := fw.NS.Do(func() (err error) {
			out, err = exec.CommandContext(t.Context(), nft, args...).CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatalf("nft %q: %v %s", args, err, out)
		}
	}
	conn, err := conntrack.Dial(&netlink.Config{NetNS: fw.NS.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	listener, err := conntrack.Dial(&netlink.Config{NetNS: fw.NS.FD()})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan conntrack.Event, 1024)
	if _, err := listener.Listen(events, 1, []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTUpdate, netfilter.GroupCTDestroy}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	// Each flood is of flows of its own, all of which are answered: an UPDATE each.
	const flows = 20
	first := 0
	flood := func() {
		t.Helper()
		report, err := traffic.Flood{Protocol: 17, Sources: netip.MustParsePrefix("198.18.3.0/24"), Destinations: netip.MustParsePrefix("203.0.113.5/32"), Port: 53, First: first, Count: flows, Answer: true}.Run(t.Context(), fw)
		if err != nil || report.Answered != flows && first != flows {
			t.Fatalf("%+v: %v", report, err)
		}
		first += flows
	}
	// until waits for what is wanted, and then for what must not follow.
	until := func(what string, done func(heard) bool) (h heard) {
		t.Helper()
		deadline, quiet := time.After(10*time.Second), (<-chan time.Time)(nil)
		for {
			select {
			case e := <-events:
				switch e.Type {
				case conntrack.EventNew:
					h.created++
				case conntrack.EventUpdate:
					h.updated++
				case conntrack.EventDestroy:
					h.ended++
				}
				if quiet == nil && done(h) {
					quiet = time.After(200 * time.Millisecond)
				}
			case <-quiet:
				return h
			case <-deadline:
				t.Fatalf("%s: heard %+v", what, h)
			}
		}
	}

	flood()
	until("the lab's own rule: UPDATE too", func(h heard) bool { return h.created == flows && h.updated > 0 })
	run("delete", "table", "inet", "lab")
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	until("the lab's flows end", func(h heard) bool { return h.ended == flows })
	flood()
	if n, err := fw.Entries(); err != nil || n != 0 {
		t.Fatalf("without a rule the table has %d entries, %v: the test shows nothing", n, err)
	}

	snippet, err := filepath.Abs("nftables/ctfleet.nft")
	if err != nil {
		t.Fatal(err)
	}
	run("-f", snippet)
	run("-f", snippet) // again is no mistake, and changes nothing
	flood()
	if h := until("NEW", func(h heard) bool { return h.created == flows }); h != (heard{created: flows}) {
		t.Errorf("%d answered flows made %+v: want NEW only", flows, h)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if h := until("DESTROY", func(h heard) bool { return h.ended == flows }); h != (heard{ended: flows}) {
		t.Errorf("the end of %d flows made %+v: want DESTROY only", flows, h)
	}
}

// scores are what `systemd-analyze security` of systemd 252 says of the units: docs/howto/systemd.md has them.
var scores = map[string]float64{"producer": 1.5, "aggregator": 1.1, "responder": 1.1, "nats": 1.1}

// TestUnits: systemd takes the units as they are installed, and their score is what the
// how-to says, or better. They are not started.
func TestUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		labtest.Lacks(t, "systemd-analyze is not here: apt-get install systemd")
	}
	page, err := os.ReadFile("../docs/howto/systemd.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for unit, most := range scores {
		text, err := os.ReadFile("systemd/ctfleet-" + unit + ".service")
		if err != nil {
			t.Fatal(err)
		}
		// What verify looks for: that the programs are there, not what they do.
		program := map[string]string{"nats": "nats-server"}[unit]
		if program == "" {
			program = unit
		}
		if err := os.WriteFile(filepath.Join(bin, program), nil, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "ctfleet-"+unit+".service")
		if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte("/usr/local/bin"), []byte(bin)), 0o644); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("| `ctfleet-%s` | %.1f |", unit, most); !strings.Contains(string(page), want) {
			t.Errorf("docs/howto/systemd.md does not say: %s", want)
		}
	}
	for unit, most := range scores {
		path := filepath.Join(dir, "ctfleet-"+unit+".service")
		if out, err := exec.CommandContext(t.Context(), analyze, "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: systemd-analyze verify: %v %s", unit, err, out)
		}
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--no-pager", path).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+)`).FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("%s: systemd-analyze security: %v %s", unit, err, out)
			continue
		}
		if score, err := strconv.ParseFloat(string(m[1]), 64); err != nil || score > most {
			t.Errorf("%s: the exposure is %s, and the how-to says %.1f:\n%s", unit, m[1], most, out)
		}
	}
}

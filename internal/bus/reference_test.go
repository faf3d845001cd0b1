package bus

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/reference"
	"github.com/ctfleet/ctfleet/pkg/events"
)

var update = flag.Bool("update", false, "write the tables of docs/reference/bus.md anew")

const (
	page        = "../../docs/reference/bus.md"
	pageCommand = "`go test ./internal/bus -run Reference -update`"
)

// subjects are what is said on the bus, by whom and to whom.
var subjects = []struct{ root, rest, what string }{
	{events.SubjectEvents, ".<firewall>", "batches of NEW and DESTROY"},
	{events.SubjectSnapshots, ".<firewall>", "batches of EXISTING: a dump, its begin and end marked"},
	{events.SubjectHealth, ".<firewall>", "table, kernel counters, loss, lag, version, config digest; every second"},
	{events.SubjectAlerts, ".<firing|resolved>.<rule>.<scope>.<key>", "alerts. scope: a firewall, `fleet`, or `realm_<name>`; key: `203-0-113-7`, or `table`"},
	{events.SubjectCommand, ".<firewall>.<verb>", "commands, answered by the firewall's `ct-producer`"},
	{events.SubjectPace, "", "how long producers are to linger, by the aggregator"},
	{events.SubjectAudit, ".<actor>.<verb>", "receipts (actor: the firewall), decisions (`responder`), what operators did (`operator`), rules that were changed (`aggregator`)"},
	{events.SubjectQuery, ".<question>", "questions to the centre, answered by `ct-aggregator`"},
}

// said is what the configuration of a stream does not say.
var said = map[string]string{
	StreamEvents:            "",
	StreamSnapshots:         "",
	StreamLast:              "the last of each",
	StreamAlerts:            "",
	StreamAudit:             "everything",
	"KV_" + BucketAllowlist: "the live allowlist, each entry signed",
	"KV_" + BucketApprovals: "proposals, answers, outcomes",
	"KV_" + BucketGuard:     "what was done lately, what responders without a key would have done; the circuit; who is muted, who was dismissed",
}

// TestReference: the page says what is on the bus, and what is kept.
func TestReference(t *testing.T) {
	var table reference.Table
	table.Row("Subject", "What", "Kept in")
	configs := StreamConfigs(DefaultLimits)
	for _, s := range subjects {
		kept := "–"
		for _, c := range configs {
			for _, of := range c.Subjects {
				if of == s.root || strings.TrimRight(of, ".*>") == s.root {
					kept = reference.Code(c.Name)
				}
			}
		}
		table.Row(reference.Code(s.root+s.rest), s.what, kept)
	}
	for name, root := range constants(t, "../../pkg/events/subject.go", "Subject") {
		found := false
		for _, s := range subjects {
			found = found || s.root == root
		}
		if !found {
			t.Errorf("%s is new: say here what is said under it", name)
		}
	}
	reference.Block(t, *update, page, "subjects", pageCommand, table.String())

	table = reference.Table{}
	table.Row("Stream", "Subjects", "Keeps", "On", "A message has at most")
	for _, c := range configs {
		what, ok := said[c.Name]
		if !ok {
			t.Errorf("%s is new: say here what it keeps", c.Name)
		}
		var keeps []string
		if what != "" {
			keeps = append(keeps, what)
		}
		if c.MaxAge > 0 {
			keeps = append(keeps, age(c.MaxAge))
		}
		if c.MaxBytes > 0 {
			keeps = append(keeps, size(c.MaxBytes))
		}
		if n := c.MaxMsgsPerSubject; n > 1 {
			keeps = append(keeps, strconv.FormatInt(n, 10)+" messages a subject")
		}
		if c.DenyDelete && c.DenyPurge {
			keeps = append(keeps, "no delete, no purge")
		}
		on := "disk, written at once"
		if c.Storage == jetstream.MemoryStorage {
			on = "memory"
		} else if c.PersistMode == jetstream.AsyncPersistMode {
			on = "disk, written later"
		}
		var of []string
		for _, s := range c.Subjects {
			of = append(of, reference.Code(s))
		}
		table.Row(reference.Code(c.Name), strings.Join(of, ", "), strings.Join(keeps, ", "), on, size(int64(c.MaxMsgSize)))
	}
	reference.Block(t, *update, page, "streams", pageCommand, table.String())
}

// constants are the strings that a file declares as constants whose names begin so.
func constants(t *testing.T, path, prefix string) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			for i, name := range v.Names {
				if i >= len(v.Values) || !strings.HasPrefix(name.Name, prefix) {
					continue
				}
				if lit, ok := v.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					out[name.Name], _ = strconv.Unquote(lit.Value)
				}
			}
		}
		return true
	})
	if len(out) == 0 {
		t.Fatalf("%s declares no %s…", path, prefix)
	}
	return out
}

func age(d time.Duration) string {
	if d >= 24*time.Hour {
		return fmt.Sprintf("%g days", d.Hours()/24)
	}
	return fmt.Sprintf("%g min", d.Minutes())
}

func size(n int64) string {
	switch {
	case n <= 0:
		return ""
	case n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}

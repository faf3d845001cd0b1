package rule

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Words of a rule.
const (
	BySrc = "by_src"
	ByDst = "by_dst"
	Table = "table" // the connection table itself, no address

	New          = events.MetricNew
	Active       = events.MetricActive
	Unreplied    = events.MetricUnreplied
	TablePercent = events.MetricTablePercent // entries over the limit, × 100; with track table only

	Fleet    = "fleet"    // summed over the firewalls of a realm
	Firewall = "firewall" // each firewall by itself

	Sum = "sum"
	Max = "max" // the largest instead of the sum: firewalls in series see one flow twice

	Info     = "info"
	Warning  = "warning"
	Critical = "critical"
)

// MaxSeconds is the longest window.
const MaxSeconds = 3600

// A Rule is a threshold on a count, and what becomes of it.
type Rule struct {
	Name   string `yaml:"name"`
	Track  string `yaml:"track"`
	Metric string `yaml:"metric"`
	Scope  string `yaml:"scope"`
	// Count is the threshold: the rule is over when the value is at least this. A
	// whole number, but for table_percent.
	Count float64 `yaml:"count"`
	// Seconds is the window of new and unreplied. The other metrics are of now, and have none.
	Seconds int `yaml:"seconds"`
	// For is how long it must have been over before it fires.
	For time.Duration `yaml:"for"`
	// Recover is how long it must have been under ClearRatio × Count before it is resolved.
	Recover    time.Duration `yaml:"recover"`
	ClearRatio float64       `yaml:"clear_ratio"`
	// Prefix is what counts as one key.
	Prefix Prefix `yaml:"prefix"`
	Match  Match  `yaml:"match"`
	// Except never fire: keys that lie within one of these.
	Except   Prefixes `yaml:"except"`
	Severity string   `yaml:"severity"`
	Combine  string   `yaml:"combine"`
}

// Prefix is the length in bits to which addresses are cut.
type Prefix struct {
	IPv4 int `yaml:"ipv4"`
	IPv6 int `yaml:"ipv6"`
}

// Match says which flows count. The zero Match is all.
type Match struct {
	Protocol Protocol `yaml:"protocol"` // 0: any
	DPort    Ports    `yaml:"dport"`    // none: any
}

// IsZero says whether all flows count.
func (m Match) IsZero() bool { return m.Protocol == 0 && len(m.DPort) == 0 }

// File is what a rules file holds.
type File struct {
	Rules []Rule `yaml:"rules"`
	// MaxFiring bounds the alerts that fire at a time. The rest is one summary.
	MaxFiring int `yaml:"max_firing"`

	Digest string `yaml:"-"` // of the file, for whoever has read it from one
}

// DefaultMaxFiring is the MaxFiring of a file that has none.
const DefaultMaxFiring = 100

// NewFile returns what an empty file means.
func NewFile() File { return File{MaxFiring: DefaultMaxFiring} }

// Default returns a rule of which only name, track, metric, count and, where the
// metric has one, the window are left to say.
func Default() Rule {
	return Rule{
		Scope:      Fleet,
		Recover:    30 * time.Second,
		ClearRatio: 0.8,
		Prefix:     Prefix{IPv4: 32, IPv6: 128},
		Severity:   Warning,
		Combine:    Sum,
	}
}

// Window returns the window of the rule, 0 where its metric has none.
func (r *Rule) Window() time.Duration { return time.Duration(r.Seconds) * time.Second }

// Validate checks the rules by themselves and together.
func (f *File) Validate() error {
	for i := range f.Rules {
		if err := f.Rules[i].Validate(); err != nil {
			return err
		}
		if slices.ContainsFunc(f.Rules[:i], func(r Rule) bool { return r.Name == f.Rules[i].Name }) {
			return refuse(&f.Rules[i], "name", "two rules have this name")
		}
	}
	if f.MaxFiring < 1 {
		return fmt.Errorf("max_firing: must be at least 1, not %d", f.MaxFiring)
	}
	return nil
}

// An Error says which key of which rule is wrong.
type Error struct {
	Rule string // its name; "" where that is missing
	Key  string // as in the file, such as "prefix.ipv4"
	Msg  string
}

func (e *Error) Error() string {
	return fmt.Sprintf("rule %s: %s: %s", e.Rule, e.Key, e.Msg)
}

func refuse(r *Rule, key, format string, args ...any) error {
	name := r.Name
	if events.CheckName(name) != nil {
		name = fmt.Sprintf("%.70q", name)
	}
	return &Error{Rule: name, Key: key, Msg: fmt.Sprintf(format, args...)}
}

// Validate returns an [*Error] for the first thing that is wrong.
func (r *Rule) Validate() error {
	if err := events.CheckName(r.Name); err != nil {
		return refuse(r, "name", "%v", err)
	}
	if r.Name == Summary {
		return refuse(r, "name", "is the name of the summary of what max_firing holds back")
	}
	for _, w := range []struct {
		key, value string
		valid      []string
	}{
		{"track", r.Track, []string{BySrc, ByDst, Table}},
		{"metric", r.Metric, []string{New, Active, Unreplied, TablePercent}},
		{"scope", r.Scope, []string{Fleet, Firewall}},
		{"severity", r.Severity, []string{Info, Warning, Critical}},
		{"combine", r.Combine, []string{Sum, Max}},
	} {
		if !slices.Contains(w.valid, w.value) {
			return refuse(r, w.key, "must be %s, not %.60q", strings.Join(w.valid, " or "), w.value)
		}
	}
	if (r.Track == Table) != (r.Metric == TablePercent) {
		return refuse(r, "metric", "%s goes with track: table and no other, not %s with %s", TablePercent, r.Metric, r.Track)
	}
	if err := r.validateThreshold(); err != nil {
		return err
	}
	return r.validateKey()
}

// validateThreshold checks the numbers.
func (r *Rule) validateThreshold() error {
	switch windowed := r.Metric == New || r.Metric == Unreplied; {
	case windowed && (r.Seconds < 1 || r.Seconds > MaxSeconds):
		return refuse(r, "seconds", "must be 1 to %d, not %d", MaxSeconds, r.Seconds)
	case !windowed && r.Seconds != 0:
		return refuse(r, "seconds", "%s is a value of now and has no window", r.Metric)
	}
	// Written such that NaN is refused.
	switch {
	case r.Metric == TablePercent && !(r.Count > 0 && r.Count <= 100):
		return refuse(r, "count", "must be above 0 and at most 100 percent, not %v", r.Count)
	case r.Metric != TablePercent && !(r.Count >= 1 && r.Count <= maxCount && r.Count == float64(uint64(r.Count))):
		return refuse(r, "count", "must be a whole number from 1 to %.0e, not %v", maxCount, r.Count)
	case r.For < 0 || r.For > maxWait:
		return refuse(r, "for", "must be 0s to %v, not %v", maxWait, r.For)
	case r.Recover < 0 || r.Recover > maxWait:
		return refuse(r, "recover", "must be 0s to %v, not %v", maxWait, r.Recover)
	case !(r.ClearRatio > 0 && r.ClearRatio <= 1):
		return refuse(r, "clear_ratio", "must be above 0 and at most 1, not %v", r.ClearRatio)
	}
	return nil
}

const (
	maxCount = 1e12 // far from where a float64 would lose the units
	maxWait  = 24 * time.Hour
)

// validateKey checks what says which flows are counted, and as what.
func (r *Rule) validateKey() error {
	if r.Track == Table {
		d := Default()
		switch {
		case r.Scope != Firewall:
			return refuse(r, "scope", "a table is a firewall's: must be %s", Firewall)
		case r.Prefix != d.Prefix:
			return refuse(r, "prefix", "a table has no addresses")
		case !r.Match.IsZero():
			return refuse(r, "match", "a table is counted as a whole")
		case len(r.Except) > 0:
			return refuse(r, "except", "a table has no addresses")
		}
	}
	switch {
	case r.Combine == Max && r.Scope != Fleet:
		return refuse(r, "combine", "max goes with scope: fleet: a single firewall has nothing to combine")
	case r.Prefix.IPv4 < 1 || r.Prefix.IPv4 > 32:
		return refuse(r, "prefix.ipv4", "must be 1 to 32, not %d", r.Prefix.IPv4)
	case r.Prefix.IPv6 < 1 || r.Prefix.IPv6 > 128:
		return refuse(r, "prefix.ipv6", "must be 1 to 128, not %d", r.Prefix.IPv6)
	case len(r.Match.DPort) > 0 && r.Match.Protocol != 0 && !r.Match.Protocol.hasPorts():
		return refuse(r, "match.dport", "protocol %v has no ports", r.Match.Protocol)
	}
	for _, p := range r.Except {
		if !p.IsValid() || p != p.Masked() {
			return refuse(r, "except", "%v is not a prefix", p)
		}
	}
	return nil
}

// excepts says whether a key lies within one of the prefixes that never fire.
func (r *Rule) excepts(key netip.Prefix) bool {
	for _, p := range r.Except {
		if p.Bits() <= key.Bits() && p.Contains(key.Addr()) {
			return true
		}
	}
	return false
}

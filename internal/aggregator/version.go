package aggregator

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// markBehind says of each firewall whether it runs another version than the newest, and
// whether most others have another configuration; and of the reply which these are.
func markBehind(r *events.FirewallsReply) {
	r.Version = daemon.ProgramVersion()
	r.Newest = r.Version
	configs, of := map[string]int{}, 0
	for i := range r.Firewalls {
		f := &r.Firewalls[i]
		if newer(f.Version, r.Newest) {
			r.Newest = f.Version
		}
		if f.Source == "" { // who reads a recording is set up otherwise
			configs[f.Config]++
			of++
		}
	}
	for digest, n := range configs {
		if 2*n > of {
			r.Config = digest
		}
	}
	for i := range r.Firewalls {
		f := &r.Firewalls[i]
		f.Behind = f.Version != r.Newest
		f.Differs = r.Config != "" && f.Source == "" && f.Config != r.Config
	}
}

// newer reports whether version a is newer than b. A build without a release has no
// place among releases, which count as newer.
func newer(a, b string) bool {
	x, ok := parseVersion(a)
	if !ok {
		return false
	}
	y, ok := parseVersion(b)
	return !ok || x.compare(y) > 0
}

// version is what Semantic Versioning makes of a text.
type version struct {
	numbers [3]uint64
	pre     []string // of a pre-release, which comes before the release
}

func parseVersion(s string) (v version, ok bool) {
	s, _, _ = strings.Cut(strings.TrimPrefix(s, "v"), "+")
	s, pre, found := strings.Cut(s, "-")
	if found {
		v.pre = strings.Split(pre, ".")
	}
	parts := strings.Split(s, ".")
	if len(parts) != len(v.numbers) {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 64)
		if err != nil {
			return v, false
		}
		v.numbers[i] = n
	}
	return v, true
}

func (v version) compare(o version) int {
	for i := range v.numbers {
		if c := cmp.Compare(v.numbers[i], o.numbers[i]); c != 0 {
			return c
		}
	}
	if len(v.pre) == 0 || len(o.pre) == 0 {
		return cmp.Compare(min(len(o.pre), 1), min(len(v.pre), 1))
	}
	for i := range min(len(v.pre), len(o.pre)) {
		x, xErr := strconv.ParseUint(v.pre[i], 10, 64)
		y, yErr := strconv.ParseUint(o.pre[i], 10, 64)
		c := cmp.Compare(v.pre[i], o.pre[i])
		switch {
		case xErr == nil && yErr == nil:
			c = cmp.Compare(x, y)
		case xErr == nil:
			c = -1
		case yErr == nil:
			c = 1
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(v.pre), len(o.pre))
}

package observe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A Filter says which events are wanted: one of each kind of value that is given. Its
// tags are those of flags; what it names them without dashes, HTTP names them, too.
type Filter struct {
	IP       []string `name:"ip" placeholder:"ADDRESS" help:"Only flows with this address or prefix on any side, before or after NAT; may be repeated."`
	FromIP   []string `name:"from-ip" placeholder:"ADDRESS" help:"Only flows that this address or prefix opened; may be repeated."`
	ToIP     []string `name:"to-ip" placeholder:"ADDRESS" help:"Only flows opened to this address or prefix; may be repeated."`
	Protocol []string `placeholder:"NAME" help:"Only this protocol, by name or number; may be repeated."`
	Port     []uint16 `placeholder:"N" help:"Only flows from or to this port, of protocols that have ports; may be repeated."`
	Type     []string `enum:"new,destroy,existing" placeholder:"TYPE" help:"Only these: new, destroy, existing (of dumps, or inserted by a program); may be repeated."`
	Not      bool     `help:"All but what the filters of flows say."`

	ip, from, to []netip.Prefix
	protocols    []uint8
	types        []events.Type
}

// given is how many filters of flows there are.
func (f *Filter) given() int {
	return len(f.IP) + len(f.FromIP) + len(f.ToIP) + len(f.Protocol) + len(f.Port) + len(f.Type)
}

// Empty reports whether everything is wanted.
func (f *Filter) Empty() bool {
	return f.given() == 0 && !f.Not
}

// types are the words for what an event may be.
var types = map[string]events.Type{"new": events.New, "destroy": events.Destroy, "existing": events.Existing}

// Compile reads the values, once, before Match is asked. An error begins with the name
// of the value that is wrong.
func (f *Filter) Compile() error {
	for _, list := range []struct {
		name string
		in   []string
		out  *[]netip.Prefix
	}{{"ip", f.IP, &f.ip}, {"from-ip", f.FromIP, &f.from}, {"to-ip", f.ToIP, &f.to}} {
		for _, s := range list.in {
			p, err := events.ParsePrefix(s)
			if err != nil {
				return fmt.Errorf("%s: %w", list.name, err)
			}
			*list.out = append(*list.out, p)
		}
	}
	for _, s := range f.Protocol {
		p, err := rule.ParseProtocol(s)
		if err != nil {
			return fmt.Errorf("protocol: %w", err)
		}
		f.protocols = append(f.protocols, uint8(p))
	}
	for _, s := range f.Type {
		kind, ok := types[s]
		if !ok {
			return fmt.Errorf("type: %.60q is none of new, destroy, existing", s)
		}
		f.types = append(f.types, kind)
	}
	if f.Not && f.given() == 0 {
		return errors.New("not: there is no filter that it could turn around")
	}
	return nil
}

// Match reports whether an event is wanted.
func (f *Filter) Match(e *events.Event) bool { return f.all(e) != f.Not }

func (f *Filter) all(e *events.Event) bool {
	within := func(list []netip.Prefix, addrs ...events.Addr) bool {
		if len(list) == 0 {
			return true
		}
		for _, a := range addrs {
			ip := a.Netip(e.IPv6)
			if slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip) }) {
				return true
			}
		}
		return false
	}
	switch {
	case len(f.types) > 0 && !slices.Contains(f.types, e.Type),
		len(f.protocols) > 0 && !slices.Contains(f.protocols, e.Proto),
		len(f.Port) > 0 && !(HasPorts(e.Proto) && (slices.Contains(f.Port, e.Orig.SrcPort) || slices.Contains(f.Port, e.Orig.DstPort))):
		return false
	}
	return within(f.from, e.Orig.Src) && within(f.to, e.Orig.Dst) && within(f.ip, e.Orig.Src, e.Orig.Dst, e.Reply.Src, e.Reply.Dst)
}

// HasPorts reports whether flows of a protocol have ports. Of ICMP and GRE other
// numbers stand in their place.
func HasPorts(proto uint8) bool {
	switch proto {
	case 6, 17, 33, 132, 136:
		return true
	}
	return false
}

package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// The types of a rules file read themselves, so that a default can be told from a
// value, a list may be a single value, and an error points to the place in the
// file. Whoever decodes them decides about strictness.

// UnmarshalYAML reads a file.
func (f *File) UnmarshalYAML(unmarshal func(any) error) error {
	type plain File
	p := plain(NewFile())
	if err := unmarshal(&p); err != nil {
		return err
	}
	*f = File(p)
	err := f.Validate()
	if err == nil {
		return nil
	}
	var node ast.Node
	if unmarshal(&node) != nil {
		return err
	}
	// Each rule has been checked when it was read: what is left is max_firing, or a
	// name that has been used before.
	if e := (*Error)(nil); errors.As(err, &e) {
		if rules, ok := find(node, "rules").(*ast.SequenceNode); ok {
			for i := range rules.Values {
				if i < len(f.Rules) && slices.ContainsFunc(f.Rules[:i], func(r Rule) bool { return r.Name == f.Rules[i].Name }) {
					return at(find(rules.Values[i], e.Key), err)
				}
			}
		}
		return err
	}
	return at(find(node, "max_firing"), err)
}

// UnmarshalYAML reads a rule.
func (r *Rule) UnmarshalYAML(unmarshal func(any) error) error {
	type plain Rule
	p := plain(Default())
	p.Scope = ""
	if err := unmarshal(&p); err != nil {
		return err
	}
	if p.Scope == "" {
		p.Scope = Fleet
		if p.Track == Table {
			p.Scope = Firewall
		}
	}
	*r = Rule(p)
	err := r.Validate()
	if e := (*Error)(nil); errors.As(err, &e) {
		var node ast.Node
		if unmarshal(&node) == nil {
			return at(find(node, strings.Split(e.Key, ".")...), err)
		}
	}
	return err
}

// find goes down the keys of mappings as far as they exist.
func find(node ast.Node, keys ...string) ast.Node {
	for _, key := range keys {
		m, ok := node.(ast.MapNode)
		if !ok {
			break
		}
		for it := m.MapRange(); it.Next(); {
			if it.Key().GetToken().Value == key {
				node = it.Value()
				break
			}
		}
	}
	return node
}

// at says where in the file an error is.
func at(node ast.Node, err error) error {
	if node == nil || node.GetToken() == nil {
		return err
	}
	t := node.GetToken()
	if m, ok := node.(*ast.MappingNode); ok && len(m.Values) > 0 { // its own token is a colon somewhere
		t = m.Values[0].Key.GetToken()
	}
	return &yaml.SyntaxError{Message: err.Error(), Token: t}
}

// scalars reads a value, or a list of values, each by parse.
func scalars(unmarshal func(any) error, parse func(string) error) error {
	var node ast.Node
	if err := unmarshal(&node); err != nil {
		return err
	}
	values := []ast.Node{node}
	if list, ok := node.(*ast.SequenceNode); ok {
		values = list.Values
	}
	for _, v := range values {
		if _, ok := v.(ast.ScalarNode); !ok {
			return at(v, fmt.Errorf("a single value is expected here"))
		}
		if err := parse(v.GetToken().Value); err != nil {
			return at(v, err)
		}
	}
	return nil
}

// Prefixes are networks in CIDR notation; a single address stands for itself.
type Prefixes []netip.Prefix

// UnmarshalYAML reads one or a list.
func (ps *Prefixes) UnmarshalYAML(unmarshal func(any) error) error {
	*ps = nil
	return scalars(unmarshal, func(s string) error {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			*ps = append(*ps, netip.PrefixFrom(a, a.BitLen()))
			return nil
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("%.60q is not a network such as 198.51.100.0/24", s)
		}
		if p != p.Masked() {
			return fmt.Errorf("%v has bits beyond its length, did you mean %v?", p, p.Masked())
		}
		*ps = append(*ps, p)
		return nil
	})
}

// Ports are port numbers, 1 to 65535.
type Ports []uint16

// UnmarshalYAML reads one or a list.
func (ps *Ports) UnmarshalYAML(unmarshal func(any) error) error {
	*ps = nil
	return scalars(unmarshal, func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("port must be 1 to 65535, not %.60q", s)
		}
		*ps = append(*ps, uint16(n))
		return nil
	})
}

// Protocol is an IP protocol number, by name in files where it has one.
type Protocol uint8

type protocol struct {
	name   string
	number Protocol
	ports  bool
}

var protocols = []protocol{
	{"icmp", 1, false}, {"igmp", 2, false}, {"tcp", 6, true}, {"udp", 17, true}, {"dccp", 33, true}, {"ipv6", 41, false}, {"gre", 47, false},
	{"esp", 50, false}, {"ah", 51, false}, {"icmpv6", 58, false}, {"ospf", 89, false}, {"sctp", 132, true}, {"udplite", 136, true},
}

// String returns the name, or else the number.
func (p Protocol) String() string {
	for _, known := range protocols {
		if known.number == p {
			return known.name
		}
	}
	return strconv.Itoa(int(p))
}

// UnmarshalYAML reads a name or a number from 1 to 255.
func (p *Protocol) UnmarshalYAML(unmarshal func(any) error) error {
	return scalars(unmarshal, func(s string) (err error) {
		*p, err = ParseProtocol(s)
		return err
	})
}

// ParseProtocol reads a name or a number from 1 to 255.
func ParseProtocol(s string) (Protocol, error) {
	for _, known := range protocols {
		if known.name == s {
			return known.number, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		var names []string
		for _, known := range protocols {
			names = append(names, known.name)
		}
		return 0, fmt.Errorf("protocol must be 1 to 255, or %s, not %.60q", strings.Join(names, ", "), s)
	}
	return Protocol(n), nil
}

// hasPorts says whether a destination port means anything. Of a protocol without a
// name here it is not known, and so it does.
func (p Protocol) hasPorts() bool {
	i := slices.IndexFunc(protocols, func(known protocol) bool { return known.number == p })
	return i < 0 || protocols[i].ports
}

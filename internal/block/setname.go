package block

import (
	"errors"
	"fmt"
	"strings"
)

// SetName names a set as nft does.
type SetName struct {
	Family string // of the table: inet, ip or ip6
	Table  string
	Set    string
}

// maxName is the length of a name in the kernel, without its final zero byte
// (NFT_NAME_MAXLEN).
const maxName = 255

// families are their numbers (NFPROTO_…).
var families = map[string]byte{"inet": 1, "ip": 2, "ip6": 10}

// ParseSetName reads FAMILY/TABLE/SET, such as inet/filter/blocked4.
func ParseSetName(s string) (SetName, error) {
	family, rest, _ := strings.Cut(s, "/")
	table, set, found := strings.Cut(rest, "/")
	n := SetName{Family: family, Table: table, Set: set}
	if !found {
		return SetName{}, fmt.Errorf("set %q: want FAMILY/TABLE/SET, such as inet/filter/blocked4", s)
	}
	if err := n.validate(); err != nil {
		return SetName{}, fmt.Errorf("set %q: %w", s, err)
	}
	return n, nil
}

// String is what ParseSetName reads.
func (n SetName) String() string {
	return n.Family + "/" + n.Table + "/" + n.Set
}

func (n SetName) validate() error {
	if _, ok := families[n.Family]; !ok {
		return fmt.Errorf("family %q: want inet, ip or ip6", n.Family)
	}
	for _, part := range []struct{ what, name string }{{"table", n.Table}, {"set", n.Set}} {
		if err := validName(part.name); err != nil {
			return fmt.Errorf("%s %q: %w", part.what, part.name, err)
		}
	}
	return nil
}

// validName holds a name to what nft can write, so that every set that is named
// here can be listed there: a letter or underscore, then letters, digits and _ - .
// (nft would take a slash too, which separates here).
func validName(name string) error {
	if name == "" {
		return errors.New("no name")
	}
	if len(name) > maxName {
		return fmt.Errorf("%d bytes long, at most %d", len(name), maxName)
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case i > 0 && ('0' <= c && c <= '9' || c == '-' || c == '.'):
		default:
			return fmt.Errorf("%q is in no name of nft", name[i:i+1])
		}
	}
	return nil
}

// text is the name as an argument of nft.
func (n SetName) text() string {
	return n.Family + " " + n.Table + " " + n.Set
}

package host

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// Identity are the addresses without which this host is lost.
type Identity struct {
	Addresses []netip.Addr // its own, loopback included
	Gateways  []netip.Addr // next hops of its routes
	Resolvers []netip.Addr // from /etc/resolv.conf
}

func readResolvers(path string) ([]netip.Addr, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("identify host: %w", err)
	}
	defer f.Close()
	var out []netip.Addr
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			out = append(out, a.WithZone("").Unmap())
		}
	}
	if err := lines.Err(); err != nil {
		return out, fmt.Errorf("identify host: read %s: %w", path, err)
	}
	return out, nil
}

// Name is the default firewall name: the full host name, in lower case, with
// dots and whatever else a name cannot hold turned to dashes.
func Name() string {
	h, _ := os.Hostname() // without one there is the name of last resort
	return nameOf(h)
}

// maxName is the longest firewall name.
const maxName = 63

func nameOf(hostname string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(hostname))
	name = strings.TrimLeft(name, "-_")
	if name == "" {
		return "firewall"
	}
	return name[:min(len(name), maxName)]
}

package history

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Families, as they stand in the column of that name.
const (
	family4 = 4
	family6 = 6
)

// sign is what is flipped in each half of an IPv6 address: SQLite's integers are
// signed, and so they sort as the address does.
const sign = 1 << 63

// columns returns an address as it is stored: IPv4 as hi 0 and lo its 32 bits,
// IPv6 as its two halves with the sign bit flipped. Within a family (hi, lo)
// sorts as the address does.
func columns(a netip.Addr) (family, hi, lo int64) {
	n, ipv6 := events.FromNetip(a)
	if !ipv6 {
		return family4, 0, int64(n.Lo)
	}
	return family6, int64(n.Hi ^ sign), int64(n.Lo ^ sign)
}

// address is the inverse.
func address(family, hi, lo int64) netip.Addr {
	if family == family4 {
		return events.Addr{Lo: uint64(lo)}.Netip(false)
	}
	return events.Addr{Hi: uint64(hi) ^ sign, Lo: uint64(lo) ^ sign}.Netip(true)
}

// groups is SQL for an IPv6 address as ":2001:db8:0:0:0:0:0:7:".
func groups() string {
	var words []string
	for _, half := range []string{"hi", "lo"} {
		// The shift brings copies of the sign, which the mask takes away; adding
		// 32768 flips the bit that was flipped.
		words = append(words, fmt.Sprintf("((%s >> 48) + 32768) & 65535", half))
		for _, shift := range []int{32, 16, 0} {
			words = append(words, fmt.Sprintf("(%s >> %d) & 65535", half, shift))
		}
	}
	return "printf(':%x:%x:%x:%x:%x:%x:%x:%x:', " + strings.Join(words, ", ") + ")"
}

// addressText is SQL for the text of an address, as RFC 5952 and [netip.Addr]
// write it, where groups() is at hand under the name g: the longest run of zeros,
// the first of equal ones, becomes "::".
func addressText() string {
	var b strings.Builder
	b.WriteString("CASE WHEN family = 4 THEN printf('%d.%d.%d.%d', lo >> 24, (lo >> 16) & 255, (lo >> 8) & 255, lo & 255)")
	for n := 8; n >= 2; n-- {
		run := ":" + strings.Repeat("0:", n)
		at := fmt.Sprintf("instr(g, '%s')", run)
		fmt.Fprintf(&b, "\n    WHEN %s > 0 THEN substr(g, 2, max(%s - 2, 0)) || '::' || rtrim(substr(g, %s + %d), ':')", at, at, at, len(run))
	}
	b.WriteString("\n    ELSE trim(g, ':') END")
	return b.String()
}

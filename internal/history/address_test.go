package history

import (
	"cmp"
	"database/sql"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// addresses are some whose order and spelling go wrong easily, and many at random.
func addresses() (out []netip.Addr) {
	for _, s := range []string{
		"0.0.0.0", "0.0.0.1", "127.255.255.255", "128.0.0.0", "192.0.2.1", "198.18.0.7", "203.0.113.255", "255.255.255.255",
		"::", "::1", "1::", "1::8", "0:1:2:3:4:5:6:7", "1:2:3:4:5:6:7:0", "1:0:0:4:0:0:7:8", "1:0:3:0:5:0:7:0", "1:0:0:0:5:0:0:0", "1:0:0:4:5:0:0:0",
		"0:0:3::8", "2001:db8::7", "2001:db8:0:1::7", "2001:db8::1:0:0:7", "10:100:1000:0:0:10:100:1000", "64:ff9b::c633:6401",
		"7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "8000::", "8000::1", "2001:db8:0:0:7fff:ffff:ffff:ffff", "2001:db8:0:0:8000::",
		"fe80::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		out = append(out, netip.MustParseAddr(s))
	}
	r := rand.New(rand.NewPCG(4, 6))
	for range 2000 {
		var b [16]byte
		binary.NativeEndian.PutUint64(b[:], r.Uint64())
		binary.NativeEndian.PutUint64(b[8:], r.Uint64())
		out = append(out, netip.AddrFrom4([4]byte(b[:4])))
		for i := 0; i < 16; i += 2 { // runs of zeros of all lengths and at all places
			if r.IntN(2) == 0 {
				b[i], b[i+1] = 0, 0
			}
		}
		if a := netip.AddrFrom16(b); !a.Is4In6() { // which is stored as IPv4
			out = append(out, a)
		}
	}
	return out
}

// TestColumnsSortAsAddressesDo holds the order within a family, and the way back.
func TestColumnsSortAsAddressesDo(t *testing.T) {
	t.Parallel()
	all := addresses()
	slices.SortFunc(all, netip.Addr.Compare)
	type three struct{ family, hi, lo int64 }
	var stored []three
	for _, a := range all {
		family, hi, lo := columns(a)
		stored = append(stored, three{family, hi, lo})
		if back := address(family, hi, lo); back != a {
			t.Errorf("%s comes back as %s", a, back)
		}
	}
	if !slices.IsSortedFunc(stored, func(a, b three) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo))
	}) {
		t.Error("the columns do not sort as the addresses do")
	}
}

// TestAddressTextInSQL compares what the views write with what Go writes.
func TestAddressTextInSQL(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	stmt, err := db.Prepare("SELECT " + addressText() + " FROM (SELECT family, hi, lo, " + groups() + " AS g FROM (SELECT ? AS family, ? AS hi, ? AS lo))")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	for _, a := range addresses() {
		family, hi, lo := columns(a)
		var text string
		if err := stmt.QueryRow(family, hi, lo).Scan(&text); err != nil {
			t.Fatal(err)
		}
		if text != a.String() {
			t.Errorf("%s is written as %s", a, text)
		}
	}
}

package block_test

import (
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/block"
)

func TestParseSetName(t *testing.T) {
	t.Parallel()
	f := func(in string, want block.SetName, wantErr string) {
		t.Helper()
		got, err := block.ParseSetName(in)
		switch {
		case wantErr == "" && (err != nil || got != want || got.String() != in):
			t.Errorf("%q: %+v, %v, want %+v", in, got, err, want)
		case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
			t.Errorf("%q: error %v, want one with %q", in, err, wantErr)
		}
	}
	f("inet/filter/blocked4", block.SetName{Family: "inet", Table: "filter", Set: "blocked4"}, "")
	f("ip/my-table/a.b_c", block.SetName{Family: "ip", Table: "my-table", Set: "a.b_c"}, "")
	f("ip6/t/_"+strings.Repeat("x", 254), block.SetName{Family: "ip6", Table: "t", Set: "_" + strings.Repeat("x", 254)}, "")
	f("", block.SetName{}, "want FAMILY/TABLE/SET")
	f("filter/blocked4", block.SetName{}, "want FAMILY/TABLE/SET")
	f("bridge/filter/blocked4", block.SetName{}, `family "bridge": want inet, ip or ip6`)
	f("inet//blocked4", block.SetName{}, `table "": no name`)
	f("inet/filter/", block.SetName{}, `set "": no name`)
	f("inet/filter/a/b", block.SetName{}, `"/" is in no name`)
	f("inet/filter/4blocked", block.SetName{}, `"4" is in no name`)
	f("inet/fil ter/x", block.SetName{}, `" " is in no name`)
	f("inet/filter/x'; flush ruleset", block.SetName{}, `"'" is in no name`)
	f("inet/filter/"+strings.Repeat("x", 256), block.SetName{}, "256 bytes long")
}

func FuzzParseSetName(f *testing.F) {
	for _, s := range []string{"inet/filter/blocked4", "ip6/t/x-1", "inet//", "a/b/c/d", "ip/\xff/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := block.ParseSetName(s)
		if err != nil {
			return
		}
		if n.String() != s {
			t.Errorf("%q reads as %+v, which is written %q", s, n, n)
		}
		// Errors put it into a line for a shell.
		if strings.ContainsAny(s, " '\"`$;\n\x00") {
			t.Errorf("%q is no name that nft could write", s)
		}
	})
}

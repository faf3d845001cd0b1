package reference

import (
	"os"
	"strings"
	"testing"
)

// Table is a table in Markdown.
type Table struct{ b strings.Builder }

// Row adds a row; the first is the head.
func (t *Table) Row(cells ...string) {
	head := t.b.Len() == 0
	for _, c := range cells {
		t.b.WriteString("| " + strings.ReplaceAll(strings.TrimSpace(c), "|", `\|`) + " ")
	}
	t.b.WriteString("|\n")
	if head {
		t.b.WriteString(strings.Repeat("|---", len(cells)) + "|\n")
	}
}

func (t *Table) String() string { return t.b.String() }

// Code sets s as code, nothing for an empty one.
func Code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// Block holds what stands in a page between the comments that begin and end the block
// called name, which say how to make it. With update it is written instead.
func Block(t testing.TB, update bool, page, name, command, text string) {
	t.Helper()
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	begin := "<!-- " + name + ": made from the code by " + command + " -->\n"
	end := "<!-- end of " + name + " -->\n"
	before, rest, ok := strings.Cut(string(old), begin)
	is, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for %s. Write these two lines where it belongs:\n%s%s", page, name, begin, end)
	}
	want := "\n" + strings.TrimSpace(text) + "\n\n"
	if is == want {
		return
	}
	if !update {
		t.Errorf("%s: %s is not what the code says: %s", page, name, command)
		return
	}
	if err := os.WriteFile(page, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

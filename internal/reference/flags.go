package reference

import (
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// Program holds the flags of a program, which are those that cli has, in the block "flags"
// of a page.
func Program(t testing.TB, update bool, page, name string, cli any) {
	t.Helper()
	app, err := daemon.Model(name, cli)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	var commands []*kong.Node
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		for _, c := range n.Children {
			if !c.Hidden && c.Type == kong.CommandNode {
				walk(c)
			}
		}
		if n.Type == kong.CommandNode && n.Leaf() {
			commands = append(commands, n)
		}
	}
	walk(app.Node)
	if len(commands) == 0 {
		b.WriteString(table(app.Flags, nil))
	} else {
		// What most commands take is said once.
		var common []*kong.Flag
		for _, c := range commands {
			for _, f := range c.Flags {
				among := slices.ContainsFunc(common, func(o *kong.Flag) bool { return same(o, f) })
				if !among && !f.Hidden && 2*count(commands, f) > len(commands) {
					common = append(common, f)
				}
			}
		}
		b.WriteString("## All commands\n\n" + table(app.Flags, nil))
		b.WriteString("\n## Those that ask the bus\n\n" + table(common, nil))
		for _, c := range commands {
			b.WriteString("\n## " + strings.TrimPrefix(c.FullPath(), name+" ") + "\n\n" + strings.TrimSuffix(c.Help, ".") + ".\n")
			own := table(c.Flags, common)
			b.WriteString("\n    " + name + " " + c.Summary() + "\n")
			if own != "" {
				b.WriteString("\n" + own)
			}
			var take []string
			for _, f := range c.Flags {
				if slices.ContainsFunc(common, func(o *kong.Flag) bool { return same(o, f) }) {
					take = append(take, f.Name)
				}
			}
			if len(take) == 0 {
				b.WriteString("\nIt does not ask the bus.\n")
			}
		}
	}
	Block(t, update, page, "flags", "`go test ./cmd/"+name+" -run Reference -update`", b.String())
}

func same(a, b *kong.Flag) bool {
	return a.Name == b.Name && a.Help == b.Help && a.Default == b.Default
}

func count(commands []*kong.Node, f *kong.Flag) (n int) {
	for _, c := range commands {
		if slices.ContainsFunc(c.Flags, func(o *kong.Flag) bool { return same(o, f) }) {
			n++
		}
	}
	return n
}

// table has a row for each flag that is not among others; it is empty where there is none.
func table(flags []*kong.Flag, others []*kong.Flag) string {
	var t Table
	for _, f := range flags {
		if f.Hidden || f.Name == "help" || slices.ContainsFunc(others, func(o *kong.Flag) bool { return same(o, f) }) {
			continue
		}
		if t.b.Len() == 0 {
			t.Row("Flag", "Default", "Variable", "")
		}
		spelt := "--" + f.Name
		if f.Short != 0 {
			spelt = "-" + string(f.Short) + ", " + spelt
		}
		value := ""
		if !f.IsBool() {
			value = "=" + f.FormatPlaceHolder()
			if f.HasDefault || f.Enum != "" {
				value = ""
			}
			if f.Enum != "" {
				value = "=" + strings.ReplaceAll(f.Enum, ",", "|")
			}
		}
		// The default has a column of its own.
		help := strings.Replace(f.Help, " ("+f.Default+")", "", 1)
		def := f.Default
		if f.IsBool() && def == "false" {
			def = ""
		}
		var envs []string
		for _, e := range f.Envs {
			envs = append(envs, Code(e))
		}
		t.Row(Code(spelt+value), Code(def), strings.Join(envs, ", "), strings.Replace(help, "(${default})", "", 1))
	}
	return t.String()
}

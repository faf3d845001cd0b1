package auth

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reference/permissions.md")

// TestReference keeps docs/reference/permissions.md what the code says.
func TestReference(t *testing.T) {
	const path = "../../docs/reference/permissions.md"
	var b strings.Builder
	b.WriteString(`# Who may say and hear what on the bus

` + "`ctfleet auth init` and `add-firewall` write this into `nats/accounts.conf`, and the server refuses everything else. It is made from\n" +
		"[permissions.go](../../internal/auth/permissions.go) by `go test ./internal/auth -update`; [a test](../../internal/auth/permissions_test.go) tries each subject with each role on a server.\n" +
		"KEY is the identity's own public key: nobody hears the answers to another. How to give somebody a key: [keys.md](../howto/keys.md).\n")
	roles := []struct {
		role Role
		who  string
	}{
		{RoleFirewall, "One producer, FIREWALL"},
		{RoleAggregator, "The aggregator"},
		{RoleResponder, "The responder"},
		{RoleOperator, "A person who commands: all of `ctfleet`. That a command is carried out takes a signature too"},
		{RoleAnalyst, "A person who reads everything: events, peers, history, audit"},
		{RoleViewer, "A person or a screen that sees counts and alerts"},
		{RoleBootstrap, "`ctfleet bootstrap`, which makes streams and buckets"},
		{RoleSystem, "`ctfleet auth`, to have servers read their configuration again; in an account of its own"},
	}
	if len(roles) != len(services)+1 {
		t.Errorf("%d roles are described, there are %d", len(roles), len(services)+1)
	}
	for _, r := range roles {
		p := permissionsOf(&Identity{Name: "FIREWALL", Role: r.role, Key: "KEY"})
		not := ""
		if len(p.Not) > 0 {
			not = " Not `" + strings.Join(p.Not, "`, `") + "`: what waits for responders."
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s.%s\n\n| publishes | subscribes to |\n|---|---|\n", r.role, r.who, not)
		for i := range max(len(p.Publish), len(p.Subscribe)) {
			cell := func(list []string) string {
				if i < len(list) {
					return "`" + list[i] + "`"
				}
				return ""
			}
			fmt.Fprintf(&b, "| %s | %s |\n", cell(p.Publish), cell(p.Subscribe))
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(read(t, path)) != b.String() {
		t.Errorf("%s is not what the code says: go test ./internal/auth -update", path)
	}
}

package deploy

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree lists the files below a directory.
func tree(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestInstall: what is installed is where it belongs, what was there stays, and uninstall
// leaves what was changed and nothing else.
func TestInstall(t *testing.T) {
	t.Parallel()
	bin, root := t.TempDir(), t.TempDir()
	for _, p := range []string{"producer", "aggregator", "responder", "ctfleet"} {
		if err := os.WriteFile(filepath.Join(bin, p), []byte(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "./install.sh", args...)
		cmd.Env = append(os.Environ(), "BIN="+bin, "DESTDIR="+root, "PREFIX=/opt/ctfleet")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("install.sh %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	expect := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := tree(t, root); !slices.Equal(got, want) {
			t.Errorf("%s: there are\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	firewall := []string{
		"etc/ctfleet/producer.yaml", "etc/sysctl.d/50-ctfleet.conf", "etc/modules-load.d/ctfleet.conf", "etc/nftables.d/ctfleet.nft",
		"opt/ctfleet/bin/producer", "opt/ctfleet/bin/ctfleet", "opt/ctfleet/lib/systemd/system/ctfleet-producer.service", "opt/ctfleet/share/doc/ctfleet/no-tls.conf",
	}
	centre := []string{
		"etc/ctfleet/aggregator.yaml", "etc/ctfleet/responder.yaml", "etc/ctfleet/rules.yaml", "etc/ctfleet/policy.yaml",
		"opt/ctfleet/bin/aggregator", "opt/ctfleet/bin/responder", "opt/ctfleet/lib/sysusers.d/ctfleet.conf",
		"opt/ctfleet/lib/systemd/system/ctfleet-aggregator.service", "opt/ctfleet/lib/systemd/system/ctfleet-responder.service", "opt/ctfleet/lib/systemd/system/ctfleet-nats.service",
	}
	run("install", "firewall")
	expect("firewall", firewall...)
	unit, err := os.ReadFile(filepath.Join(root, "opt/ctfleet/lib/systemd/system/ctfleet-producer.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/opt/ctfleet/bin/producer ") || !strings.Contains(string(unit), "\nExecPaths=/opt/ctfleet/bin/producer\n") || strings.Contains(string(unit), "/usr/local/bin") {
		t.Errorf("the unit names another program than the one that was installed: %v\n%s", err, unit)
	}

	mine := filepath.Join(root, "etc/ctfleet/rules.yaml")
	if err := os.WriteFile(mine, []byte("rules: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("install"); !strings.Contains(out, "kept: "+mine) {
		t.Errorf("nothing is said of a file that was kept: %s", out)
	}
	expect("all", append(slices.Clone(firewall), centre...)...)
	if text, err := os.ReadFile(mine); err != nil || string(text) != "rules: []\n" {
		t.Errorf("my rules are %q, %v", text, err)
	}
	if out := run("uninstall"); !strings.Contains(out, "left: "+mine) {
		t.Errorf("nothing is said of a file that was left: %s", out)
	}
	expect("uninstalled", "etc/ctfleet/rules.yaml")
}

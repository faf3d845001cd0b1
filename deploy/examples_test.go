// Package deploy holds what is deployed. Its tests read the examples with the code that will read them.
package deploy

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestRulesAndPolicy(t *testing.T) {
	rules := rule.NewFile()
	if err := config.ReadFile("rules.yaml", &rules); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for i := range rules.Rules {
		named[rules.Rules[i].Name] = true
	}
	p := policy.Default()
	if err := config.ReadFile("policy.yaml", &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	if p.Mode != policy.Observe {
		t.Errorf("the example policy has mode %s: whoever copies it must not delete anything by that", p.Mode)
	}
	if len(p.Policies) == 0 {
		t.Error("the example policy says nothing about any rule")
	}
	for _, r := range p.Policies {
		if !named[r.Rule] {
			t.Errorf("the example policy is about rule %s, which rules.yaml does not have", r.Rule)
		}
	}
}

// service is what a test asks of a service in a compose file.
type service struct {
	Image       string
	Profiles    []string
	User        string
	CapDrop     []string `yaml:"cap_drop"`
	CapAdd      []string `yaml:"cap_add"`
	Security    []string `yaml:"security_opt"`
	ReadOnly    bool     `yaml:"read_only"`
	Pids        int      `yaml:"pids_limit"`
	Memory      string   `yaml:"mem_limit"`
	CPUs        float64  `yaml:"cpus"`
	Restart     string
	Grace       string `yaml:"stop_grace_period"`
	Environment map[string]string
	Ports       []string
	Privileged  bool
}

// TestCompose: each container has no more rights than it needs, and limits that the Go runtime
// knows of.
func TestCompose(t *testing.T) {
	for _, file := range []string{"../docker-compose.yml", "agent/compose.yml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c struct{ Services map[string]service }
		if err := yaml.UnmarshalWithOptions(text, &c, yaml.AllowDuplicateMapKey()); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, s := range c.Services {
			bad := func(format string, args ...any) {
				t.Errorf("%s: %s: %s", file, name, fmt.Sprintf(format, args...))
			}
			if s.Privileged || !s.ReadOnly || s.Pids == 0 || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.Security, []string{"no-new-privileges"}) {
				bad("not confined: %+v", s)
			}
			if s.User == "0:0" != (len(s.CapAdd) > 0) {
				bad("user %q with %v: a right is effective for root only, and who has none need not be root", s.User, s.CapAdd)
			}
			if strings.HasPrefix(name, "producer") && !slices.Equal(s.CapAdd, []string{"NET_ADMIN"}) {
				bad("a producer with %v", s.CapAdd)
			}
			// More than one, and a host with one processor would not start it.
			if s.CPUs <= 0 || s.CPUs > 1 {
				bad("%v processors", s.CPUs)
			}
			limit := mebibytes(t, s.Memory)
			if soft := s.Environment["GOMEMLIMIT"]; soft != "" {
				if share := mebibytes(t, strings.TrimSuffix(soft, "iB")) / limit; share < 0.75 || share > 0.85 {
					bad("GOMEMLIMIT is %.0f %% of %s, want about 80", 100*share, s.Memory)
				}
			} else if s.Restart != "" {
				bad("no GOMEMLIMIT")
			}
			for _, p := range s.Ports {
				if !strings.Contains(p, ":-127.0.0.1:") {
					bad("%s is published to others than this host, without being told to", p)
				}
			}
			if !strings.HasPrefix(s.Image, "${CTFLEET_") && strings.Contains(s.Image, "latest") {
				bad("%s may be another one tomorrow", s.Image)
			}
		}
	}
}

// TestServerConfig reads the configuration of three servers as a server does, beside what `ctfleet
// auth init` makes. cmd/ctfleet runs three by it, and kills one.
func TestServerConfig(t *testing.T) {
	dir := t.TempDir()
	if err := auth.Init(dir, auth.Options{Listen: "127.0.0.1:4222"}); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile("nats/cluster.conf")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cluster.conf")
	if err := os.WriteFile(path, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for name, value := range map[string]string{
		"NATS_SERVER_NAME": "nats-2", "NATS_LISTEN": "0.0.0.0:4222", "NATS_CLUSTER_LISTEN": "0.0.0.0:6222", "NATS_HTTP": "127.0.0.1:8222", "NATS_STORE": "/data",
		"NATS_ROUTES": "[tls://nats-1:6222, tls://nats-2:6222, tls://nats-3:6222]",
	} {
		t.Setenv(name, value)
	}
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !opts.JetStream || opts.StoreDir != "/data" || opts.ServerName != "nats-2" {
		t.Errorf("JetStream %t, store %q, name %q: want it on, in the volume, by its name", opts.JetStream, opts.StoreDir, opts.ServerName)
	}
	if !opts.SyncAlways {
		t.Error("sync_interval is not always: a power cut would take acknowledged alerts and audit entries")
	}
	if opts.MaxPayload < events.MaxBatchBytes {
		t.Errorf("max_payload %d does not hold a batch of %d bytes", opts.MaxPayload, events.MaxBatchBytes)
	}
	if opts.HTTPHost != "127.0.0.1" {
		t.Errorf("monitoring listens on %s, and asks nobody who he is", opts.HTTPHost)
	}
	if len(opts.Routes) != 3 || len(opts.Nkeys) == 0 {
		t.Errorf("%d routes, %d users", len(opts.Routes), len(opts.Nkeys))
	}
	for what, c := range map[string]*tls.Config{"clients": opts.TLSConfig, "servers": opts.Cluster.TLSConfig} {
		if c == nil || c.ClientAuth != tls.RequireAndVerifyClientCert || c.MinVersion < tls.VersionTLS12 {
			t.Errorf("%s need no certificate: %+v", what, c)
		}
	}
}

// mebibytes reads 256m, 2g, 200M (of 200MiB).
func mebibytes(t *testing.T, s string) float64 {
	t.Helper()
	var n float64
	var unit string
	if _, err := fmt.Sscanf(strings.ToLower(s), "%f%1s", &n, &unit); err != nil || unit != "m" && unit != "g" {
		t.Fatalf("%q is no amount of memory", s)
	}
	if unit == "g" {
		n *= 1024
	}
	return n
}
